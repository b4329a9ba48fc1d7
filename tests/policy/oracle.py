# SPDX-License-Identifier: GPL-2.0-or-later
"""What a policy's text allows, found without any of the product's code.

The product turns policies into filters with its own parser, its own tables and libseccomp. This
reads the same TOML in the simplest way that there is, takes the positions of arguments from the
manual pages once more, constants from Python's modules, and the numbers of system calls from the
kernel's headers (numbers.tsv). Where the two disagree, one of them is wrong.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import resource
import select
import signal
import socket
import termios
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "policy"
ARCHES = ("x86_64", "i686", "arm64", "armhf", "ppc64le", "s390x", "riscv64")
# Every policy that a process lives under; runtime.toml is what others include.
ROLES = tuple(sorted(path.stem for path in POLICY.glob("*.toml") if path.stem != "runtime"))

# linux/audit.h: the ELF machine, with bits for 64-bit and little-endian
AUDIT = {
    "x86_64": 62 | 0xC0000000,
    "i686": 3 | 0x40000000,
    "arm64": 183 | 0xC0000000,
    "armhf": 40 | 0x40000000,
    "ppc64le": 21 | 0xC0000000,
    "s390x": 22 | 0x80000000,
    "riscv64": 243 | 0xC0000000,
}
BITS = {arch: 32 if arch in ("i686", "armhf") else 64 for arch in ARCHES}
BYTE_ORDER = {arch: "big" if arch == "s390x" else "little" for arch in ARCHES}

# The position of each argument that a policy looks at.
_POSITION = {
    "_llseek": {"fd": 0},
    "accept4": {"flags": 3},
    "bind": {"fd": 0, "addr": 1},
    "clone": {"flags": 0},
    "close": {"fd": 0},
    "close_range": {"first": 0},
    "connect": {"fd": 0, "addr": 1},
    "dup3": {"newfd": 1},
    "epoll_create1": {"flags": 0},
    "fcntl": {"op": 1},
    "fcntl64": {"op": 1},
    "ftruncate": {"fd": 0},
    "ftruncate64": {"fd": 0},
    "getrandom": {"flags": 2},
    "getpriority": {"which": 0},
    "getsockname": {"fd": 0},
    "getsockopt": {"level": 1, "optname": 2},
    "ioctl": {"op": 1},
    "kill": {"pid": 0, "sig": 1},
    "landlock_restrict_self": {"ruleset_fd": 0, "flags": 1},
    "listen": {"fd": 0, "backlog": 1},
    "lseek": {"fd": 0},
    "madvise": {"addr": 0, "advice": 2},
    "mmap": {"prot": 2, "flags": 3},
    "mmap2": {"prot": 2, "flags": 3},
    "mprotect": {"addr": 0, "prot": 2},
    "mremap": {"old_address": 0, "flags": 3},
    "munmap": {"addr": 0},
    "pidfd_getfd": {"pidfd": 0, "targetfd": 1, "flags": 2},
    "pidfd_send_signal": {"sig": 1},
    "pipe2": {"flags": 1},
    "prctl": {"option": 0, "arg2": 1},
    "pread64": {"fd": 0},
    "prlimit64": {"pid": 0, "resource": 1},
    "read": {"fd": 0, "count": 2},
    "recv": {"fd": 0, "size": 2, "flags": 3},
    "recvfrom": {"fd": 0, "size": 2, "flags": 3, "addr": 4},
    "recvmmsg": {"fd": 0, "flags": 3, "timeout": 4},
    "recvmmsg_time64": {"fd": 0, "flags": 3, "timeout": 4},
    "recvmsg": {"fd": 0, "flags": 2},
    "rt_sigprocmask": {"how": 0},
    "seccomp": {"operation": 0, "flags": 1},
    "send": {"fd": 0, "size": 2, "flags": 3},
    "sendmmsg": {"fd": 0, "flags": 3},
    "sendmsg": {"fd": 0, "flags": 2},
    "sendto": {"fd": 0, "size": 2, "flags": 3, "addr": 4},
    "setsockopt": {"fd": 0, "level": 1, "optname": 2, "optval": 3},
    "shutdown": {"fd": 0, "how": 1},
    "socket": {"domain": 0, "type": 1, "protocol": 2},
    "socketpair": {"domain": 0, "type": 1},
    "splice": {"flags": 5},
    "wait4": {"pid": 0, "options": 2},
    "waitid": {"idtype": 0, "options": 3},
    "write": {"fd": 0, "count": 2},
    "writev": {"fd": 0},
}
_POSITION_ELSEWHERE = {("s390x", "clone"): {"flags": 1}}

# What Python's modules don't have, and what they have for another machine than this one.
_LITERAL = {
    "NULL": 0,
    "CLONE_CHILD_CLEARTID": 0x00200000,
    "CLONE_CHILD_SETTID": 0x01000000,
    "GRND_NONBLOCK": os.GRND_NONBLOCK,
    "MREMAP_MAYMOVE": 1,
    "SECCOMP_SET_MODE_FILTER": 1,
    "SECCOMP_FILTER_FLAG_NEW_LISTENER": 1 << 3,
    "SIOCGIFFLAGS": 0x8913,
    "SECCOMP_IOCTL_NOTIF_RECV": 3 << 30 | 80 << 16 | ord("!") << 8 | 0,
    "SECCOMP_IOCTL_NOTIF_SEND": 3 << 30 | 24 << 16 | ord("!") << 8 | 1,
    "IP_MINTTL": 21,
    "IP_PKTINFO": 8,
    "SO_RXQ_OVFL": 40,
    "UDP_SEGMENT": 103,
    "UDP_GRO": 104,
    "IPV6_MINHOPCOUNT": 73,
    "MADV_DONTNEED": 4,
    "MADV_DONTFORK": 10,
    "MADV_DOFORK": 11,
    "MADV_HUGEPAGE": 14,
    "PROT_EXEC": 4,
    "PR_SET_NAME": 15,
    "PR_SET_PDEATHSIG": 1,
    "PR_SET_SECCOMP": 22,
    "SECCOMP_MODE_FILTER": 2,
    "SIOCATMARK": 0x8905,
    "SO_NETNS_COOKIE": 71,
    "SIOCGIFINDEX": 0x8933,
}
_BY_ARCHITECTURE = {
    "SO_PEERCRED": {arch: 21 if arch == "ppc64le" else 17 for arch in ARCHES},
    # _IOR and _IOW of 't', 119 and 118, and an int
    "TIOCGPGRP": {arch: 0x40047477 if arch == "ppc64le" else 0x540F for arch in ARCHES},
    "TIOCSPGRP": {arch: 0x80047476 if arch == "ppc64le" else 0x5410 for arch in ARCHES},
    "TIOCOUTQ": {arch: 0x40047473 if arch == "ppc64le" else 0x5411 for arch in ARCHES},
    # _IOW: PowerPC's bit for it is 2**31, the others' 2**30
    "SECCOMP_IOCTL_NOTIF_ADDFD": {
        arch: (2 if arch == "ppc64le" else 1) << 30 | 24 << 16 | ord("!") << 8 | 3
        for arch in ARCHES
    },
    "MAP_NORESERVE": {arch: 0x40 if arch == "ppc64le" else 0x4000 for arch in ARCHES},
    "FIONBIO": {arch: 0x8004667E if arch == "ppc64le" else 0x5421 for arch in ARCHES},
}
_MODULES = (socket, os, fcntl, select, signal, resource, termios, mmap)
# Of these the kernel takes an int, the low half of the argument (the manual pages' prototypes).
_INTS = {"fd", "oldfd", "newfd", "targetfd", "first"}


@dataclass(frozen=True)
class Term:
    """args[position] & mask, compared with value."""

    position: int
    mask: int
    value: int
    operator: str = "=="

    def holds(self, arguments: tuple[int, ...]) -> bool:
        found = arguments[self.position] & self.mask
        if self.operator == "==":
            return found == self.value
        return (found >= self.value) == (self.operator == ">=")

    @property
    def example(self) -> int:
        """A value for which it holds."""
        return max(0, self.value - 1) if self.operator == "<" else self.value


Ways = tuple[tuple[Term, ...], ...]
"""The ways in which a call may be made: one of them has to hold in full."""


@cache
def numbers(arch: str) -> dict[str, int]:
    """The system calls of an architecture by name."""
    lines = (Path(__file__).parent / "numbers.tsv").read_text(encoding="ascii").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    column = rows[0].index(arch)
    return {row[0]: int(row[column]) for row in rows[1:] if row[column] != "-"}


def number_of(name: str, arch: str, words: dict[str, int]) -> int:
    """The number that a word of a policy stands for."""
    if name.isdigit():
        return int(name)
    if name in words:
        return words[name]
    if name in _BY_ARCHITECTURE:
        return _BY_ARCHITECTURE[name][arch]
    if name in _LITERAL:
        return _LITERAL[name]
    for module in _MODULES:
        if hasattr(module, name):
            return int(getattr(module, name))
    raise LookupError(f"{name}: add it to the oracle, from the header and not from the product")


def _sum(text: str, arch: str, words: dict[str, int]) -> int:
    total = 0
    for name in text.split("|"):
        total |= number_of(name.strip(), arch, words)
    return total


def _term(text: str, call: str, arch: str, words: dict[str, int]) -> Term:
    operator = next(one for one in ("==", ">=", "<") if one in text)
    left, right = text.split(operator)
    parameter, _, mask = (part.strip() for part in left.partition("&"))
    positions = _POSITION_ELSEWHERE.get((arch, call)) or _POSITION.get(call, {})
    if parameter not in positions:
        raise LookupError(f"{call}, {parameter}: add it to the oracle, from the manual page")
    everything = 2 ** BITS[arch] - 1
    if operator != "==" and parameter in _INTS:
        everything = 2**32 - 1
    return Term(
        positions[parameter],
        _sum(mask, arch, words) & everything if mask else everything,
        _sum(right, arch, words) & (2 ** BITS[arch] - 1),
        operator,
    )


@cache
def _text(role: str) -> dict[str, Any]:
    return tomllib.loads((POLICY / f"{role}.toml").read_text(encoding="utf-8"))


def _rules(role: str, arch: str) -> Iterator[dict[str, Any]]:
    for rule in _text(role).get("rule", []):
        if arch not in rule.get("except", []):
            yield rule
    yield from _text(role).get(arch, {}).get("rule", [])


@cache
def allowed(role: str, arch: str) -> dict[str, Ways]:
    """What the text of a role's policy allows, with what it includes, on an architecture."""
    ways: dict[str, Ways] = {}
    for source in (role, *_text(role).get("include", [])):
        words = {**_text(source).get("descriptors", {}), **_text(source).get("addresses", {})}
        for rule in _rules(source, arch):
            call, when = rule["call"], rule.get("when", "")
            for text in [when] if isinstance(when, str) else when:
                terms = tuple(_term(one, call, arch, words) for one in text.split(" and ") if one)
                ways[call] = (*ways.get(call, ()), terms)
    return ways


@cache
def allowed_by_number(role: str, arch: str) -> dict[int, Ways]:
    """The same by number."""
    return {numbers(arch)[call]: ways for call, ways in allowed(role, arch).items()}


@cache
def notified(role: str, arch: str) -> set[int]:
    """The numbers of the calls that a monitor serves, instead of the kernel."""
    return {
        numbers(arch)[rule["call"]]
        for source in (role, *_text(role).get("include", []))
        for rule in _rules(source, arch)
        if rule.get("notify")
    }


def may(role: str, arch: str, number: int, arguments: tuple[int, ...]) -> bool:
    """Whether a call is allowed; ``arguments`` as seccomp_data has them."""
    ways = allowed_by_number(role, arch).get(number, ())
    return any(all(term.holds(arguments) for term in way) for way in ways)


def vectors(ways: Ways, arch: str) -> Iterator[tuple[int, ...]]:
    """Arguments on both sides of every condition: each way as it holds, over two backgrounds, with
    each argument changed to whatever is of interest about it anywhere, and each pair to whatever is
    of interest in that way.
    """
    everything = 2 ** BITS[arch] - 1
    anywhere = _interesting((term for way in ways for term in way), arch)
    for way, background in itertools.product(ways, (0, everything)):
        base = [background] * 6
        for term in way:
            base[term.position] = term.example
        yield tuple(base)
        here = _interesting(way, arch)
        changes = [({at: value} for value in values) for at, values in anywhere.items()]
        changes += [
            ({one: left, other: right} for left, right in itertools.product(here[one], here[other]))
            for one, other in itertools.combinations(here, 2)
        ]
        for change in itertools.chain(*changes):
            yield tuple(change.get(at, value) for at, value in enumerate(base))


def _interesting(terms: Iterable[Term], arch: str) -> dict[int, set[int]]:
    """By position, values of arguments on both sides of what is said of them."""
    found: dict[int, set[int]] = {}
    for term in terms:
        found.setdefault(term.position, {0, 2 ** BITS[arch] - 1}).update(_around(term, arch))
    return found


def _around(term: Term, arch: str) -> set[int]:
    everything = 2 ** BITS[arch] - 1
    value, free = term.value, everything & ~term.mask
    found = {value, value | free, value ^ 1, value ^ 4, value ^ 8, term.mask & everything}
    found |= {value ^ (1 << bit) for bit in (31, 32, 63) if bit < BITS[arch]}
    if term.operator != "==":
        found |= {value - 1, value + 1, (1 << 32) | 3, (1 << 32) | value, (1 << 32) - 1}
    if free:  # bits that may be anything, and their neighbours
        found |= {value | 1 << bit for bit in (0, 4, 5, 6, 20, 21, 31, BITS[arch] - 1)}
    return {one & everything for one in found if one >= 0}
