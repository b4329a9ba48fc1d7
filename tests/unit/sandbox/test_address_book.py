# SPDX-License-Identifier: GPL-2.0-or-later
"""The address book: what is in it, who can change that, and what nobody can.

A process opens a book once and for good; so that is done in processes of their own here.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardsplice.kernel import pinned, socketcalls
from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.model.errors import HardspliceError
from hardsplice.sandbox.address_book import (
    LARGE,
    LARGE_32,
    NO_ADDRESS,
    SLOT,
    USUAL,
    VALUES_SIZE,
    Book,
    Pointer,
    area_for,
)
from tests.support.descriptors import open_descriptors

pytestmark = pytest.mark.usefixtures("nothing_left_open")


def target(number: int) -> bytes:
    """One of many targets, of either family."""
    address = "127.0.0.1" if number % 2 else "::1"
    return socketcalls.sockaddr(ip_address(address), 1 + number)


def content(book: Book) -> bytes:
    """All slots, as they are in the file."""
    return os.pread(book.fd, os.fstat(book.fd).st_size, VALUES_SIZE)


def slots(book: Book) -> list[bytes]:
    """Each slot's content."""
    raw = content(book)
    return [raw[at : at + SLOT] for at in range(0, len(raw), SLOT)]


def in_use(book: Book) -> dict[int, bytes]:
    return {number: one for number, one in enumerate(slots(book)) if one != NO_ADDRESS}


def length(slot: bytes) -> int:
    """How much of a slot its address takes."""
    return 16 if int.from_bytes(slot[:2], sys.byteorder) == socket.AF_INET else 28


# --- what it holds --------------------------------------------------------------------------------


def test_the_first_targets_are_in_it_each_once() -> None:
    given_ = [target(1), target(2), target(1), target(3)]
    book = Book(USUAL, given_, 0, is_written=False)
    assert {number: one[: length(one)] for number, one in in_use(book).items()} == {
        book.slot(one): one for one in given_
    }
    assert len(in_use(book)) == 3
    with pytest.raises(KeyError):
        book.slot(target(4))
    book.close()


def test_a_slot_that_is_not_used_has_a_family_that_does_not_exist() -> None:
    """Zeros would be AF_UNSPEC, which disconnects."""
    book = Book(USUAL, [target(1)], 300, is_written=True)
    unused = [one for number, one in enumerate(slots(book)) if number != book.slot(target(1))]
    assert len(unused) > 300
    assert set(unused) == {NO_ADDRESS}
    assert int.from_bytes(NO_ADDRESS[:2], sys.byteorder) == 0xFFFF
    book.add(target(2))
    book.remove(target(2))
    book.remove(target(1))
    assert set(slots(book)) == {NO_ADDRESS}
    book.close()


def test_the_values_are_in_front_of_the_slots() -> None:
    book = Book(USUAL, [], 0, is_written=False)
    raw = os.pread(book.fd, VALUES_SIZE, 0)
    found = {at: raw[at : at + len(value)] for at, value in in_file(pinned.initial_values())}
    assert found == dict(in_file(pinned.initial_values()))
    assert sum(map(bool, raw)) == sum(map(bool, b"".join(found.values())))
    book.close()


def in_file(values: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The values with their places in the file; none is in two pieces of it."""
    for at, value in values:
        piece, offset = divmod(at, pinned.PIECE)
        assert offset + len(value) <= pinned.PIECE
        yield pinned.IN_FILE[piece] * pinned.PIECE + offset, value


def test_what_nobody_writes_is_in_front_of_what_the_writer_sees() -> None:
    """Its view could be made longer, though not to the front."""
    first = pinned.FIRST_WRITTEN * pinned.PIECE
    families = [(pinned.BIND_IPV4, b""), (pinned.BIND_IPV6, b"")]
    assert all(at + 2 <= first for at, _ in in_file(families))
    rest = [(pinned.BIND_IPV4 + 2, b""), (pinned.BIND_IPV6 + 2, b""), (pinned.DEVICE, b"")]
    assert all(at >= first for at, _ in in_file(rest))


def test_a_slot_is_used_again_as_late_as_possible() -> None:
    book = Book(USUAL, [], 1, is_written=True)
    room = len(slots(book))
    taken = [book.add(target(number)) for number in range(3)]
    for number in range(3):
        book.remove(target(number))
    later = [book.add(target(100 + number)) for number in range(room)]
    assert set(taken).isdisjoint(later[: room - 3])
    assert later[room - 3 :] == taken
    book.close()


def test_a_target_stays_until_nobody_needs_it_any_more() -> None:
    book = Book(USUAL, [target(1), target(1)], 4, is_written=True)
    slot = book.slot(target(1))
    assert book.add(target(1)) == slot
    for _ in range(2):
        book.remove(target(1))
        assert slots(book)[slot][:16] == target(1)[:16]
    book.remove(target(1))
    assert in_use(book) == {}
    with pytest.raises(KeyError):
        book.slot(target(1))
    book.close()


def test_a_full_book_takes_no_more_until_one_is_given_up() -> None:
    book = Book(USUAL, [], 1, is_written=True)
    room = len(slots(book))
    for number in range(room):
        book.add(target(number))
    before = content(book)
    with pytest.raises(HardspliceError, match="full"):
        book.add(target(room))
    book.add(target(0))  # which is there already
    assert content(book) == before
    book.remove(target(1))
    book.add(target(room))
    book.close()


@pytest.mark.parametrize("area", [USUAL, LARGE])
def test_there_is_room_for_as_many_as_the_place_has_and_no_more(area: object) -> None:
    assert area in (USUAL, LARGE)
    where = USUAL if area is USUAL else LARGE
    room = where.size // SLOT
    book = Book(
        where, [target(number % 60_000) for number in range(10)], room - 10, is_written=False
    )
    assert len(slots(book)) >= room - 1
    book.close()
    with pytest.raises(HardspliceError, match="room for"):
        Book(where, [target(1)], room, is_written=False)


@pytest.mark.parametrize(
    ("targets", "area"),
    [(0, USUAL), (65536, USUAL), (65537, LARGE), (2 * 65535, LARGE), (4 * 65535, LARGE)],
)
def test_the_place_is_large_enough(targets: int, area: object) -> None:
    assert area_for(targets, "x86_64") == area


# Where programs begin that aren't position independent, and how much later their heap may: the
# program headers of Debian's python3, and arch_randomize_brk of the kernel.
PROGRAMS = {
    "x86_64": (0x400000, 1 << 30),
    "i686": (0x8048000, 1 << 25),
    "arm64": (0x400000, 1 << 30),
    "armhf": (0x10000, 1 << 25),
    "ppc64le": (0x10000000, 1 << 30),
    "s390x": (0x1000000, 1 << 30),
    "riscv64": (0x10000, 1 << 30),
}
ROOM = 256 << 20  # bytes, for the program and a heap that grows


@pytest.mark.parametrize("targets", [1, 2 * 65535])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_neither_a_program_nor_its_heap_is_in_its_place(arch: str, targets: int) -> None:
    area = area_for(targets, arch)
    program, later = PROGRAMS[arch]
    is_in_front = area.address + area.size <= program
    assert is_in_front or program + later + ROOM <= area.values
    if ARCHITECTURES[arch].bits == 32:
        assert area.address + area.size <= 1 << 30, "it may be mapped from there on"
        assert area in (USUAL, LARGE_32)
    assert area.values % 0x10000 == 0, "where pages of any size may begin"


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_whatever_is_added_and_removed_the_book_holds_what_is_needed(
    steps: list[tuple[bool, int]],
) -> None:
    book = Book(USUAL, [], 10, is_written=True)
    needed: dict[int, int] = {}
    for adds, number in steps:
        if adds:
            book.add(target(number))
            needed[number] = needed.get(number, 0) + 1
        elif needed.get(number):
            book.remove(target(number))
            needed[number] -= 1
    wanted = {number for number, uses in needed.items() if uses}
    found = {slot: raw[: length(raw)] for slot, raw in in_use(book).items()}
    assert found == {book.slot(target(number)): target(number) for number in wanted}
    book.close()


# --- pointers -------------------------------------------------------------------------------------


def test_a_pointer_is_what_it_points_to_and_where() -> None:
    one = Pointer(USUAL, 3, 0, target(1))
    assert one.where.value == USUAL.address + 3 * SLOT
    assert one.length == 16
    assert one == Pointer(USUAL, 3, 0, target(1))
    assert hash(one) == hash(Pointer(USUAL, 3, 0, target(1)))
    for other in (
        Pointer(USUAL, 4, 0, target(1)),
        Pointer(LARGE, 3, 0, target(1)),
        Pointer(USUAL, 3, 0, target(3)),
        "something else",
    ):
        assert one != other


# --- who can write --------------------------------------------------------------------------------

_PUNCH_HOLE = 1 | 2  # linux/falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_int = ctypes.c_int
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, _int, _int, _int, ctypes.c_long)


def map_file(fd: int, protection: int) -> int:
    """A mapping of a book's file: where it is, or the negated errno."""
    where = _libc.mmap(None, mmap.PAGESIZE, protection, mmap.MAP_SHARED, fd, 0)
    return -ctypes.get_errno() if where == ctypes.c_void_p(-1).value else where


written = pytest.mark.parametrize("is_written", [True, False])


def unsealed() -> int:
    """The same kind of file, before it is sealed."""
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, 2 * VALUES_SIZE)
    return fd


def attempts(fd: int) -> dict[str, int]:
    """Ways to change a book through its file: 0, or the errno that forbids it."""
    size = os.fstat(fd).st_size

    def outcome(*steps: object) -> int:
        function, *arguments = steps
        assert callable(function)
        try:
            function(*arguments)
        except OSError as error:
            return error.errno or -1
        return 0

    zero, page = ctypes.c_long(0), ctypes.c_long(mmap.PAGESIZE)
    fresh = map_file(fd, mmap.PROT_READ | mmap.PROT_WRITE)
    view = map_file(fd, mmap.PROT_READ)
    protect = _libc.mprotect(ctypes.c_void_p(view), mmap.PAGESIZE, 3)
    return {
        "a new view to write": min(fresh, 0),
        "a view to read made one to write": -ctypes.get_errno() if protect else 0,
        "write(2)": -outcome(os.pwrite, fd, b"\0", 0),
        "shrink": -outcome(os.ftruncate, fd, mmap.PAGESIZE),
        "grow": -outcome(os.ftruncate, fd, size + mmap.PAGESIZE),
        "room for more": -outcome(os.posix_fallocate, fd, size, mmap.PAGESIZE),
        "a hole": -ctypes.get_errno() if _libc.fallocate(fd, _PUNCH_HOLE, zero, page) else 0,
    }


@written
def test_nobody_can_change_it_by_its_file(is_written: bool) -> None:
    """Not even whoever has written in it, but through the view that it has already."""
    book = Book(USUAL, [target(1)], 0, is_written=is_written)
    refused = {errno.EPERM, errno.EACCES}
    assert {name: -code in refused for name, code in attempts(book.fd).items()} == dict.fromkeys(
        attempts(book.fd), True
    )
    book.close()


def test_without_the_seals_all_of_that_would_be_possible() -> None:
    fd = unsealed()
    assert set(attempts(fd).values()) == {0}
    os.close(fd)


@written
def test_no_seal_can_be_added_or_taken_off(is_written: bool) -> None:
    book = Book(USUAL, [], 0, is_written=is_written)
    with pytest.raises(PermissionError):
        book._seal(written=False)
    book.close()


def test_only_a_book_that_is_written_has_a_view_for_that() -> None:
    book = Book(USUAL, [], 0, is_written=False)
    assert book.view is None
    book.close()


def test_a_kernel_that_can_not_seal_is_a_failure_with_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = open_descriptors()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(Book, "_seal", refuse)
    with pytest.raises(HardspliceError, match="Invalid argument") as caught:
        Book(USUAL, [], 0, is_written=True)
    assert "Linux 5.1" in str(caught.value.hint)
    for fd in open_descriptors() - before:
        os.close(fd)


def test_in_a_process_that_has_not_opened_it_a_family_that_does_not_exist_connects_to_nothing() -> (
    None
):
    """What the kernel says to an unused slot."""
    memory = ctypes.create_string_buffer(NO_ADDRESS, SLOT)
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname(), timeout=5)
        ours = server.accept()[0]
        where = ctypes.c_void_p(ctypes.addressof(memory))
        with client, ours, socket.socket() as fresh:
            for length in (16, 28, 2):
                for one in (ours, fresh):
                    assert socketcalls.connect(one.fileno(), where, length) < 0
            assert ours.getpeername() == client.getsockname(), "it is connected as before"
            unspecified = ctypes.create_string_buffer(16)
            where = ctypes.c_void_p(ctypes.addressof(unspecified))
            assert socketcalls.connect(ours.fileno(), where, 16) == 0, "zeros disconnect"
            with pytest.raises(OSError, match="not connected"):
                ours.getpeername()


@pytest.mark.parametrize(
    ("address", "vanishes"),
    [
        ("127.0.0.1", False), ("127.255.0.9", False), ("::1", False), ("::ffff:127.0.0.1", False),
        ("10.0.0.5", True), ("128.0.0.1", True), ("fe80::1", True), ("::7f00:1", True),
        ("::ffff:10.0.0.5", True), ("::2", True), ("::", True),
    ],
)  # fmt: skip
def test_what_is_not_the_loopback_may_go_without_a_word(address: str, vanishes: bool) -> None:
    sockaddr = socketcalls.sockaddr(ip_address(address), 80)
    assert Pointer(USUAL, 0, int(":" in address), sockaddr).may_vanish == vanishes
