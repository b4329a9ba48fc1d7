# SPDX-License-Identifier: GPL-2.0-or-later
"""Filters that another process compiles are those that would be compiled here, or none."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardsplice.app import filters
from hardsplice.app.filters import Ahead, compile_all
from hardsplice.app.options import Options, for_service
from hardsplice.kernel.files import identity
from hardsplice.model.errors import HardspliceError
from hardsplice.sandbox import seccomp

FIRST_FLOW = 500
OPTIONS = for_service("/run/netns/a", quits=True)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = left()
    yield
    assert left() == before


def left() -> tuple[list[str], str]:
    """Our descriptors and children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return os.listdir("/proc/self/fd"), children


def ahead(options: Options = OPTIONS) -> filters.Programs | None:
    return Ahead(options, FIRST_FLOW, has_control=True).take()


def test_they_are_the_same() -> None:
    found = ahead()
    assert found == compile_all(OPTIONS, FIRST_FLOW, has_control=True)
    assert compile_all(OPTIONS, FIRST_FLOW, has_control=True, ahead=found) is found


@pytest.mark.parametrize(
    ("options", "first_flow", "has_control"),
    [
        (OPTIONS, FIRST_FLOW + 1, True),
        (OPTIONS, FIRST_FLOW, False),
        (OPTIONS._replace(any_port=frozenset([*OPTIONS.any_port][:1])), FIRST_FLOW, True),
    ],
)
def test_those_for_another_start_are_not_taken(
    options: Options, first_flow: int, has_control: bool
) -> None:
    found = ahead()
    assert found is not None
    taken = compile_all(options, first_flow, has_control=has_control, ahead=found)
    assert taken == compile_all(options, first_flow, has_control=has_control)
    assert taken != found


def test_whoever_can_not_compile_them_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then they are compiled here, and what is wrong is told as ever."""

    def fail(*_: object) -> bytes:
        raise HardspliceError("compile", "the policy", "it can't be")

    monkeypatch.setattr(seccomp, "compile_policy", fail)
    assert ahead() is None


def test_whoever_ends_early_has_said_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.getpid()

    def end(fd: int, data: bytes) -> None:
        assert os.getpid() != here
        os.write(fd, data[: len(data) // 2])
        os._exit(1)

    monkeypatch.setattr(filters, "write_all", end)
    assert ahead() is None


def test_without_a_process_to_spare_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    assert ahead() is None


def test_nobody_else_can_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the pipe at which they are written is no other process's from the start on."""
    made = Ahead(OPTIONS, FIRST_FLOW, has_control=True)
    pipe = identity(os.fstat(made._told))
    ours = [
        fd for fd in map(int, os.listdir("/proc/self/fd"))
        if fd != made._told and os.path.exists(f"/proc/self/fd/{fd}")
        and identity(os.fstat(fd)) == pipe
    ]  # fmt: skip
    assert made.take() is not None
    assert ours == []
