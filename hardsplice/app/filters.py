# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled filter of each process: made before any of them exists, from the policy that fits
what the options ask for, so that nobody needs libseccomp later.
"""

from __future__ import annotations

from dataclasses import dataclass

from hardsplice.app.options import Options
from hardsplice.app.plans import place_of_books
from hardsplice.model.direction import DIRECTIONS, Direction
from hardsplice.sandbox import seccomp
from hardsplice.sandbox.address_book import Place


@dataclass(frozen=True, slots=True)
class Programs:
    """What each process hands to seccomp(2), and where they all look for the address book."""

    host: bytes
    target: bytes
    relays: dict[Direction, bytes]
    init: bytes
    guard: bytes
    book: Place


def compile_all(options: Options, first_flow: int) -> Programs:
    """The programs for this machine; ``first_flow`` is the first descriptor behind the places of
    listeners. Failure where libseccomp can't be loaded or lacks something.
    """
    dynamic = options.dynamic
    host = "monitor-host" if dynamic else "monitor-fixed"
    roles: dict[str, str] = {
        "host": "monitor-control" if options.control is not None else host,
        "target": "monitor-ports" if dynamic else "monitor",
        "init": "init",
        "guard": "guard",
        **{one: "relay-ports" if one in dynamic else "relay" for one in DIRECTIONS},
    }
    arch = seccomp.native_arch()
    book = place_of_books(options, first_flow, arch)
    words = {"FLOWS": first_flow, **book.words}
    compiled = {
        role: seccomp.compile_policy(seccomp.load_policy(role).settled(words), arch)
        for role in sorted(set(roles.values()))
    }
    made = {name: compiled[role] for name, role in roles.items()}
    return Programs(
        host=made["host"],
        target=made["target"],
        relays={one: made[one] for one in DIRECTIONS},
        init=made["init"],
        guard=made["guard"],
        book=book,
    )
