# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock-down of this start: which of sandbox/steps.py's steps the first process takes, and
which descriptors it keeps; and what both monitors are confined by.
"""

from __future__ import annotations

import os
import resource
import stat
from functools import partial
from typing import TYPE_CHECKING

import prctl

from hardsplice.app import allowed_ports
from hardsplice.command import environment
from hardsplice.ipc import descriptors
from hardsplice.model import roles
from hardsplice.model.direction import Direction
from hardsplice.model.errors import reason_of
from hardsplice.sandbox import landlock, rights, steps, users
from hardsplice.sandbox.address_book import SEALED
from hardsplice.sandbox.confinement import Confinement
from hardsplice.sandbox.steps import Lockdown

if TYPE_CHECKING:
    from hardsplice.app.setup import Setup

READY_ROOM = 1 << 20  # bytes: more than the lines of all ports take
ONLY_WRITTEN = "read nothing from where messages go"


def confine_signals(setup: Setup) -> None:
    """Keep the signals of all of hardsplice's processes among them: early, so that one layer holds
    them all; and not before COMMAND's are forked, which owe us nothing.
    """
    layers = [steps.no_new_privileges()]
    ruleset = landlock.scope(setup.landlock.abi)
    if ruleset is not None:
        layers.append(steps.restriction("confine signals by Landlock", ruleset))
    begun = Lockdown(strict=setup.options.sandbox == "strict", say=setup.say)
    begun.run(layers)
    setup.missing += begun.missing
    if ruleset is not None:
        os.close(ruleset)


def confinement(setup: Setup, direction: Direction, program: bytes) -> Confinement:
    """That of the monitor that keeps the relays of ``direction``, whose own filter is ``program``.
    It makes the other direction's listeners.
    """
    return Confinement(
        strict=setup.options.sandbox == "strict",
        landlock=setup.landlock,
        connect=allowed_ports.connected_to(setup.options, direction),
        bind=allowed_ports.listened_on(setup.options, direction.opposite),
        user=setup.user,
        last_capability=setup.last_capability,
        program=program,
    )


def lock_host_monitor(setup: Setup) -> None:
    """Lock this process down, as the host monitor."""
    prctl.set_name(roles.HOST.name)
    environment.forget()
    unsealed = setup.planner.books[Direction.OUTBOUND].open()
    setup.unsealed = [f"{SEALED}: {unsealed}"] if unsealed else []
    setup.planner.books[Direction.OUTBOUND].pin(is_writer=True)
    if setup.ready_fd is not None:
        descriptors.move(setup.ready_fd, descriptors.READY_FD)
    kept = _kept(setup)
    descriptors.null_standard_streams((0, 1))
    setup.log.settle()
    own = confinement(setup, Direction.OUTBOUND, setup.programs.host)
    begun = own.begin(setup.say)
    descriptors.keep((descriptors.RULESET_FD, *kept), setup.first_flow)
    ruleset = own.ruleset(setup.planner.sink.port, scoped=False)
    needs_user_namespace = not (users.is_real_root() and rights.may_make_namespaces())
    if setup.options.log_file is None:  # which is read again when it is full
        reopen = partial(descriptors.write_only, descriptors.LOG_FD)
        begun.run([steps.Step(ONLY_WRITTEN, reopen, reason_of)])
    begun.run(
        [
            *steps.leaving_steps(new_user_namespace=needs_user_namespace, user=own.user),
            *steps.first_steps(_file_limit(setup)),
            *steps.rights_steps(own.user, own.last_capability, ruleset),
        ]
    )
    if ruleset is not None:
        os.close(ruleset)
    setup.missing += begun.missing
    setup.parent.ask_again()
    begun.run([steps.filter_step(own.program)])


def _file_limit(setup: Setup) -> int:
    """The largest file that this process still has to write, in bytes; -1 for any. --ready-fd may
    lead to one, as where a shell sends standard output there.
    """
    limit = setup.log.file_limit
    if setup.ready_fd is None or limit == resource.RLIM_INFINITY:
        return limit
    found = os.fstat(descriptors.READY_FD)
    if not stat.S_ISREG(found.st_mode):
        return limit
    wanted = max(limit, found.st_size + READY_ROOM)
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)


def _kept(setup: Setup) -> list[int]:
    """The descriptors that the host monitor serves with."""
    keep = [descriptors.LOG_FD, descriptors.SIGNALS_FD]
    if setup.launcher:
        keep.append(descriptors.CHANNEL_FD)
    if setup.ready_fd is not None:
        keep.append(descriptors.READY_FD)
    if setup.pid_file:
        keep.append(setup.pid_file.held)
    keep += setup.notifier.settle()
    if setup.monitor:
        keep += [setup.monitor.pidfd, setup.monitor.channel.fileno()]
        keep.append(setup.monitor.line.fileno())
    if setup.container:
        keep += setup.container.descriptors
    if setup.target and setup.target.process is not None:
        keep.append(setup.target.process)
    if setup.target and setup.target.watched is not None:
        keep.append(setup.target.watched.table)
    keep += [fd for _, fd in setup.target_listeners]
    keep += (*setup.copies.values(), *setup.planner.sink.fds.values())
    keep += [one.fileno() for one in (setup.control, setup.metrics, setup.terminal) if one]
    keep += [asker.fileno() for asker in setup.askers.values()]
    return keep
