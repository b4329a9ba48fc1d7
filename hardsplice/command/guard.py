# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard: the parent of COMMAND's PID 1, outside of its PID namespace. command/container.py says
what it is for.

It becomes COMMAND's user in a user namespace of its own, forks PID 1, writes its ID maps, gives up
all that it has, and waits. From then on each of the two ends when the other ends.
"""

from __future__ import annotations

import contextlib
import os
import signal

from hardsplice.command import environment, init
from hardsplice.ipc import child, descriptors, lifeline
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.descriptors import CHANNEL_FD, FIRST_LISTENER
from hardsplice.ipc.messages import Kind, Record, encode
from hardsplice.kernel import linux, prctl
from hardsplice.kernel.hints import TYPE_CHECKING, NoReturn
from hardsplice.kernel.status import exit_status
from hardsplice.model import roles
from hardsplice.model.errors import HardspliceError, reason_of
from hardsplice.sandbox import refusals, steps, user_namespace, users

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hardsplice.command.recipe import Recipe


def live(recipe: Recipe, channel: Channel, report: Channel, line: int) -> NoReturn:
    """The life of the process that the host monitor forks. ``channel`` is for PID 1, ``report`` is
    its own, and ``line`` its lifeline.
    """
    child.live(lambda: _live(recipe, channel, report, line), report, "create", "namespaces")


def _live(recipe: Recipe, channel: Channel, report: Channel, line: int) -> int:
    prctl.set_name(roles.GUARD.name)
    # Signals of the terminal, and those of kill(1) to end hardsplice, are for COMMAND, whose mask
    # is restored.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    keep = (channel.fileno(), report.fileno(), line, *recipe.aside.values())
    descriptors.close_others((0, 1, 2, *keep))
    lifeline.hang_on(line)
    if recipe.new_user:
        _enter(recipe, report)
        lifeline.hang_on(line)
    pid = _start_init(recipe, channel, report, mask)
    lock_down(recipe, report, line)
    return wait(pid)


def _enter(recipe: Recipe, report: Channel) -> None:
    """Create user namespace A as the user who started us, who then owns it; and become COMMAND's
    user, who is root there.
    """
    if recipe.user is not None:
        users.leave_what_is_the_callers(recipe.user)
    try:
        linux.unshare(linux.CLONE_NEWUSER)
    except OSError as error:
        hint = refusals.userns_hint(error)
        raise HardspliceError("create", "namespaces", reason_of(error), hint) from error
    report.send(Record(Kind.WANTS_MAPS))
    if report.receive() is None:
        os._exit(1)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _start_init(recipe: Recipe, channel: Channel, report: Channel, mask: Iterable[int]) -> int:
    """Fork PID 1, and write the maps of its user namespace, which the kernel permits only to
    processes in it and in the namespace above, which is ours.
    """
    try:
        linux.unshare(linux.CLONE_NEWPID)
    except OSError as error:
        hint = refusals.limited_by("pid", error)
        raise HardspliceError("create", "namespaces", reason_of(error), hint) from error
    pid, ours = child.fork(
        roles.GUARD.name,
        roles.INIT.name,
        lambda theirs: init.live(recipe, channel, theirs, mask),
    )
    channel.close()
    report.send(Record(Kind.STARTED, detail=pid, text=_unreachable_directory(recipe).encode()))
    if recipe.new_user and ours.receive() is not None:
        maps = recipe.ids.uids.same_below, recipe.ids.gids.same_below  # who is root in A is so in B
        user_namespace.write_id_maps(pid, *maps, deny_setgroups=False)
        ours.send(Record(Kind.MAPPED))
    ours.close()
    return pid


def _unreachable_directory(recipe: Recipe) -> str:
    """The working directory, if COMMAND's user can't reach it."""
    if recipe.user is not None:
        with contextlib.suppress(FileNotFoundError):  # it was removed
            path = os.getcwd()
            try:
                os.stat(os.path.join(path, "."))
            except PermissionError:
                return path
    return ""


def lock_down(recipe: Recipe, report: Channel, line: int) -> None:
    """Give up everything but the lifeline, and report that."""
    line = descriptors.above(line, FIRST_LISTENER, "the line")
    report.move_to(CHANNEL_FD)
    descriptors.null_standard_streams((0, 1, 2))
    descriptors.keep((CHANNEL_FD, line), FIRST_LISTENER)
    lockdown = steps.Lockdown(strict=recipe.strict, say=lambda _: None)
    environment.forget()
    lockdown.run(steps.init_steps((), recipe.last_capability, recipe.deny_files))
    lockdown.run([steps.filter_step(recipe.guard_program)])
    os.write(CHANNEL_FD, encode(Record(Kind.READY)))


def wait(pid: int) -> int:
    """PID 1's exit status."""
    return exit_status(os.waitpid(pid, 0)[1])
