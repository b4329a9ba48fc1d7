# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled filter of each process: compiled before any of them exists, from the policy that
fits the options, so that no process needs libseccomp later.

A front-end, whose ports somebody waits for, has that done beside what else the start takes: in a
process that it forks for that alone (`Ahead`). What compiles is imported only where it is done.
"""

from __future__ import annotations

import contextlib
import marshal
import os
from collections.abc import Mapping

from hardsplice.app.options import Mode, Options
from hardsplice.ipc.descriptors import FIRST_LISTENER
from hardsplice.kernel.hints import Any
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction
from hardsplice.model.errors import write_all
from hardsplice.model.roles import GUARD, INIT, ROLES, Role
from hardsplice.sandbox.address_book import TARGETS_A_PORT, Area, area_for


class Programs(NamedTuple):
    """The program that each role passes to seccomp(2), and what it depends on."""

    by_policy: Mapping[str, bytes]
    policies: Mapping[str, str]  # of each role, by its name
    first_flow: int  # the first descriptor behind the places of listeners
    book: Area  # where the address books lie
    arch: str
    library: str  # the binding of libseccomp by which they were compiled

    def of(self, role: Role) -> bytes:
        """A role's program; nothing for one that no process can have."""
        policy = self.policies.get(role.name)
        return b"" if policy is None else self.by_policy[policy]


def _is_there(role: Role, options: Options) -> bool:
    """Whether there is, or can come to be, a process of that role."""
    if role in (INIT, GUARD):
        return options.mode is Mode.COMMAND
    return role.group is None or role.group in options.groups


def policies_of(options: Options, *, has_control: bool) -> dict[str, str]:
    """The policy of each role of which there is, or can come to be, a process."""
    dynamic = options.dynamic
    return {
        role.name: role.policy_for(
            is_dynamic=role.changes_with(dynamic),
            has_control=has_control,
            has_udp=role.may_have_udp(options.groups, dynamic),
        )
        for role in ROLES.values()
        if _is_there(role, options)
    }


def area_of_books(options: Options, first_flow: int, arch: str) -> Area:
    """Where both address books are, on an architecture."""
    listening = max(len(options.forwards(direction)) for direction in Direction)
    late = first_flow - FIRST_LISTENER if options.dynamic else 0
    return area_for(TARGETS_A_PORT * (listening + late) + 1, arch)


def compile_all(
    options: Options, first_flow: int, *, has_control: bool, ahead: Programs | None = None
) -> Programs:
    """The programs for this machine; ``first_flow`` is the first descriptor behind the places of
    listeners; ``has_control`` says that clients' requests are served. What was compiled ``ahead``
    is taken if it is for the same. HardspliceError where libseccomp can't be loaded or lacks
    something.
    """
    policies = policies_of(options, has_control=has_control)
    if ahead is not None:
        book = area_of_books(options, first_flow, ahead.arch)
        if (policies, first_flow, book) == (ahead.policies, ahead.first_flow, ahead.book):
            return ahead
    from hardsplice.sandbox import libseccomp, seccomp
    from hardsplice.sandbox.policy import table

    arch = seccomp.native_arch()
    book = area_of_books(options, first_flow, arch)
    words = {"FLOWS": first_flow, **book.words}
    compiled = {
        policy: seccomp.compile_policy(table.policy_of(policy).settled(words), arch)
        for policy in sorted(set(policies.values()))
    }
    library: str = libseccomp.load().__name__
    return Programs(compiled, policies, first_flow, book, arch, library)


class Ahead:
    """A process that compiles the programs, with our rights and for us alone, and then ends."""

    def __init__(self, options: Options, first_flow: int, *, has_control: bool) -> None:
        """Start it, for what `compile_all` is going to be asked for."""
        self._told, tell = os.pipe2(os.O_CLOEXEC)
        self._pid = 0
        with contextlib.suppress(OSError):  # then `compile_all` does it
            self._pid = os.fork()
            if self._pid == 0:
                _compile(options, first_flow, tell, has_control=has_control)
        os.close(tell)

    def take(self) -> Programs | None:
        """What it has compiled; None where it could not. `compile_all` says why."""
        with open(self._told, "rb") as file:
            data = file.read()
        if not self._pid or os.waitpid(self._pid, 0)[1]:
            return None
        by_policy, policies, first_flow, book, arch, library = marshal.loads(data)
        return Programs(by_policy, policies, first_flow, Area(*book), arch, library)


def _compile(options: Options, first_flow: int, tell: int, *, has_control: bool) -> None:
    """The life of the forked process, which never returns."""
    try:
        made = compile_all(options, first_flow, has_control=has_control)
        by_policy, policies, first_flow, book, *named = made
        told: Any = (dict(by_policy), dict(policies), first_flow, tuple(book), *named)
        write_all(tell, marshal.dumps(told))
        os._exit(0)
    finally:
        os._exit(1)
