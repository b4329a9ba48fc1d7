# SPDX-License-Identifier: GPL-2.0-or-later
"""What SECURITY.md promises of filters, asked of every role's on every architecture.

test_filters.py shows that a filter says what its policy says; here is what a policy must say. All
numbers are written down once more, and nothing comes from the product but the filters.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from hardsplice.sandbox.policy.files import load_policy
from hardsplice.sandbox.seccomp import compile_policy
from tests.policy import oracle
from tests.policy.bpf import ALLOW, KILL_PROCESS, NOTIFY, Call, Filter
from tests.policy.test_filters import filter_of
from tests.policy.whose import (
    CHANGING,
    DATAGRAM_MONITORS,
    DATAGRAM_RELAYS,
    HOSTS,
    MONITORS,
    RELAYS,
)

# PID 1 has nothing to do with connections; test_promises_datagrams.py has what is said of datagram
# relays alone.
CONNECTING = (*RELAYS, *MONITORS)

FLOWS = 16  # as the policies are written; set-up moves it
BOOK, SIZE, SLOT = 0x200000, 0x200000, 32
BOOK_END = BOOK + SIZE
VALUES = 0x1C0000
LINGER, ONE, ZERO, MOST = VALUES, VALUES + 0x20, VALUES + 0x40, VALUES + 0x60
UNSENT = [VALUES + 0x80 + 32 * number for number in range(4)]
BIND, DEVICE = (VALUES + 0xFFFE, VALUES + 0x2FFFE), VALUES + 0x10020

everywhere = pytest.mark.parametrize("arch", oracle.ARCHES)
connecting = pytest.mark.parametrize("role", CONNECTING)
forwarding = pytest.mark.parametrize("role", [*CONNECTING, *DATAGRAM_RELAYS])
everyone = pytest.mark.parametrize("role", oracle.ROLES)


def answer(role: str, arch: str, call: str, *arguments: int) -> int:
    """What a role's filter says; arguments as a register of that architecture holds them."""
    everything = 2 ** oracle.BITS[arch] - 1
    values = tuple(value & everything for value in arguments)
    number = oracle.numbers(arch)[call]
    return filter_of(role, arch).answer(
        Call(number, oracle.AUDIT[arch], (*values, *(0,) * (6 - len(values))))
    )


def has(arch: str, call: str) -> bool:
    return call in oracle.numbers(arch)


def is_wide(arch: str) -> bool:
    return oracle.BITS[arch] == 64


def high_bits(arch: str) -> Iterator[int]:
    """Bits that only a register of 64 bits has."""
    if is_wide(arch):
        yield from (1 << 32, 1 << 47, 1 << 55, 1 << 56, 1 << 63, (2**64 - 1) & ~(2**32 - 1))


def low_descriptors(arch: str) -> Iterator[int]:
    """All that a kernel takes for a number below the first flow's."""
    yield from range(FLOWS)
    for bits in high_bits(arch):
        yield from (bits | 3, bits | 10, bits | (FLOWS - 1))


def flow_descriptors(arch: str) -> Iterator[int]:
    yield from (FLOWS, FLOWS + 1, 1023, 1 << 20, 2**31 - 1)
    for bits in high_bits(arch):
        yield bits | FLOWS


# --- connect --------------------------------------------------------------------------------------


def slots() -> Iterator[int]:
    yield from range(BOOK, BOOK_END, 4096)
    yield from (BOOK + SLOT, BOOK_END - SLOT)


def other_addresses(arch: str) -> Iterator[int]:
    yield from (0, 1, 8, SLOT, BOOK - SLOT, BOOK - 1, BOOK_END, BOOK_END + SLOT)
    yield from (VALUES, *BIND, BOOK << 1, BOOK >> 1, 2**31 + BOOK, 2**32 - 1, 0x7FFF0000)
    for slot in slots():
        yield from (slot + 1, slot + 4, slot + 8, slot + 16, slot + SLOT - 1)
    for bits in high_bits(arch):
        yield from (bits | BOOK, bits | (BOOK + SLOT), bits | (BOOK_END - SLOT), bits)


@forwarding
@everywhere
def test_only_targets_in_the_book_are_connected_to(role: str, arch: str) -> None:
    for length in (16, 28, 2, 0, 2**32 - 1):
        assert {answer(role, arch, "connect", 20, slot, length) for slot in slots()} == {ALLOW}
    passed = {
        address
        for address in other_addresses(arch)
        if answer(role, arch, "connect", 20, address, 16) != KILL_PROCESS
    }
    assert passed == set()


@connecting
@everywhere
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("connect", (BOOK, 16)),
        ("shutdown", (1,)),
        ("close", ()),
        ("setsockopt", (1, 13, LINGER, 8)),
    ],
)
def test_what_ends_or_begins_a_connection_is_done_to_none_that_is_a_listener_or_a_channel(
    role: str, arch: str, call: str, arguments: tuple[int, ...]
) -> None:
    below = {answer(role, arch, call, fd, *arguments) for fd in low_descriptors(arch)}
    behind = {answer(role, arch, call, fd, *arguments) for fd in flow_descriptors(arch)}
    assert (below, behind) == ({KILL_PROCESS}, {ALLOW})


@cache
def settled(arch: str, flows: int) -> Filter:
    """A relay's filter for a book of the larger kind."""
    address, size = 0x40000000, 0x400000
    words = {
        "FLOWS": flows,
        "BOOK": address,
        "BOOK_SLOTS": 2**64 - 1 - (size - SLOT),
        "BOOK_END": address + size,
    }
    program = compile_policy(load_policy("relay").settled(words), arch)
    return Filter(program, oracle.BYTE_ORDER[arch])


@everywhere
def test_all_of_this_moves_with_the_book_and_with_the_last_listener(arch: str) -> None:
    asked, address, size, flows = settled(arch, 70_000), 0x40000000, 0x400000, 70_000

    def says(call: str, *arguments: int) -> int:
        number = oracle.numbers(arch)[call]
        padded = (*arguments, *(0,) * (6 - len(arguments)))
        return asked.answer(Call(number, oracle.AUDIT[arch], padded))

    assert says("connect", flows, address + size - SLOT, 16) == ALLOW
    for fd, where in (
        (flows - 1, address),
        (flows, BOOK),
        (flows, address - SLOT),
        (flows, address + size),
        (flows, address + 8),
    ):
        assert says("connect", fd, where, 16) == KILL_PROCESS
    assert [says("close", flows - 1), says("close", flows)] == [KILL_PROCESS, ALLOW]
    assert [says("munmap", address + size - 4096), says("munmap", address + size)] == [
        KILL_PROCESS,
        ALLOW,
    ]


# --- values of options, and the place of a listener -----------------------------------------------

# Level, option, and where its value may lie: linux/socket.h, in.h, in6.h, tcp.h.
RELAY_OPTIONS = {(1, 13): [LINGER, ZERO], (1, 10): [ONE], (1, 9): [ONE], (6, 25): UNSENT}
MONITOR_OPTIONS = RELAY_OPTIONS | {(6, 1): [ONE]}
PORTS_OPTIONS = MONITOR_OPTIONS | {
    (1, 2): [ONE],
    (1, 25): [DEVICE],
    (41, 26): [ONE, ZERO],
}
HOST_OPTIONS = PORTS_OPTIONS | {(0, 21): [MOST], (41, 73): [MOST], (6, 7): [ONE]}
# Of datagram sockets: linux/udp.h; and of their listeners.
DATAGRAM_OPTIONS = {(17, 104): [ONE], (1, 40): [ONE]}
DATAGRAM_PORTS_OPTIONS = DATAGRAM_OPTIONS | {(0, 8): [ONE], (41, 49): [ONE]}
SEGMENT = (17, 103)  # UDP_SEGMENT of a flow, whose value is a datagram relay's to choose


def options_of(role: str) -> dict[tuple[int, int], list[int]]:
    """The options with a value that is written down."""
    if role in RELAYS:
        return RELAY_OPTIONS
    if role not in CHANGING:
        return MONITOR_OPTIONS | (DATAGRAM_OPTIONS if role in DATAGRAM_MONITORS else {})
    options = HOST_OPTIONS if role in HOSTS else PORTS_OPTIONS
    return options | (DATAGRAM_PORTS_OPTIONS if role in DATAGRAM_MONITORS else {})


VALUE_ADDRESSES = (LINGER, ONE, ZERO, MOST, *UNSENT, *BIND, DEVICE)


@connecting
@everywhere
def test_the_value_of_an_option_is_one_of_those_that_are_written_down(role: str, arch: str) -> None:
    options = options_of(role)
    for option, where in (HOST_OPTIONS | DATAGRAM_PORTS_OPTIONS).items():
        allowed = options.get(option, ())
        level, name = option
        tried = {*VALUE_ADDRESSES, *UNSENT, BOOK, 0, 0x7FFF0000, UNSENT[-1] + 32, BIND[0] + 1}
        tried |= {one + shift for one in where for shift in (1, 4, 8, 16, -32)}
        tried |= {one | bits for one in where for bits in high_bits(arch)}
        passed = {
            one for one in tried if answer(role, arch, "setsockopt", 20, level, name, one) == ALLOW
        }
        assert passed == set(allowed)


@connecting
@everywhere
def test_there_is_no_other_option(role: str, arch: str) -> None:
    passed = {
        (level, name)
        for level in (0, 1, 6, 17, 41, 255, 262, 282, 2**32 - 1)
        for name in range(120)
        for value in (LINGER, ONE, ZERO, MOST, UNSENT[0], DEVICE)
        if answer(role, arch, "setsockopt", 20, level, name, value) == ALLOW
    }
    assert passed - {SEGMENT} == set(options_of(role))
    assert (SEGMENT in passed) == (role in DATAGRAM_MONITORS)


@everyone
@everywhere
def test_a_listener_is_made_at_the_place_that_was_written_down(role: str, arch: str) -> None:
    """By a monitor where ports may change, and by nobody else."""
    makes = role in MONITORS and role in CHANGING
    places = {*VALUE_ADDRESSES, BOOK, 0, 0x7FFF0000}
    places |= {one + shift for one in BIND for shift in (2, 8, -2, -32)}
    places |= {bits | one for one in BIND for bits in high_bits(arch)}
    passed = {one for one in places if answer(role, arch, "bind", 20, one, 16) == ALLOW}
    assert passed == ({*BIND} if makes else set())
    below = {answer(role, arch, "bind", fd, BIND[0], 16) for fd in low_descriptors(arch)}
    below |= {answer(role, arch, "listen", fd, 65535) for fd in low_descriptors(arch)}
    assert below == {KILL_PROCESS}
    assert (answer(role, arch, "listen", 20, 65535) == ALLOW) == makes


@everyone
@pytest.mark.parametrize("arch", ["i686", "ppc64le", "s390x"])
def test_no_socket_call_has_a_second_door(role: str, arch: str) -> None:
    """socketcall(2), whose arguments lie behind a pointer."""
    answers = {
        answer(role, arch, "socketcall", sub, *rest)
        for sub in range(64)
        for rest in ((0,) * 5, (BOOK,) * 5, (20,) * 5)
    }
    assert answers == {KILL_PROCESS}


# --- memory ---------------------------------------------------------------------------------------

ANONYMOUS = 0x22  # MAP_PRIVATE | MAP_ANONYMOUS
BAD_FLAGS = {
    "MAP_FIXED": ANONYMOUS | 0x10,
    "MAP_FIXED_NOREPLACE": ANONYMOUS | 0x100000,
    "MAP_SHARED": 0x21,
    "MAP_SHARED_VALIDATE": 0x23,
    "MAP_GROWSDOWN": ANONYMOUS | 0x100,
    "MAP_PRIVATE of a file": 0x02,
    "MAP_HUGETLB": ANONYMOUS | 0x40000,
    "nothing": 0,
}


@everyone
@everywhere
@pytest.mark.parametrize("flags", BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_memory_is_mapped_where_there_is_none_yet(role: str, arch: str, flags: int) -> None:
    """But for s390x, where mmap has one pointer to all of its arguments."""
    for call in ("mmap", "mmap2"):
        if not has(arch, call) or (arch, call) == ("s390x", "mmap"):
            continue
        for address in (0, BOOK, VALUES, BOOK_END):
            wrong = {
                answer(role, arch, call, address, 4096, 3, flags | bits, 2**64 - 1, 0)
                for bits in (0, *high_bits(arch))
            }
            assert wrong == {KILL_PROCESS}
    usual = {
        call
        for call in ("mmap", "mmap2")
        if has(arch, call)
        and answer(role, arch, call, 0, 4096, 3, ANONYMOUS, 2**64 - 1, 0) == ALLOW
    }
    assert usual == {"mmap2" if arch in ("i686", "armhf") else "mmap"}


def low_memory(arch: str) -> Iterator[int]:
    """What a kernel takes for memory below the end of the book."""
    for address in (0, 4096, VALUES, VALUES + 4096, BOOK, BOOK_END - 4096, BOOK_END - 1):
        yield address
        if is_wide(arch):
            # arm64's takes the top byte off, whatever it is (untagged_addr)
            yield from ((tag << 56) | address for tag in (1, 0x0F, 0x5A, 0x7F, 0x80, 0xFF))


@everyone
@everywhere
def test_the_book_stays_where_it_is(role: str, arch: str) -> None:
    for address in low_memory(arch):
        for size in (4096, SIZE, 2**32):
            asked = {
                answer(role, arch, "munmap", address, size),
                answer(role, arch, "mprotect", address, size, 1),
                answer(role, arch, "mprotect", address, size, 3),
                answer(role, arch, "mremap", address, size, size, 1),
                answer(role, arch, "mremap", address, 0, size, 1),
            }
            assert asked == {KILL_PROCESS}
    for address in (BOOK_END, 0x7F000000, 2**47 - 4096):
        assert answer(role, arch, "munmap", address, 4096) == ALLOW
        assert answer(role, arch, "mprotect", address, 4096, 3) == ALLOW
        assert answer(role, arch, "mremap", address, 4096, 8192, 1) == ALLOW


@everyone
@everywhere
def test_memory_is_moved_to_no_place_of_one_s_choice(role: str, arch: str) -> None:
    for flags in (3, 2, 5, 4, 7, 0, *(bits | 1 for bits in high_bits(arch))):
        moved = answer(role, arch, "mremap", 0x7F000000, 4096, 4096, flags, BOOK)
        assert moved == KILL_PROCESS


@everyone
@everywhere
def test_no_process_is_made_without_the_book(role: str, arch: str) -> None:
    """madvise(2): MADV_DONTFORK, MADV_WIPEONFORK, and what else says who gets what memory."""
    for address in low_memory(arch):
        for advice in (10, 11, 18, 19):
            assert answer(role, arch, "madvise", address, SIZE, advice) == KILL_PROCESS
    allowed = {
        advice
        for advice in range(128)
        if answer(role, arch, "madvise", 0x7F000000, 4096, advice) == ALLOW
    }
    # MADV_DONTNEED and MADV_HUGEPAGE; for monitors MADV_DONTFORK and MADV_DOFORK
    assert allowed == ({4, 14, 10, 11} if role in MONITORS else {4, 14})


@everyone
@everywhere
def test_nothing_else_changes_what_is_mapped(role: str, arch: str) -> None:
    others = (
        *("remap_file_pages", "pkey_mprotect", "shmat", "shmdt", "mseal", "process_madvise"),
        *("userfaultfd", "mbind", "move_pages", "io_uring_setup", "memfd_create", "clone3"),
    )
    for call in others:
        if has(arch, call):
            for arguments in ((0,) * 6, (BOOK,) * 6, (20,) * 6):
                assert answer(role, arch, call, *arguments) == KILL_PROCESS


# --- listeners that come at run time --------------------------------------------------------------


@everyone
@everywhere
def test_a_relay_asks_for_places_of_listeners_and_nothing_else(role: str, arch: str) -> None:
    """Those are asked of the monitor: no kernel serves the call, whatever its arguments. Should it
    go on after all, the descriptor that it is given is -1: there is none at which one could lie.
    """
    none = 2 ** oracle.BITS[arch] - 1
    asks = role in CHANGING
    places = (*range(FLOWS + 4), 1 << 20, 2**31 - 1, *(bits | 10 for bits in high_bits(arch)))
    passed = {
        place: found
        for place in places
        if (found := answer(role, arch, "pidfd_getfd", none, place, 0)) != KILL_PROCESS
    }
    expected = (*range(10, FLOWS), *(bits | 10 for bits in high_bits(arch))) if asks else ()
    assert passed == dict.fromkeys(expected, NOTIFY)
    for pidfd, flags in ((0, 0), (1, 0), (20, 0), (2**31 - 1, 0), (none - 1, 0), (none, 1)):
        assert answer(role, arch, "pidfd_getfd", pidfd, 12, flags) == KILL_PROCESS


# --- hot calls cost nothing, or little ------------------------------------------------------------

# A relay makes these for every turn, connection or piece of data.
FREE = ("splice", "epoll_wait", "epoll_pwait", "accept4", "epoll_ctl", "getpeername")
# Instructions until these are decided, in the common case; the first three are made for every
# connection, the others for some.
BOUNDS = {"close": 8, "connect": 14, "shutdown": 21, "recvmsg": 12, "sendmsg": 24}
COMMON = {
    "close": (20,),
    "connect": (20, BOOK, 16),
    "shutdown": (20, 1),
    "recvmsg": (3, 0, 0x40000040),
    "sendmsg": (3, 0, 0x4040),
}


def call_of(arch: str, call: str, *arguments: int) -> Call:
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    return Call(oracle.numbers(arch)[call], oracle.AUDIT[arch], padded)


@connecting
@everywhere
def test_the_hottest_calls_are_allowed_without_running_the_filter(role: str, arch: str) -> None:
    """The kernel sees that nothing but number and architecture is looked at. A relay has its
    monitor's filter as well: both must be like that.
    """
    used = {call for call in FREE if call in oracle.allowed(role, arch)}
    assert len(used) == len(FREE) - 1, "one of the two ways to wait"
    asked = filter_of(role, arch)
    assert {call for call in used if not asked.is_constant(call_of(arch, call))} == set()


@connecting
@everywhere
@pytest.mark.parametrize("call", BOUNDS)
def test_calls_of_every_connection_are_decided_early(role: str, arch: str, call: str) -> None:
    asked = filter_of(role, arch)
    one = call_of(arch, call, *COMMON[call])
    answer, looks = asked.path(one)
    assert answer == ALLOW
    assert len(looks) <= BOUNDS[call] or asked.is_constant(one)


def test_a_call_whose_arguments_are_looked_at_is_not_constant() -> None:
    asked = filter_of("relay", "x86_64")
    assert not asked.is_constant(call_of("x86_64", "close", 20))
    assert not asked.is_constant(call_of("x86_64", "execve")), "what is killed isn't, either"


@everyone
@everywhere
def test_signals_go_to_single_processes(role: str, arch: str) -> None:
    """kill(2) to a group, to which processes outside the PID namespace belong, or to all: never."""
    tried = (0, 1, 2, 3, 4711, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 2, 2**64 - 1)
    pids = {pid & (2 ** oracle.BITS[arch] - 1) for pid in tried}
    passed = {pid for pid in pids if answer(role, arch, "kill", pid, 9) == ALLOW}
    assert passed == ({2, 3, 4711, 2**31 - 1} if role == "init" else set())
