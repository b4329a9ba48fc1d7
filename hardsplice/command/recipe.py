# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of COMMAND's own processes, the guard and PID 1."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

from hardsplice.command.caller import Caller
from hardsplice.command.id_maps import Ids
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.identity import RunAs
from hardsplice.sandbox import landlock


class Recipe(NamedTuple):
    """What to create."""

    command: tuple[str, ...]
    user: RunAs | None  # COMMAND's user outside of its user namespace; None: ours
    hint: str | None  # what to do where that user can't run it
    new_user: bool  # user namespaces too, in which COMMAND is root
    ids: Ids  # that are mapped there
    is_shielded: bool  # the kernel's settings are read-only
    caller: Caller  # what COMMAND is to have as the caller had it
    takes_foreground: bool  # COMMAND becomes the terminal's foreground group, and not the caller's
    aside: Mapping[int, int]  # COMMAND's descriptors: the number that each is to have, and has
    file_limits: tuple[int, int]  # RLIMIT_NOFILE, soft and hard, as COMMAND is to have it
    init_program: bytes  # PID 1's filter
    guard_program: bytes
    last_capability: int
    landlock_abi: int
    strict: bool

    @property
    def is_root_outside(self) -> bool:
        """Whether COMMAND has the user who is root in our own user namespace."""
        return (self.user.uid if self.user else os.geteuid()) == 0

    @property
    def deny_files(self) -> Callable[[], None] | None:
        """The Landlock layer of PID 1 and its guard, where there is Landlock."""
        abi = self.landlock_abi
        return partial(landlock.deny_files_and_ports, abi) if abi > 0 else None
