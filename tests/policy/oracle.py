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
import os
import resource
import select
import signal
import socket
import termios
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "policy"
ARCHES = ("x86_64", "i686", "arm64", "armhf", "ppc64le", "s390x", "riscv64")
ROLES = ("relay", "monitor", "monitor-ports", "monitor-control", "init")

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
    "bind": {"addrlen": 2},
    "clone": {"flags": 0},
    "close": {"fd": 0},
    "close_range": {"flags": 2},
    "dup3": {"oldfd": 0, "newfd": 1, "flags": 2},
    "epoll_create1": {"flags": 0},
    "fcntl": {"op": 1},
    "fcntl64": {"op": 1},
    "ftruncate": {"fd": 0},
    "ftruncate64": {"fd": 0},
    "getrandom": {"flags": 2},
    "getsockname": {"fd": 0},
    "getsockopt": {"level": 1, "optname": 2},
    "ioctl": {"op": 1},
    "kill": {"pid": 0, "sig": 1},
    "landlock_restrict_self": {"ruleset_fd": 0, "flags": 1},
    "listen": {"backlog": 1},
    "lseek": {"fd": 0},
    "madvise": {"advice": 2},
    "mmap": {"prot": 2},
    "mmap2": {"prot": 2},
    "mprotect": {"prot": 2},
    "pidfd_send_signal": {"sig": 1},
    "pipe2": {"flags": 1},
    "prctl": {"option": 0, "arg2": 1},
    "pread64": {"fd": 0},
    "prlimit64": {"pid": 0, "resource": 1},
    "read": {"fd": 0, "count": 2},
    "recv": {"size": 2, "flags": 3},
    "recvfrom": {"size": 2, "flags": 3},
    "recvmsg": {"fd": 0, "flags": 2},
    "rt_sigprocmask": {"how": 0},
    "seccomp": {"operation": 0, "flags": 1},
    "send": {"size": 2, "flags": 3},
    "sendmsg": {"fd": 0, "flags": 2},
    "sendto": {"size": 2, "flags": 3, "addr": 4},
    "setsockopt": {"level": 1, "optname": 2},
    "shutdown": {"how": 1},
    "socket": {"domain": 0, "type": 1, "protocol": 2},
    "socketcall": {"call": 0},
    "socketpair": {"domain": 0, "type": 1},
    "splice": {"flags": 5},
    "wait4": {"pid": 0, "options": 2},
    "write": {"fd": 0, "count": 2},
}
_POSITION_ELSEWHERE = {("s390x", "clone"): {"flags": 1}}

# What Python's modules don't have, and what they have for another machine than this one.
_LITERAL = {
    "NULL": 0,
    "CLONE_CHILD_CLEARTID": 0x00200000,
    "CLONE_CHILD_SETTID": 0x01000000,
    "GRND_NONBLOCK": os.GRND_NONBLOCK,
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
    "SYS_SOCKET": 1,
    "SIOCGIFINDEX": 0x8933,
    "SYS_BIND": 2,
    "SYS_CONNECT": 3,
    "SYS_LISTEN": 4,
    "SYS_GETSOCKNAME": 6,
    "SYS_GETPEERNAME": 7,
    "SYS_SOCKETPAIR": 8,
    "SYS_SEND": 9,
    "SYS_RECV": 10,
    "SYS_SHUTDOWN": 13,
    "SYS_SETSOCKOPT": 14,
    "SYS_GETSOCKOPT": 15,
    "SYS_SENDMSG": 16,
    "SYS_RECVMSG": 17,
    "SYS_ACCEPT4": 18,
}
_BY_ARCHITECTURE = {
    "SO_PEERCRED": {arch: 21 if arch == "ppc64le" else 17 for arch in ARCHES},
    "TIOCOUTQ": {arch: 0x40047473 if arch == "ppc64le" else 0x5411 for arch in ARCHES},
    "FIONBIO": {arch: 0x8004667E if arch == "ppc64le" else 0x5421 for arch in ARCHES},
}
_MODULES = (socket, os, fcntl, select, signal, resource, termios)


@dataclass(frozen=True)
class Term:
    """args[position] & mask == value."""

    position: int
    mask: int
    value: int

    def holds(self, arguments: tuple[int, ...]) -> bool:
        return arguments[self.position] & self.mask == self.value


Ways = tuple[tuple[Term, ...], ...]
"""The ways in which a call may be made: one of them has to hold in full."""


@cache
def numbers(arch: str) -> dict[str, int]:
    """The system calls of an architecture by name."""
    lines = (Path(__file__).parent / "numbers.tsv").read_text(encoding="ascii").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    column = rows[0].index(arch)
    return {row[0]: int(row[column]) for row in rows[1:] if row[column] != "-"}


def number_of(name: str, arch: str, descriptors: dict[str, int]) -> int:
    """The number that a word of a policy stands for."""
    if name.isdigit():
        return int(name)
    if name in descriptors:
        return descriptors[name]
    if name in _BY_ARCHITECTURE:
        return _BY_ARCHITECTURE[name][arch]
    if name in _LITERAL:
        return _LITERAL[name]
    for module in _MODULES:
        if hasattr(module, name):
            return int(getattr(module, name))
    raise LookupError(f"{name}: add it to the oracle, from the header and not from the product")


def _sum(text: str, arch: str, descriptors: dict[str, int]) -> int:
    total = 0
    for name in text.split("|"):
        total |= number_of(name.strip(), arch, descriptors)
    return total


def _term(text: str, call: str, arch: str, descriptors: dict[str, int]) -> Term:
    left, right = text.split("==")
    parameter, _, mask = (part.strip() for part in left.partition("&"))
    positions = _POSITION_ELSEWHERE.get((arch, call)) or _POSITION.get(call, {})
    if parameter not in positions:
        raise LookupError(f"{call}, {parameter}: add it to the oracle, from the manual page")
    everything = 2 ** BITS[arch] - 1
    return Term(
        positions[parameter],
        _sum(mask, arch, descriptors) if mask else everything,
        _sum(right, arch, descriptors),
    )


@cache
def _text(role: str) -> dict[str, Any]:
    return tomllib.loads((POLICY / f"{role}.toml").read_text(encoding="utf-8"))


def _rules(role: str, arch: str) -> Iterator[dict[str, Any]]:
    for rule in _text(role)["rule"]:
        if arch not in rule.get("except", []):
            yield rule
    yield from _text(role).get(arch, {}).get("rule", [])


@cache
def allowed(role: str, arch: str) -> dict[str, Ways]:
    """What the text of a role's policy allows, with what it includes, on an architecture."""
    ways: dict[str, Ways] = {}
    for source in (role, *_text(role).get("include", [])):
        descriptors = _text(source).get("descriptors", {})
        for rule in _rules(source, arch):
            call, when = rule["call"], rule.get("when", "")
            for text in [when] if isinstance(when, str) else when:
                terms = tuple(
                    _term(one, call, arch, descriptors) for one in text.split(" and ") if one
                )
                ways[call] = (*ways.get(call, ()), terms)
    return ways


@cache
def allowed_by_number(role: str, arch: str) -> dict[int, Ways]:
    """The same by number."""
    return {numbers(arch)[call]: ways for call, ways in allowed(role, arch).items()}


def may(role: str, arch: str, number: int, arguments: tuple[int, ...]) -> bool:
    """Whether a call is allowed; ``arguments`` as seccomp_data has them."""
    ways = allowed_by_number(role, arch).get(number, ())
    return any(all(term.holds(arguments) for term in way) for way in ways)


def vectors(ways: Ways, arch: str) -> Iterator[tuple[int, ...]]:
    """Arguments on both sides of every condition, in every combination, over two backgrounds."""
    everything = 2 ** BITS[arch] - 1
    high = [bit for bit in (31, 32, 63) if bit < BITS[arch]]
    candidates: dict[int, set[int]] = {}
    for term in (term for way in ways for term in way):
        values = candidates.setdefault(term.position, {0, everything})
        free = everything & ~term.mask
        values |= {term.value, term.value | free, term.value ^ 1, term.value ^ 4, term.mask}
        values |= {term.value ^ (1 << bit) for bit in high}
    positions = sorted(candidates)
    for background in (0, everything):
        for chosen in itertools.product(*(sorted(candidates[at]) for at in positions)):
            arguments = [background] * 6
            for at, value in zip(positions, chosen, strict=True):
                arguments[at] = value
            yield tuple(arguments)
