# SPDX-License-Identifier: GPL-2.0-or-later
"""From a parsed command line to a running, locked-down tree of processes: the stages, in the order
that is the security argument. Each takes the results of those before it, and returns an immutable
value; so none can come too early. (These values are NamedTuples: defining a frozen dataclass takes
half a millisecond of every start.) With --debug each stage is reported when it begins.

    parse    nothing privileged, nothing opened (app/command_line.py)
    open     descriptors of namespaces, log, PID file; listeners on the host (app/opening.py)
    compile  the seccomp programs, so that libseccomp isn't needed later (app/filters.py)
    probe    how large pipes may be
    enter    COMMAND's namespaces are created; the namespace monitor is forked, joins those that are
             served, binds its listeners and passes them on (app/entering.py)
    isolate  each monitor gives up all that it has (sandbox/steps.py), with its filter last: the
             host monitor now (app/isolating.py), the namespace monitor as soon as it has passed
             its listeners on (monitor/namespace.py)
    fork     each monitor forks its relays, which give up the rest (monitor/supervisor.py)
    ready    only now readiness is reported (app/progress.py)

Everything up to isolate may fail with a message and leaves nothing behind.
"""

from __future__ import annotations

import contextlib

from hardsplice.app import entering, filters, free_ports, isolating, opening, serving
from hardsplice.app.filters import Programs
from hardsplice.app.options import Options
from hardsplice.app.progress import Progress
from hardsplice.app.service import Besides
from hardsplice.command.caller import Caller
from hardsplice.kernel import prctl
from hardsplice.model.errors import HardspliceError
from hardsplice.model.protocol import Protocol
from hardsplice.model.roles import RELAYS
from hardsplice.monitor.host import HostMonitor
from hardsplice.net import listeners
from hardsplice.relay import main as relay
from hardsplice.relay.tcp.pipes import probe_size
from hardsplice.relay.tcp.seam import Kernel


def prepare(options: Options) -> None:
    """Import what not every start needs."""
    if any(protocol is Protocol.UDP for _, protocol in options.groups):
        listeners.prepare()
        relay.prepare(Protocol.UDP)


def run(
    options: Options,
    caller: Caller,
    progress: Progress,
    besides: Besides | None = None,
    ahead: Programs | None = None,
) -> int:
    """All stages after the first, which returned ``options``; then serve, and what there is
    ``besides``. The filters may have been compiled ``ahead``. Returns the exit status. A
    HardspliceError leaves nothing behind.
    """
    with contextlib.ExitStack() as undo:
        files = undo.enter_context(contextlib.ExitStack())
        progress.stage("parse", at=progress.began)

        for direction, protocol in options.groups - set(RELAYS):
            option = direction.option(protocol)
            raise HardspliceError("use", option, f"there is no relay of {protocol.upper()}")
        prepare(options)
        progress.stage("open")
        opened = opening.open_all(options, progress, files, besides)

        progress.stage("compile")
        programs = filters.compile_all(
            opened.options,
            opened.numbered.first_flow,
            has_control=opened.has_control,
            ahead=ahead,
        )
        progress.say(f"libseccomp by {programs.library}, prctl by {prctl.PROVIDER}")

        progress.stage("probe")
        pipe_size = probe_size(Kernel())
        progress.say(f"pipes have {pipe_size} bytes")

        progress.stage("enter")
        entered = entering.enter(opened, programs, pipe_size, caller, progress, undo)
        host = serving.host_of(opened, entered, progress.log)
        control = serving.control_of(opened, entered, progress.began)
        free = entered.listening.free()
        if opened.files.pid:
            opened.files.pid.write()
        if not options.foreground:
            free_ports.print_to_stderr(free, progress.log)

        progress.stage("isolate")
        files.pop_all()  # from here on no file can be removed
        isolated = isolating.lock(opened, programs, entered, host, progress)

        progress.stage("fork")

        def ready(monitor: HostMonitor) -> None:
            if control is not None:
                control.serve(monitor)
            if opened.files.service is not None:
                opened.files.service.serve(monitor)
            progress.ready(
                monitor.lacking,
                isolated.unsealed,
                free,
                has_ready_fd=opened.numbered.ready is not None,
            )

        status = HostMonitor(host, isolated.lacking, ready).run()
        undo.pop_all()
        return status
