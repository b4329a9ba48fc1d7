# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled filter of each process: compiled before any of them exists, from the policy that
fits the options, so that no process needs libseccomp later.
"""

from __future__ import annotations

from collections.abc import Mapping

from hardsplice.app.options import Mode, Options
from hardsplice.app.plans import area_of_books
from hardsplice.model.record import NamedTuple
from hardsplice.model.roles import GUARD, INIT, ROLES, Role
from hardsplice.sandbox import seccomp
from hardsplice.sandbox.address_book import Area
from hardsplice.sandbox.policy import table


class Programs(NamedTuple):
    """The program that each role passes to seccomp(2), by its name, and where the address book
    lies.
    """

    by_role: Mapping[str, bytes]
    book: Area

    def of(self, role: Role) -> bytes:
        """A role's program; nothing for one that no process can have."""
        return self.by_role.get(role.name, b"")


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


def compile_all(options: Options, first_flow: int, *, has_control: bool) -> Programs:
    """The programs for this machine; ``first_flow`` is the first descriptor behind the places of
    listeners; ``has_control`` says that clients' requests are served. HardspliceError where
    libseccomp can't be loaded or lacks something.
    """
    policies = policies_of(options, has_control=has_control)
    arch = seccomp.native_arch()
    book = area_of_books(options, first_flow, arch)
    words = {"FLOWS": first_flow, **book.words}
    compiled = {
        policy: seccomp.compile_policy(table.policy_of(policy).settled(words), arch)
        for policy in sorted(set(policies.values()))
    }
    return Programs({name: compiled[policy] for name, policy in policies.items()}, book)
