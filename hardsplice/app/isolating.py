# SPDX-License-Identifier: GPL-2.0-or-later
"""The stage *isolate* of the process that becomes the host monitor: which of sandbox/steps.py's
steps it takes, and which descriptors it keeps. The namespace monitor's is in monitor/namespace.py.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Sequence
from functools import partial

from hardsplice.app.confining import confinement
from hardsplice.app.entering import Entered
from hardsplice.app.filters import Programs
from hardsplice.app.opening import Opened
from hardsplice.app.progress import Progress
from hardsplice.command import environment
from hardsplice.ipc import descriptors
from hardsplice.kernel import ids, prctl
from hardsplice.kernel.record import NamedTuple
from hardsplice.model import roles
from hardsplice.model.direction import Direction
from hardsplice.model.errors import reason_of
from hardsplice.monitor.plan import Host
from hardsplice.sandbox import rights, steps
from hardsplice.sandbox.address_book import SEALED

READY_ROOM = 1 << 20  # bytes: more than the lines of all ports take
ONLY_WRITTEN = "read nothing from where messages go"


class Isolated(NamedTuple):
    """What the stage leaves: what is not in force."""

    lacking: Sequence[str]  # layers that this kernel lacks, here or in all processes
    unsealed: Sequence[str]  # reported only on request: the filter enforces the same


def lock(
    opened: Opened, programs: Programs, entered: Entered, host: Host, progress: Progress
) -> Isolated:
    """Lock this process down, as the host monitor. HardspliceError where that can't be done."""
    numbered, book = opened.numbered, entered.planner.books[Direction.OUTBOUND]
    prctl.set_name(roles.HOST.name)
    environment.forget()
    unsealed = book.open()
    book.pin(is_writer=True)
    if numbered.ready is not None:
        descriptors.move(numbered.ready, descriptors.READY_FD)
    kept = _kept(opened, entered, host, has_launcher=progress.launcher is not None)
    descriptors.null_standard_streams((0, 1))
    host.log.settle()
    own = confinement(opened, Direction.OUTBOUND, programs.of(roles.HOST))
    begun = own.begin(progress.say)
    descriptors.keep((descriptors.RULESET_FD, *kept), numbered.first_flow)
    ruleset = own.ruleset(entered.planner.sink.port, scoped=False)
    needs_user_namespace = not (ids.is_real_root() and rights.may_make_namespaces())
    if opened.options.log_file is None:  # which is read again when it is full
        reopen = partial(descriptors.write_only, descriptors.LOG_FD)
        begun.run([steps.Step(ONLY_WRITTEN, reopen, reason_of)])
    limit = _file_limit(host.log.file_limit, has_ready_fd=numbered.ready is not None)
    begun.run(
        [
            *steps.leaving_steps(new_user_namespace=needs_user_namespace, user=own.user),
            *steps.first_steps(limit),
            *steps.rights_steps(own.user, own.last_capability, ruleset),
        ]
    )
    if ruleset is not None:
        os.close(ruleset)
    opened.before.parent.check_again()
    begun.run([steps.filter_step(own.program)])
    lacking = (*entered.lacking, *begun.lacking)
    return Isolated(lacking, (f"{SEALED}: {unsealed}",) if unsealed else ())


def _file_limit(limit: int, *, has_ready_fd: bool) -> int:
    """The largest file that this process still has to write, in bytes; -1 for any. The log's is
    ``limit``. --ready-fd may lead to one, as where a shell sends standard output there.
    """
    if not has_ready_fd or limit == resource.RLIM_INFINITY:
        return limit
    found = os.fstat(descriptors.READY_FD)
    if not stat.S_ISREG(found.st_mode):
        return limit
    wanted = max(limit, found.st_size + READY_ROOM)
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)


def _kept(opened: Opened, entered: Entered, host: Host, *, has_launcher: bool) -> list[int]:
    """The descriptors that the host monitor serves with."""
    files = opened.files
    keep = [descriptors.LOG_FD, descriptors.SIGNALS_FD]
    if has_launcher:
        keep.append(descriptors.CHANNEL_FD)
    if opened.numbered.ready is not None:
        keep.append(descriptors.READY_FD)
    if files.pid:
        keep.append(files.pid.held)
    keep += opened.notifier.settle()
    if opened.numbered.exit is not None:
        keep.append(opened.numbered.exit)
    if files.service:
        keep += files.service.descriptors
    if host.namespace_monitor:
        keep += host.namespace_monitor.descriptors
    if entered.container:
        keep += entered.container.descriptors
    if host.served.process is not None:
        keep.append(host.served.process)
    if host.served.watched is not None:
        keep.append(host.served.watched.table)
    keep += [one.fd for one in entered.listeners]
    keep += (*entered.copies.values(), *entered.planner.sink.fds.values())
    keep += [one.fileno() for one in (files.control, files.metrics, host.terminal) if one]
    keep += [one.diag_socket.fileno() for one in host.watched.values()]
    return keep
