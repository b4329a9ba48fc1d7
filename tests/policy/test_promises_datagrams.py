# SPDX-License-Identifier: GPL-2.0-or-later
"""What SECURITY.md promises of a datagram relay's filters, on every architecture; and that where
TCP alone is forwarded, filters have nothing of it. test_promises.py has what all relays have in
common.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.policy import oracle
from tests.policy.bpf import ALLOW, KILL_PROCESS
from tests.policy.test_filters import allowed_calls, filter_of
from tests.policy.test_promises import (
    BOOK,
    FLOWS,
    LINGER,
    ONE,
    SEGMENT,
    UNSENT,
    ZERO,
    answer,
    call_of,
    everywhere,
    flow_descriptors,
    has,
    high_bits,
    low_descriptors,
)
from tests.policy.whose import CHANGING, DATAGRAM_MONITORS, DATAGRAM_RELAYS, MONITORS, RELAYS

CHANNEL, LISTENERS = 3, 10
DONTWAIT, NOSIGNAL = 0x40, 0x4000  # linux/socket.h
ERRORS = DONTWAIT | 0x2000  # MSG_ERRQUEUE
SENT = DONTWAIT | NOSIGNAL
JOINED = (17, 104)  # IPPROTO_UDP, UDP_GRO

datagram_relays = pytest.mark.parametrize("role", DATAGRAM_RELAYS)


def places(arch: str) -> Iterator[int]:
    """Places of listeners, as registers may have them."""
    yield from range(LISTENERS, FLOWS)
    for bits in high_bits(arch):
        yield from (bits | LISTENERS, bits | (FLOWS - 1))


def below_listeners(arch: str) -> Iterator[int]:
    yield from range(LISTENERS)
    for bits in high_bits(arch):
        yield from (bits | number for number in (0, CHANNEL, LISTENERS - 1))


def flags_but(right: int) -> Iterator[int]:
    """All that differ from the right ones by a bit or more: MSG_OOB, MSG_PEEK, MSG_MORE, MSG_PROBE,
    MSG_ERRQUEUE, MSG_ZEROCOPY, MSG_FASTOPEN, MSG_CMSG_CLOEXEC, and those that nobody has yet.
    """
    yield from (right ^ 1 << bit for bit in range(32))
    yield from (0, 0xFFFFFFFF & ~right, 0xFFFFFFFF)


def receiving(arch: str) -> str:
    return "recvmmsg_time64" if oracle.BITS[arch] == 32 else "recvmmsg"


def receiving_single(arch: str) -> str:
    return "recv" if arch in ("armhf", "ppc64le") else "recvfrom"


def sending(arch: str) -> str:
    return "send" if arch in ("armhf", "ppc64le") else "sendto"


@datagram_relays
@everywhere
def test_it_sends_to_an_address_from_listeners_and_from_nothing_else(role: str, arch: str) -> None:
    def said(fd: int, flags: int = SENT) -> int:
        return answer(role, arch, "sendmmsg", fd, 1, 8, flags)

    assert {said(fd) for fd in places(arch)} == {ALLOW}
    others = (*below_listeners(arch), *flow_descriptors(arch))
    assert {said(fd) for fd in others} == {KILL_PROCESS}
    assert {said(LISTENERS, flags) for flags in flags_but(SENT)} == {KILL_PROCESS}


@datagram_relays
@everywhere
def test_from_a_flow_s_socket_it_names_no_address(role: str, arch: str) -> None:
    call = sending(arch)

    def said(fd: int, flags: int = SENT, address: int = 0) -> int:
        return answer(role, arch, call, fd, 1, 8, flags, address, 16)

    assert {said(fd) for fd in flow_descriptors(arch)} == {ALLOW}
    assert {said(fd) for fd in low_descriptors(arch)} == {KILL_PROCESS}
    assert {said(FLOWS, flags) for flags in flags_but(SENT)} == {KILL_PROCESS}
    if call == "sendto":
        addresses = {1, 8, BOOK, ONE, 0x7FFF0000, *high_bits(arch)}
        assert {said(FLOWS, SENT, address) for address in addresses} == {KILL_PROCESS}
    for other in {"send", "sendto"} - {call}:
        if has(arch, other):
            assert answer(role, arch, other, FLOWS, 1, 8, SENT, 0, 0) == KILL_PROCESS
    assert {answer(role, arch, "writev", fd, 1, 1) for fd in flow_descriptors(arch)} == {ALLOW}
    assert {answer(role, arch, "writev", fd, 1, 1) for fd in low_descriptors(arch)} == {
        KILL_PROCESS
    }


@datagram_relays
@everywhere
def test_it_receives_what_has_arrived_and_waits_for_nothing(role: str, arch: str) -> None:
    call = receiving(arch)

    def said(fd: int, flags: int = DONTWAIT, timeout: int = 0) -> int:
        return answer(role, arch, call, fd, 1, 8, flags, timeout)

    assert {said(fd) for fd in (*places(arch), *flow_descriptors(arch))} == {ALLOW}
    assert {said(fd) for fd in below_listeners(arch)} == {KILL_PROCESS}
    assert {said(LISTENERS, flags) for flags in flags_but(DONTWAIT) if flags != ERRORS} == {
        KILL_PROCESS
    }
    assert {said(fd, ERRORS) for fd in places(arch)} == {ALLOW}
    others = (*below_listeners(arch), *flow_descriptors(arch))
    assert {said(fd, ERRORS) for fd in others} == {KILL_PROCESS}
    assert {said(LISTENERS, flags) for flags in flags_but(ERRORS) if flags != DONTWAIT} == {
        KILL_PROCESS
    }
    timeouts = {1, 8, BOOK, ONE, 0x7FFF0000, *high_bits(arch)}
    for flags in (DONTWAIT, ERRORS):
        assert {said(LISTENERS, flags, timeout) for timeout in timeouts} == {KILL_PROCESS}
    if call != "recvmmsg":
        assert answer(role, arch, "recvmmsg", LISTENERS, 1, 8, DONTWAIT, 0) == KILL_PROCESS


@datagram_relays
@everywhere
def test_single_answers_are_received_from_flows_only(role: str, arch: str) -> None:
    call = receiving_single(arch)

    def said(fd: int, flags: int = DONTWAIT) -> int:
        return answer(role, arch, call, fd, 1, 1 << 16, flags, 0, 0)

    assert {said(fd) for fd in flow_descriptors(arch)} == {ALLOW}
    assert {said(fd) for fd in low_descriptors(arch)} == {KILL_PROCESS}
    assert {said(FLOWS, flags) for flags in flags_but(DONTWAIT)} == {KILL_PROCESS}
    for other in {"recv", "recvfrom"} - {call}:
        if has(arch, other):
            assert answer(role, arch, other, FLOWS, 1, 8, DONTWAIT, 0, 0) == KILL_PROCESS


@datagram_relays
@everywhere
def test_single_messages_are_the_channel_s(role: str, arch: str) -> None:
    for call, flags in (("recvmsg", 0x40000040), ("sendmsg", NOSIGNAL), ("sendmsg", SENT)):
        assert answer(role, arch, call, CHANNEL, 1, flags) == ALLOW
        others = {*low_descriptors(arch), *flow_descriptors(arch)} - {CHANNEL}
        others -= {bits | CHANNEL for bits in high_bits(arch)}
        assert {answer(role, arch, call, fd, 1, flags) for fd in others} == {KILL_PROCESS}


@datagram_relays
@everywhere
def test_how_a_flow_s_datagrams_are_joined_is_the_only_option(role: str, arch: str) -> None:
    values = (LINGER, ONE, ZERO, UNSENT[0], BOOK, 0x7FFF0000)
    passed = {
        (level, name, value)
        for level in (0, 1, 6, 17, 41, 255, 262, 2**32 - 1)
        for name in range(120)
        for value in values
        if answer(role, arch, "setsockopt", 20, level, name, value, 4) == ALLOW
    }
    assert passed == {(*SEGMENT, value) for value in values} | {(*JOINED, ONE)}
    for option in ((*SEGMENT, 8), (*JOINED, ONE)):
        asked = {answer(role, arch, "setsockopt", fd, *option, 4) for fd in low_descriptors(arch)}
        assert asked == {KILL_PROCESS}
    assert {
        (level, name)
        for level in (0, 1, 6, 17, 41)
        for name in range(120)
        if answer(role, arch, "getsockopt", 20, level, name, 8, 8) == ALLOW
    } == {(1, 4)} | ({(1, 39)} if role in CHANGING else set())


@datagram_relays
@everywhere
def test_it_ends_and_connects_flows_only(role: str, arch: str) -> None:
    for call, arguments in (("connect", (BOOK, 16)), ("close", ())):
        below = {answer(role, arch, call, fd, *arguments) for fd in low_descriptors(arch)}
        behind = {answer(role, arch, call, fd, *arguments) for fd in flow_descriptors(arch)}
        assert (below, behind) == ({KILL_PROCESS}, {ALLOW})


@datagram_relays
def test_it_makes_no_other_call(role: str) -> None:
    """On x86_64; test_architectures.py has the others' differences from that."""
    datagrams = {"recvmmsg", "recvfrom", "sendmmsg", "sendto", "writev", "setsockopt"}
    serving = {"epoll_wait", "epoll_ctl", "connect", "getsockopt", "close", "recvmsg", "sendmsg"}
    ports = {"pidfd_getfd"} if role in CHANGING else set()
    runtime = allowed_calls("relay", "x86_64") & {
        *("brk", "mmap", "munmap", "mremap", "mprotect", "madvise", "getrandom", "exit_group"),
        *("clock_gettime",),
    }
    assert len(runtime) == 9
    assert allowed_calls(role, "x86_64") == datagrams | serving | ports | runtime


# --- hot calls cost little ------------------------------------------------------------------------

# Instructions until a call is decided that is made for every batch of datagrams: in the relay's own
# filter and in its monitor's, both of which are run.
BOUNDS = {"receive": 34, "single": 54, "answer": 36, "send": 54, "write": 30}


@pytest.mark.parametrize("role", [*DATAGRAM_RELAYS, *DATAGRAM_MONITORS])
@everywhere
def test_calls_of_every_batch_are_decided_early(role: str, arch: str) -> None:
    calls = {
        "receive": call_of(arch, receiving(arch), LISTENERS, 1, 8, DONTWAIT, 0),
        "single": call_of(arch, receiving_single(arch), 20, 1, 1 << 16, DONTWAIT, 0, 0),
        "answer": call_of(arch, "sendmmsg", LISTENERS, 1, 8, SENT),
        "send": call_of(arch, sending(arch), 20, 1, 8, SENT, 0, 0),
        "write": call_of(arch, "writev", 20, 1, 8),
    }
    paths = {name: filter_of(role, arch).path(call) for name, call in calls.items()}
    assert {answer for answer, _ in paths.values()} == {ALLOW}
    found = {name: len(looks) for name, (_, looks) in paths.items()}
    assert {name: n for name, n in found.items() if n > BOUNDS[name]} == {}


# --- where TCP alone is forwarded -----------------------------------------------------------------

PLAIN = [role for role in (*RELAYS, *MONITORS) if role not in DATAGRAM_MONITORS]


@pytest.mark.parametrize("role", PLAIN)
@everywhere
def test_without_udp_filters_have_nothing_of_it(role: str, arch: str) -> None:
    calls = {"recvmmsg", "recvmmsg_time64", "sendmmsg", "writev", "readv"}
    assert allowed_calls(role, arch) & calls == set()
    kinds = {2, 0o4002, 0o2000002, 0o2004002}  # SOCK_DGRAM with and without its flags
    for family in (1, 2, 10, 16, 17):
        for kind in kinds:
            assert answer(role, arch, "socket", family, kind, 0) == KILL_PROCESS
    for level, name in (SEGMENT, JOINED, (1, 40), (0, 8), (41, 49)):
        assert answer(role, arch, "setsockopt", 20, level, name, ONE, 4) == KILL_PROCESS


@pytest.mark.parametrize("role", PLAIN)
def test_a_policy_without_udp_comes_from_no_file_about_it(role: str) -> None:
    """So a file about UDP can change no program of a run that has none."""
    names = (role, *oracle._text(role).get("include", []))
    assert [name for name in names if "udp" in name] == []


@pytest.mark.parametrize("role", DATAGRAM_MONITORS)
def test_with_udp_a_policy_is_the_one_without_it_and_those_of_udp(role: str) -> None:
    plain = role.removesuffix("-udp")
    before = {plain, *oracle._text(plain).get("include", [])}
    now = {role, *oracle._text(role)["include"]}
    assert before < now
    assert {name for name in now - before if "udp" not in name} == set()


@pytest.mark.parametrize("role", DATAGRAM_MONITORS)
@everywhere
def test_the_sockets_that_a_monitor_makes_are_of_tcp_and_udp(role: str, arch: str) -> None:
    passed = {
        (family, kind, protocol)
        for family in range(46)
        for kind in (*range(1, 6), *(0o2004000 | one for one in range(1, 6)))
        for protocol in (0, 1, 6, 17, 132, 136, 256, 262)
        if answer(role, arch, "socket", family, kind, protocol) == ALLOW
    }
    assert passed == {(family, 0o2004000 | kind, 0) for family in (2, 10) for kind in (1, 2)}
