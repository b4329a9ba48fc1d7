# SPDX-License-Identifier: GPL-2.0-or-later
"""COMMAND's namespaces, as the options ask for them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hardsplice.app.filters import Programs
from hardsplice.app.opening import Opened
from hardsplice.command import id_maps, terminal
from hardsplice.command.caller import Caller
from hardsplice.command.container import Container
from hardsplice.command.recipe import Recipe
from hardsplice.command.terminal import Terminal
from hardsplice.ipc.channel import close_all
from hardsplice.kernel import ids
from hardsplice.model import roles
from hardsplice.model.errors import HardspliceError, quote
from hardsplice.sandbox import refusals, rights, users
from hardsplice.telemetry.log import Level, Log

_PROC_KEPT = (
    "COMMAND has the /proc that is here, as the kernel refuses it one of its own: it sees other "
    "processes, with their command lines and connections"
)


def make(opened: Opened, programs: Programs, caller: Caller, log: Log) -> Container:
    """Create them, and close what was set aside for COMMAND, which has it now. A HardspliceError
    leaves nothing behind.
    """
    recipe = _recipe(opened, programs, caller)
    made = Container(recipe)
    close_all(recipe.aside.values())
    _log_what_is_there(made, recipe, log, is_named=opened.options.runas is not None)
    return made


def _recipe(opened: Opened, programs: Programs, caller: Caller) -> Recipe:
    options, before, numbered = opened.options, opened.before, opened.numbered
    new_user = not options.netns_only
    if not (new_user or rights.may_make_namespaces()):
        reason = "without a user namespace it takes CAP_SYS_ADMIN, which is not there"
        raise HardspliceError("create", "namespaces", reason, "leave --netns-only out")
    user = before.user if new_user else options.runas
    command = options.command or (os.environ.get("SHELL") or "/bin/sh",)
    return Recipe(
        command=command,
        user=user,
        hint=users.hint(user) if user and ids.is_real_root() else None,
        new_user=new_user,
        ids=id_maps.of_command(user, with_subordinate=options.map_auto),
        is_shielded=new_user and users.keeps_root(user),
        caller=caller,
        takes_foreground=_takes_foreground(opened.terminal, command),
        aside=numbered.aside,
        file_limits=numbered.limits,
        init_program=programs.of(roles.INIT),
        guard_program=programs.of(roles.GUARD),
        last_capability=before.last_capability,
        landlock_abi=before.landlock.abi,
        strict=options.sandbox == "strict",
    )


def _takes_foreground(ours: Terminal | None, command: Sequence[str]) -> bool:
    """Whether COMMAND is a shell, and the terminal's foreground is ours to give."""
    is_here = ours is not None and ours.is_ours() and os.isatty(0)
    return is_here and terminal.is_for_people(command)


def _log_what_is_there(made: Container, recipe: Recipe, log: Log, *, is_named: bool) -> None:
    """Report COMMAND's user, and what it lacks, where that may be unexpected; ``is_named`` if an
    option names the user.
    """
    if recipe.hint and not is_named:
        log.line(Level.INFO, f"started by root: {recipe.hint}")
    elif not is_named and ids.is_real_root():
        log.line(Level.INFO, f"started by root: {users.ROOT_HINT}")
    if made.warning:
        text = f"COMMAND cannot reach its working directory {quote(made.warning)}"
        log.line(Level.WARNING, f"{text}: {recipe.hint}" if recipe.hint else text)
    if not made.has_own_proc:
        for text in (_PROC_KEPT, refusals.PROC_HINT):
            log.line(Level.WARNING, text)
