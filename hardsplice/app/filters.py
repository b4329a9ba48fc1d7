# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled filter of each process: compiled before any of them exists, from the policy that
fits the options, so that no process needs libseccomp later.
"""

from __future__ import annotations

from dataclasses import dataclass

from hardsplice.app.options import Options
from hardsplice.app.plans import area_of_books
from hardsplice.model import roles
from hardsplice.model.direction import Direction
from hardsplice.sandbox import seccomp
from hardsplice.sandbox.address_book import Area


@dataclass(frozen=True, slots=True)
class Programs:
    """The program that each process passes to seccomp(2), and the place of the address book."""

    host: bytes
    namespace: bytes
    relays: dict[Direction, bytes]
    init: bytes
    guard: bytes
    book: Area


def compile_all(options: Options, first_flow: int) -> Programs:
    """The programs for this machine; ``first_flow`` is the first descriptor behind the places of
    listeners. HardspliceError where libseccomp can't be loaded or lacks something.
    """
    changes, has_control = bool(options.dynamic), options.control is not None
    policies: dict[str, str] = {
        "host": roles.HOST.policy_for(is_dynamic=changes, has_control=has_control),
        "namespace": roles.NAMESPACE.policy_for(is_dynamic=changes),
        "init": roles.INIT.policy,
        "guard": roles.GUARD.policy,
        **{
            one: roles.RELAYS[one].policy_for(is_dynamic=one in options.dynamic)
            for one in Direction
        },
    }
    arch = seccomp.native_arch()
    book = area_of_books(options, first_flow, arch)
    words = {"FLOWS": first_flow, **book.words}
    compiled = {
        policy: seccomp.compile_policy(seccomp.load_policy(policy).settled(words), arch)
        for policy in sorted(set(policies.values()))
    }
    made = {name: compiled[policy] for name, policy in policies.items()}
    return Programs(
        host=made["host"],
        namespace=made["namespace"],
        relays={one: made[one] for one in Direction},
        init=made["init"],
        guard=made["guard"],
        book=book,
    )
