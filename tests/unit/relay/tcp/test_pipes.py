# SPDX-License-Identifier: GPL-2.0-or-later
"""The pool of pipes: what goes in is clean, what comes out was probed for."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from hardsplice.relay.tcp.pipes import (
    MAX_PIPE_SIZE,
    MIN_PIPE_SIZE,
    PipePool,
    probe_size,
    size_of_next,
)
from hardsplice.relay.tcp.seam import Kernel
from tests.support.descriptors import open_descriptors
from tests.unit.relay.fake_kernel import FakeKernel, ReadEnd

KIB = 1024
BORN = 64 * KIB  # the size of a new pipe: 16 pages


class Allowance(FakeKernel):
    """A kernel with pipe-max-size and pipe-user-pages-soft, for a user without CAP_SYS_RESOURCE."""

    def __init__(self, *, each: int, soft: int, descriptors: int = 200) -> None:
        super().__init__(descriptors=descriptors)
        self.each = each  # bytes
        self.soft = soft  # bytes, of all pipes together
        self.sizes: dict[int, int] = {}

    def open_pipe(self) -> tuple[int, int]:
        read, write = super().open_pipe()
        used = sum(self.sizes.values())
        self.sizes[read] = BORN if used + BORN <= self.soft else 2 * 4 * KIB  # as alloc_pipe_info
        return read, write

    def resize_pipe(self, fd: int, size: int) -> int:
        """As kernel.resize_pipe answers: EPERM leaves the size as it is (pipe_set_size)."""
        self.fail("resize_pipe")
        now = self.sizes[fd]
        rounded = 1 << (size - 1).bit_length()
        grown = sum(self.sizes.values()) - now + rounded
        if rounded <= now or (rounded <= self.each and grown <= self.soft):
            self.sizes[fd] = rounded
        return self.sizes[fd]

    def close(self, fd: int) -> None:
        super().close(fd)
        self.sizes.pop(fd, None)


# --- the probe ---


@pytest.mark.parametrize(
    ("each", "soft", "count", "expected"),
    [
        (8192 * KIB, 2**40, 32, MAX_PIPE_SIZE),  # root
        (1024 * KIB, 2**40, 32, 1024 * KIB),  # pipe-max-size
        (1024 * KIB, 64 * 1024 * KIB, 32, 1024 * KIB),  # an ordinary user's, as kernels come
        (1024 * KIB, 16 * 1024 * KIB, 32, 512 * KIB),
        (1024 * KIB, 16 * 1024 * KIB, 16, 1024 * KIB),
        (1024 * KIB, 32 * BORN, 32, BORN),  # no growth at all: EPERM past the soft limit
        (1024 * KIB, 32 * BORN - 1, 32, 32 * KIB),
        (1024 * KIB, 0, 32, 2 * MIN_PIPE_SIZE),  # two pages each
    ],
)
def test_the_probe_finds_the_largest_size_that_all_pipes_can_have(
    each: int, soft: int, count: int, expected: int
) -> None:
    kernel = Allowance(each=each, soft=soft)
    assert probe_size(kernel, count) == expected
    assert kernel.table == {}, "nothing stays open"


def test_fewer_pipes_share_the_probe_where_descriptors_are_short() -> None:
    kernel = Allowance(each=1024 * KIB, soft=2**40, descriptors=10)
    assert probe_size(kernel, 32) == 1024 * KIB
    assert kernel.table == {}


def test_without_any_pipe_the_answer_is_the_least() -> None:
    kernel = Allowance(each=1024 * KIB, soft=2**40)
    kernel.files_short = True
    assert probe_size(kernel, 32) == MIN_PIPE_SIZE
    assert kernel.table == {}


def test_a_probe_that_breaks_leaves_nothing_open() -> None:
    kernel = Allowance(each=1024 * KIB, soft=2**40)
    kernel.inject("resize_pipe", None, RuntimeError("surprise"))
    with pytest.raises(RuntimeError):
        probe_size(kernel, 4)
    assert kernel.table == {}


def test_the_real_kernel_gives_what_the_probe_found() -> None:
    """Found by the same rules, and set on the same number of pipes; the machine's limits decide."""
    kernel = Kernel()
    open_before = open_descriptors()
    size = probe_size(kernel, 4)
    assert open_descriptors() == open_before
    assert MIN_PIPE_SIZE <= size <= MAX_PIPE_SIZE
    read, write = kernel.open_pipe()
    try:
        assert kernel.resize_pipe(read, size) == fcntl.fcntl(read, fcntl.F_GETPIPE_SZ) >= size
        assert kernel.resize_pipe(read, 2**31 - 1) >= size, "more than there may be changes nothing"
        assert not os.get_blocking(read)
        assert not os.get_blocking(write)
        assert not os.get_inheritable(read)
        assert not os.get_inheritable(write)
    finally:
        os.close(read)
        os.close(write)


# --- the pool ---


def test_a_pool_is_filled_as_far_as_there_are_pipes() -> None:
    kernel = FakeKernel()
    kernel.pipes_most = 3
    pool = PipePool(kernel, 64, 5)
    pool.fill()
    assert len(pool.spare) == pool.open == kernel.pipes_open == 3
    kernel.pipes_most = 100
    pool.fill()
    assert len(pool.spare) == pool.open == kernel.pipes_open == 5


def test_the_warmest_pipe_is_used_first_and_a_new_one_when_there_is_none() -> None:
    kernel = FakeKernel()
    pool = PipePool(kernel, 64, 2)
    pool.fill()
    first = pool.take()
    assert first is not None
    pool.give(first)
    assert pool.take() is first
    second, third = pool.take(), pool.take()
    assert second is not None
    assert third is not None
    assert len({first.read, second.read, third.read}) == 3
    assert pool.open == kernel.pipes_open == 3


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_without_a_descriptor_there_is_no_pipe_and_no_error(code: int) -> None:
    kernel = FakeKernel()
    pool = PipePool(kernel, 64, 2)
    kernel.inject("open_pipe", code)
    assert pool.take() is None
    assert pool.open == 0
    assert pool.take() is not None


def test_half_a_pair_of_descriptors_is_no_pipe() -> None:
    kernel = FakeKernel(descriptors=4)
    assert PipePool(kernel, 64, 2).take() is None
    assert kernel.table == {}


def test_a_pipe_knows_the_size_that_it_got() -> None:
    pool = PipePool(Allowance(each=1024 * KIB, soft=2 * 1024 * KIB), 1024 * KIB, 3)
    pool.fill()
    assert sorted(pipe.size for pipe in pool.spare) == [8 * KIB, 1024 * KIB, 1024 * KIB]


def test_a_dirty_pipe_is_closed_and_never_seen_again() -> None:
    kernel = FakeKernel()
    pool = PipePool(kernel, 64, 2)
    dirty = pool.take()
    assert dirty is not None
    end = kernel.table[dirty.read]
    assert isinstance(end, ReadEnd)
    end.pipe.slots.append(bytearray(b"somebody's"))
    pool.discard(dirty)
    assert end.pipe.ends == 0
    assert (pool.open, pool.spare, kernel.table) == (0, [], {})
    fresh = pool.take()
    assert fresh is not dirty


def test_a_pool_keeps_no_more_than_it_was_told() -> None:
    kernel = FakeKernel()
    pool = PipePool(kernel, 64, 2)
    leased = [pool.take() for _ in range(4)]
    for pipe in leased:
        assert pipe is not None
        pool.give(pipe)
    assert len(pool.spare) == pool.open == kernel.pipes_open == 2


# --- many at once ---


def test_an_ordinary_users_allowance_lasts_for_384_blocked_flows() -> None:
    kernel = Allowance(each=1024 * KIB, soft=64 * 1024 * KIB, descriptors=1000)
    pool = PipePool(kernel, probe_size(kernel), 32)
    pool.fill()
    taken = [pool.take() for _ in range(385)]
    sizes = [pipe.size for pipe in taken if pipe]
    assert min(sizes[:384]) == 64 * KIB
    assert sizes[384] == 8 * KIB  # what the kernel gives to who has used up the allowance
    assert sizes.count(1024 * KIB) == 32


@pytest.mark.parametrize("keep", [2, 8, 32])
@pytest.mark.parametrize("size", [MIN_PIPE_SIZE, BORN, MAX_PIPE_SIZE])
def test_pipes_beyond_the_pools_own_get_smaller_and_never_too_small(size: int, keep: int) -> None:
    sizes = [size_of_next(opened, size, keep) for opened in range(8 * keep)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[:keep] == [size] * keep
    assert sizes[-1] == max(size // 16, MIN_PIPE_SIZE)
