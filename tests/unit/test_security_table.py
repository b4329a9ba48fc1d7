# SPDX-License-Identifier: GPL-2.0-or-later
"""SECURITY.md's table of what a process that was taken over can do, held against the policies.

The policies are read by the tests' own oracle (tests/policy/oracle.py), without any of the
product's code.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hardsplice.model.roles import GUARD, HOST, INBOUND_RELAY, INIT, NAMESPACE
from tests.policy import oracle
from tests.policy.oracle import Term
from tests.policy.whose import CHANGING, DATAGRAM_MONITORS, DATAGRAM_RELAYS

PAGE = oracle.ROOT / "SECURITY.md"
ARCH = "x86_64"
HEADING = "## What a process that was taken over can do"

# The policies under which each letter's process may run (app/filters.py chooses). A small letter is
# that process where ports may change at run time, which is then under one of the latter ones, and
# one with a plus that process where UDP may be forwarded.
PROCESSES = {"R": INBOUND_RELAY, "T": NAMESPACE, "H": HOST, "I": INIT, "G": GUARD}
POLICIES = {letter: frozenset(role.policies) for letter, role in PROCESSES.items()}
POLICIES["D"] = frozenset(DATAGRAM_RELAYS)
ALL = tuple(POLICIES)
POLICIES |= {letter.lower(): POLICIES[letter] & frozenset(CHANGING) for letter in "RDTH"}
POLICIES |= {f"{letter}+": POLICIES[letter] & frozenset(DATAGRAM_MONITORS) for letter in "TH"}
Makers = frozenset[tuple[str, str]]
"""Who makes a call: the process (a capital letter) and the policy that it is under."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    calls: tuple[str, ...]
    who: str
    descriptors: str
    values: str

    def makers(self, call: str) -> Makers:
        """Who makes a call of this row: all whom it names, but for what stands in parentheses."""
        everyone, _, exceptions = self.who.partition("(")
        letters = everyone.split()
        for exception in filter(None, exceptions.rstrip(")").split(";")):
            names, _, others = exception.partition(":")
            if call in names.replace(",", " ").split():
                also, *rest = others.split()
                letters = [*letters, *rest] if also == "also" else [also, *rest]
        return frozenset((one[0].upper(), policy) for one in letters for policy in POLICIES[one])


def table(text: str) -> list[Row]:
    lines = text.partition(HEADING)[2].partition("\n## ")[0].splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    return [
        Row(tuple(calls.split(", ")), who, descriptors, values)
        for calls, who, descriptors, values, _ in cells[2:]
    ]


ROWS = table(PAGE.read_text(encoding="utf-8"))


def made_by_policies() -> dict[str, Makers]:
    """The same as the policies have it."""
    made: dict[str, set[tuple[str, str]]] = {}
    for letter in ALL:
        for policy in POLICIES[letter]:
            for call in oracle.allowed(policy, ARCH):
                made.setdefault(call, set()).add((letter, policy))
    return {call: frozenset(makers) for call, makers in made.items()}


def differences(rows: list[Row]) -> list[str]:
    """What the table and the policies don't agree upon."""
    policies = made_by_policies()
    found = []
    for call, number in Counter(call for row in rows for call in row.calls).items():
        if number != 1:
            found.append(f"{call} is in {number} rows")
    said = {call: row.makers(call) for row in rows for call in row.calls}
    for call in sorted(policies.keys() | said.keys()):
        allowed, named = policies.get(call, frozenset()), said.get(call, frozenset())
        found += [f"{call} is not said of {one}" for one in sorted(allowed - named)]
        found += [f"{call} is said of {one}, wrongly" for one in sorted(named - allowed)]
    return found


def test_each_call_that_a_role_may_make_is_said_of_it_in_one_row() -> None:
    assert differences(ROWS) == []


@pytest.fixture
def other_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], None]]:
    """Change a policy, for the oracle alone: change(role, text at its end)."""
    copy = tmp_path / "policy"
    shutil.copytree(oracle.POLICY, copy)
    monkeypatch.setattr(oracle, "POLICY", copy)

    def forget() -> None:
        oracle._text.cache_clear()
        oracle.allowed.cache_clear()

    def change(role: str, rule: str) -> None:
        path = copy / f"{role}.toml"
        path.write_text(path.read_text(encoding="utf-8") + rule, encoding="utf-8")
        forget()

    yield change
    forget()


@pytest.mark.parametrize("role", oracle.ROLES)
def test_a_call_that_is_added_to_a_policy_is_missed(
    role: str, other_policies: Callable[[str, str], None]
) -> None:
    other_policies(role, '\n[[rule]]\ncall = "ptrace"\n')
    assert any(line.startswith("ptrace is not said of ") for line in differences(ROWS))


def test_so_is_one_that_another_role_may_make_too(
    other_policies: Callable[[str, str], None],
) -> None:
    other_policies("guard", '\n[[rule]]\ncall = "kill"\n')
    assert differences(ROWS) == ["kill is not said of ('G', 'guard')"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (Row(("ptrace",), "R", "", ""), "ptrace is said of ('R', 'relay'), wrongly"),
        (Row(("splice",), "R T H", "", ""), "splice is in 2 rows"),
    ],
)
def test_a_row_too_many_is_noticed(row: Row, fault: str) -> None:
    assert fault in differences([*ROWS, row])


def test_a_row_too_few_is_noticed() -> None:
    without = [row for row in ROWS if "getpgid" not in row.calls]
    assert differences(without) == ["getpgid is not said of ('I', 'init')"]


# --- which descriptors ----------------------------------------------------------------------------

FLOWS, LISTENERS, LIFELINE = 16, 10, 9  # relay.toml, monitor.toml
DESCRIPTOR = {"fd", "newfd", "first", "targetfd"}
BEHIND = "from the first flow's number on"
PLACES = "places of listeners"
SERVED = "from the first listener's number on"
FIXED = "fixed numbers"
# What has which number, in the words of the page.
NUMBERS = {
    ("T", 2): "the log", ("T", 4): "--ready-fd", ("T", 5): "the service manager",
    ("T", 7): "signals", ("T", 8): "the table of mounts", ("R", 3): "the channel",
    ("I", 3): "the channel", ("I", 7): "signals", ("I", 8): "COMMAND's error",
    ("G", 3): "its report", ("D", 3): "the channel",
}  # fmt: skip
NUMBERS |= {("H", number): words for (who, number), words in NUMBERS.items() if who == "T"}


def on_descriptor(call: str, way: tuple[Term, ...]) -> list[Term]:
    """What one way to make a call asks of a descriptor's number."""
    positions = oracle._POSITION.get(call, {})
    numbers = {at for parameter, at in positions.items() if parameter in DESCRIPTOR}
    return [term for term in way if term.position in numbers]


def described(letter: str, call: str, way: tuple[Term, ...]) -> str:
    """The words of the page for the descriptors on which a call can be made in one way."""
    terms = {(term.operator, term.value) for term in on_descriptor(call, way)}
    if terms == {(">=", FLOWS)}:
        return BEHIND
    if terms == {(">=", LISTENERS)}:
        return SERVED
    if terms == {(">=", 1), ("<", LIFELINE)}:
        return FIXED
    if terms == {(">=", LISTENERS), ("<", FLOWS)}:
        return PLACES
    ((operator, number),) = terms
    assert operator == "=="
    return NUMBERS[letter, number]


def ways(letter: str, call: str) -> Iterator[tuple[str, tuple[Term, ...]]]:
    """Each way to make a call, and the policy that has it, for the process with that letter."""
    for policy in sorted(POLICIES[letter]):
        for way in oracle.allowed(policy, ARCH).get(call, ()):
            yield policy, way


EACH = [(row, call) for row in ROWS for call in row.calls]


@pytest.mark.parametrize(("row", "call"), EACH, ids=[call for _, call in EACH])
def test_the_descriptors_are_those_of_the_policy(row: Row, call: str) -> None:
    for letter in ALL:
        found = [way for _, way in ways(letter, call)]
        if all(on_descriptor(call, way) for way in found):
            words = {described(letter, call, way) for way in found}
            assert {one for one in words if one not in row.descriptors} == set(), letter
        elif DESCRIPTOR & oracle._POSITION.get(call, {}).keys():
            assert "any" in row.descriptors or "what it holds" in row.descriptors, letter


ENDS_LISTENERS = {("T", "shutdown"), ("H", "shutdown")}  # group.RelayGroup.drain
LIMITED = {"connect", "recvfrom", "sendto", "shutdown", "close", "setsockopt", "bind", "listen"}


@pytest.mark.parametrize(("row", "call"), EACH, ids=[call for _, call in EACH])
def test_what_is_said_to_begin_with_the_first_flow_does_so_for_everybody(
    row: Row, call: str
) -> None:
    """So that listeners and channels are out of its reach: in every way, under every policy."""
    if BEHIND not in row.descriptors:
        assert call not in LIMITED | {"close_range"}
        return
    if call not in LIMITED and f"{call} {BEHIND}" not in row.descriptors:
        return  # said of another call of that row
    for letter in ALL:
        for policy, way in ways(letter, call):
            assert on_descriptor(call, way), policy
            if (letter, call) in ENDS_LISTENERS and f"also {PLACES}" in row.descriptors:
                assert described(letter, call, way) in (BEHIND, PLACES), policy
            else:
                assert described(letter, call, way) == BEHIND, policy


# --- which addresses and values -------------------------------------------------------------------

BOOK, BOOK_END = 0x20_0000, 0x40_0000  # relay.toml, runtime.toml
BIND = {0x1C_FFFE, 0x1E_FFFE}  # monitor-ports.toml


def number(*words: str) -> set[int]:
    return {oracle._sum(word, ARCH, {}) for word in words}


@dataclass(frozen=True)
class Claim:
    """Words of the page about a call, and what they mean: one of these values of one argument."""

    call: str
    words: str
    parameter: str
    values: set[int]
    operator: str = "=="
    but: frozenset[str] = frozenset()  # policies of which the page says that they have more

    def broken(self) -> list[str]:
        """Under which policies it can be made in another way."""
        at = oracle._POSITION[self.call][self.parameter]
        return [
            policy
            for letter in ALL
            for policy, way in ways(letter, self.call)
            if policy not in self.but
            and not any(
                term.position == at and term.operator == self.operator and term.value in self.values
                for term in way
            )
        ]


MONITORS = frozenset(one for letter in "TH" for one in POLICIES[letter])
WITH_UDP = frozenset((*DATAGRAM_RELAYS, *DATAGRAM_MONITORS))
CONTROL = frozenset(one for one in HOST.policies if one.startswith(HOST.policy_control))
QUESTIONS = ("SIOCATMARK", "TIOCOUTQ")
NOTIFICATION = ("RECV", "SEND", "ADDFD")
CLAIMS = (
    Claim("connect", "slots of the book", "addr", {BOOK}),
    Claim("recvfrom", "one byte at a time; in D", "size", {1}, but=CONTROL | WITH_UDP),
    Claim(
        "recvfrom", "in D, T+ and H+ a datagram", "flags", number("MSG_DONTWAIT"),
        but=MONITORS | set(POLICIES["R"]),
    ),
    Claim("sendto", "one byte at a time, as urgent data", "size", {1}, but=CONTROL | WITH_UDP),
    Claim(
        "sendto", "as urgent data", "flags", number("MSG_OOB|MSG_NOSIGNAL"), but=CONTROL | WITH_UDP
    ),
    Claim("sendto", "datagrams to where the socket is connected", "addr", {0}),
    Claim(
        "recvmmsg", "what has arrived there, or was sent from there", "flags",
        number("MSG_DONTWAIT", "MSG_DONTWAIT|MSG_ERRQUEUE"),
    ),
    Claim("recvmmsg", "what has arrived there", "timeout", {0}),
    Claim("sendto", "answers to its clients", "addr", {0}),
    Claim("shutdown", "SHUT_WR", "how", number("SHUT_WR"), but=MONITORS),
    Claim("shutdown", "of listeners SHUT_RDWR", "how", number("SHUT_WR", "SHUT_RDWR")),
    Claim("pidfd_getfd", "pidfd has to be -1", "pidfd", {2**64 - 1}),
    Claim("bind", "the one IP address that H has written to the book", "addr", BIND),
    Claim("socket", "TCP sockets", "domain", number("AF_INET", "AF_INET6")),
    Claim(
        "socket", "TCP sockets", "type", number("SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC"),
        but=frozenset(DATAGRAM_MONITORS),
    ),
    Claim(
        "socket", "in T+ and H+ also UDP sockets", "type",
        number(*(f"SOCK_{kind}|SOCK_NONBLOCK|SOCK_CLOEXEC" for kind in ("STREAM", "DGRAM"))),
    ),
    Claim("socketpair", "pairs", "domain", number("AF_UNIX")),
    Claim("prlimit64", "its own limits", "pid", {0}),
    Claim("pidfd_send_signal", "SIGKILL", "sig", number("SIGKILL")),
    Claim("mmap", "never executable", "prot", {0}),
    Claim("mprotect", "never executable", "prot", {0}),
    Claim("mprotect", "not the book, nor its place", "addr", {BOOK_END}, ">="),
    Claim("munmap", "not the book, nor its place", "addr", {BOOK_END}, ">="),
    Claim("mremap", "not the book, nor its place", "old_address", {BOOK_END}, ">="),
    Claim(
        "ioctl", "ioctl asks two questions", "op", number(*QUESTIONS),
        but=MONITORS,
    ),
    Claim(
        "ioctl", "in T and H also whether an interface is up", "op",
        number(*QUESTIONS, "SIOCGIFFLAGS"),
        but=POLICIES["t"] | POLICIES["H"],
    ),
    Claim(
        "ioctl", "SECCOMP_IOCTL_NOTIF_ADDFD", "op",
        number(
            *QUESTIONS, "SIOCGIFFLAGS", *(f"SECCOMP_IOCTL_NOTIF_{one}" for one in NOTIFICATION)
        ),
        but=POLICIES["H"],
    ),
    Claim(
        "ioctl", "the foreground process group of its own session's terminal (TIOCSPGRP)", "op",
        number(
            *QUESTIONS, "SIOCGIFFLAGS", "TIOCGPGRP", "TIOCSPGRP",
            *(f"SECCOMP_IOCTL_NOTIF_{one}" for one in NOTIFICATION),
        ),
    ),
    Claim(
        "kill", "H: SIGTSTP to its own process group", "sig", number("SIGTSTP"),
        but=frozenset({"init"}),
    ),
    Claim("kill", "to its own process group", "pid", {0}, but=frozenset({"init"})),
    Claim("getpriority", "whether a process group of that", "which", number("PRIO_PGRP")),
    Claim(
        "waitid", "which child has ended", "options", number("WNOHANG|WEXITED|WNOWAIT"),
        but=frozenset({"init"}),
    ),
    Claim(
        "waitid", "or is stopped", "options",
        number("WNOHANG|WEXITED|WNOWAIT", "WNOHANG|WSTOPPED|WNOWAIT"),
    ),
    Claim(
        "fcntl", "fcntl sizes pipes", "op", number("F_SETPIPE_SZ", "F_GETPIPE_SZ"),
        but=frozenset({
            "monitor-host", "monitor-host-udp", "monitor-control", "monitor-control-udp"
        }),
    ),
    Claim(
        "fcntl", "in H of changing ports says whether calls block", "op",
        number("F_SETPIPE_SZ", "F_GETPIPE_SZ", "F_GETFL"),
    ),
)  # fmt: skip


def said_of(call: str) -> str:
    (row,) = (row for row in ROWS if call in row.calls)
    return f"{row.descriptors}; {row.values}"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.call}-{claim.words}")
def test_what_is_said_of_addresses_and_values_is_in_every_way_of_the_policy(claim: Claim) -> None:
    assert claim.words in said_of(claim.call)
    assert claim.broken() == []


def test_a_way_without_it_is_noticed(other_policies: Callable[[str, str], None]) -> None:
    other_policies("relay", '\n[[rule]]\ncall = "recvfrom"\nwhen = "fd >= FLOWS"\n')
    broken = {claim.call for claim in CLAIMS if claim.broken()}
    assert broken == {"recvfrom"}


# How the page spells the options that each policy has besides those of the policies that it
# includes.
LISTENER = {"SO_REUSEADDR", "SO_BINDTODEVICE", "IPV6_V6ONLY", "IP_PKTINFO", "IPV6_RECVPKTINFO"}
OPTIONS = {
    "relay": {"SO_LINGER", "SO_OOBINLINE", "SO_KEEPALIVE", "TCP_NOTSENT_LOWAT"},
    "relay-udp": {"UDP_SEGMENT", "UDP_GRO"},
    "monitor": {"TCP_NODELAY"},
    "monitor-udp": {"SO_RXQ_OVFL"},
    "monitor-ports": {"SO_REUSEADDR", "SO_BINDTODEVICE", "IPV6_V6ONLY"},
    "monitor-ports-udp": {"IP_PKTINFO", "IPV6_RECVPKTINFO"},
    "monitor-host": {"IP_MINTTL", "IPV6_MINHOPCOUNT", "TCP_SYNCNT"},
}
LEVELS = {
    "SO": "SOL_SOCKET",
    "TCP": "IPPROTO_TCP",
    "UDP": "IPPROTO_UDP",
    "IP": "IPPROTO_IP",
    "IPV6": "IPPROTO_IPV6",
}


def test_all_options_are_named() -> None:
    said = said_of("setsockopt")
    in_words = "of changing ports also a new listener's options"
    named = [one for names in OPTIONS.values() for one in names - LISTENER]
    assert [one for one in (*named, in_words) if one not in said] == []


@pytest.mark.parametrize("policy", sorted({*POLICIES["R"], *POLICIES["D"], *MONITORS}))
def test_nobody_has_other_options(policy: str) -> None:
    level, option = (oracle._POSITION["setsockopt"][one] for one in ("level", "optname"))
    files = (policy, *oracle._text(policy)["include"])
    allowed = {
        (
            oracle.number_of(LEVELS[name.split("_")[0]], ARCH, {}),
            oracle.number_of(name, ARCH, {}),
        )
        for file in files
        for name in OPTIONS.get(file, ())
    }
    found = [
        {term.position: term.value for term in way}
        for way in oracle.allowed(policy, ARCH)["setsockopt"]
    ]
    assert {(way[level], way[option]) for way in found} == allowed
