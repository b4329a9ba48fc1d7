# SPDX-License-Identifier: GPL-2.0-or-later
"""From a parsed command line to a running, locked-down tree of processes: the stages, in the order
that is the security argument.

    parse    nothing privileged, nothing opened (app/options.py)
    open     descriptors of namespaces, log, PID file; listeners on the host
    compile  the seccomp programs, so that nobody needs libseccomp later
    probe    how large pipes may be
    enter    COMMAND's namespaces are made; the target monitor is forked, joins the target's,
             binds its listeners and hands them over
    isolate  each monitor gives up all that it has (sandbox/steps.py), with its filter last
    fork     each monitor forks its relays, which give up the rest
    ready    and only now that is said

Everything up to isolate may fail with a message and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from hardsplice.app import filters, host_lockdown
from hardsplice.app.free_ports import FreePorts
from hardsplice.app.options import Mode, Options, Verbosity
from hardsplice.app.pidfile import PidFile
from hardsplice.app.plans import Planner
from hardsplice.command import container, terminal
from hardsplice.command.caller import Caller
from hardsplice.ipc import descriptors, sd_notify
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.child import Child
from hardsplice.ipc.messages import Kind, Record
from hardsplice.ipc.sd_notify import Notifier
from hardsplice.kernel import signals
from hardsplice.model.direction import Direction
from hardsplice.model.errors import Failure, printable, quote, text_of
from hardsplice.model.identity import RunAs
from hardsplice.model.ports import Forward
from hardsplice.monitor import departure, loops, namespace, stored
from hardsplice.monitor.autoforward import Watched
from hardsplice.monitor.effects import Desk
from hardsplice.monitor.host import HostMonitor
from hardsplice.monitor.plan import Host, Namespace
from hardsplice.monitor.registry import Port
from hardsplice.net import listeners, namespaces, sockdiag
from hardsplice.net.inherited import Passed
from hardsplice.relay.tcp.pipes import probe_size
from hardsplice.relay.tcp.seam import Kernel
from hardsplice.sandbox import landlock, steps, users
from hardsplice.telemetry.flow_log import Traffic
from hardsplice.telemetry.log import Level, Log, open_file

if TYPE_CHECKING:
    from hardsplice.control.host import Control
    from hardsplice.control.socketfile import SocketFile

LEVELS = {
    Verbosity.QUIET: Level.ERROR,
    Verbosity.NORMAL: Level.INFO,
    Verbosity.DEBUG: Level.DEBUG,
    Verbosity.TRACE: Level.TRACE,
}


class Setup:
    """One start, stage by stage. What a stage opened, the attribute beside it holds."""

    def __init__(
        self,
        options: Options,
        launcher: Channel | None,
        began: float,
        caller: Caller,
    ) -> None:
        self.options = options
        self.caller = caller
        self.is_ready = False
        self.launcher = launcher
        self.began = began
        journal = os.environ.get("JOURNAL_STREAM", "")
        self.log = Log(LEVELS[options.verbosity], options.log_format, journal)
        self.user: RunAs | None = None
        self.terminal: terminal.Terminal | None = None
        self.target: namespaces.Target | None = None
        self.pid_file: PidFile | None = None
        self.control: SocketFile | None = None
        self.metrics: SocketFile | None = None
        self.container: container.Container | None = None
        self.monitor: Child | None = None
        self.undoing = contextlib.ExitStack()
        self.first_flow = 0  # the first descriptor behind the places of listeners
        self.host_listeners: list[tuple[int, int]] = []
        self.copies: dict[int, int] = {}  # of listeners, by the numbers of their ports
        self.target_families: Sequence[int] = ()
        self.target_namespace: int | None = None  # socketcalls.namespace_cookie
        self.target_listeners: list[tuple[int, int]] = []
        self.free = FreePorts()
        self.passed_first = 0  # index of the first inbound forward whose listener was passed to us
        self.added = dict.fromkeys(Direction, 0)  # ... and of those added before a restart
        self.ports: list[Port] = []
        self.askers: dict[Direction, socket.socket] = {}
        self.pipe_size = 0
        self.ready_fd: int | None = None
        self.notifier = Notifier(None)
        self.store: stored.Store
        self.locked = False  # lock-down has begun
        self.missing: list[str] = []  # what lock-down has to do without, here and in the monitors
        self.unsealed: list[str] = []  # and what is told only to who asks: the filter says the same

    def say(self, text: str) -> None:
        """Tell what is being done, for --debug."""
        self.log.line(Level.DEBUG, text)

    def _stage(self, name: str) -> None:
        self.say(f"[{1000 * (time.monotonic() - self.began):6.1f} ms] stage {name}")

    # --- stages -----------------------------------------------------------------------------------

    def run(self) -> int:
        """All stages, then serve; the exit status. Failure leaves nothing behind."""
        try:
            self.open()
            self.compile()
            self.probe()
            self.enter()
            host = self.gather()
            control = self._control()
            if self.pid_file:
                self.pid_file.write()
            if not self.options.foreground:
                self.free.tell_people(self.log)
            self.isolate()
            return HostMonitor(host, lambda monitor: self.ready(monitor, control)).run()
        except BaseException:
            self.undo()
            raise

    def report(self, failure: Failure) -> None:
        """Say what went wrong: to the launcher while it waits in front of us, else in the log."""
        self.notifier.status(str(failure))
        if self.launcher and not self.options.foreground:
            self.launcher.send(Record(Kind.FATAL, text=text_of(failure)))
            return
        for text in (str(failure), failure.hint):
            if text:
                self.log.last_words(text)

    def open(self) -> None:
        """Open what needs the rights and the file system that this process is about to lose."""
        self._stage("open")
        options = self.options
        # What the service manager says is for the process that it started.
        self.manager = sd_notify.manager_of(
            os.environ, os.getppid() if self.launcher else os.getpid()
        )
        sd_notify.forget(os.environ)
        self.user = users.own_user(options.runas)
        if options.runas is not None:
            self.options = options = replace(options, runas=self.user)
        self._number_descriptors()
        if options.foreground:
            self.terminal = terminal.Terminal.open()
        self.last_capability = steps.read_last_capability()
        self.parent = steps.Parent.now()
        self.landlock = landlock.support()
        if options.mode is Mode.PID:
            assert options.pid is not None
            self.target = namespaces.open_process(options.pid, netns_only=options.netns_only)
        elif options.mode is Mode.NETNS:
            assert options.netns is not None
            self.target = namespaces.open_path(
                options.netns, options.userns, netns_only=options.netns_only
            )
            self.target = departure.prepared(self.target, self.log, ends=options.netns_quit)
        if options.log_file is not None:
            self.log.to_file(open_file(options.log_file), options.log_size)
        elif not options.foreground:
            self.log.to_syslog()
        self.notifier = Notifier(self.manager.notify)
        if options.pid_file is not None:
            self.pid_file = PidFile(options.pid_file)
        if options.control is not None:
            from hardsplice.control.socketfile import SocketFile

            self.control = SocketFile(options.control)
            if options.metrics is not None:
                self.metrics = SocketFile(options.metrics, mode=0o666)
        if options.outbound_auto:
            self.askers[Direction.OUTBOUND] = sockdiag.open_socket()
        self.host_families = listeners.usable_families(options.families)
        added = stored.sort_out(self)
        self.host_listeners = listeners.open_listeners(
            options.inbound,
            self.host_families,
            Direction.INBOUND.listens,
            self.kept(Direction.INBOUND, self.host_families),
        )
        options = self.options = self.free.settle(options, Direction.INBOUND, self.host_listeners)
        inherited = self.passed.inherit(options.inherited)
        self.passed_first = len(options.inbound)
        self.host_listeners += enumerate((fd for _, fd in inherited), self.passed_first)
        taken = (forward for forward, _ in inherited)
        self.options = replace(options, inbound=(*options.inbound, *taken))
        stored.bring_back(self, added)
        self.host_listeners = self.settle(self.host_listeners)
        for name in self.passed.unclaimed():
            text = f"listener {quote(name)} was passed, but no -t inherit takes it"
            self.log.line(Level.WARNING, text)

    def _number_descriptors(self) -> None:
        """Give each number below the first flow's its meaning: what is opened gets one above."""
        options = self.options
        passed = self.manager.passed
        listening = max(len(options.inbound), len(options.outbound)) + len(passed)
        self.file_limits = descriptors.raise_limit()
        self.first_flow = first = descriptors.first_flow(
            listening, self.file_limits[1], is_dynamic=bool(options.dynamic)
        )
        self.passed = Passed(passed, first)
        if options.ready_fd is not None:
            self.ready_fd = descriptors.take_ready(options.ready_fd, first)
        self.aside = descriptors.set_aside(first)  # what is left is the caller's, for COMMAND
        if self.launcher:
            self.launcher.move_to(descriptors.CHANNEL_FD)
        descriptors.reserve(first, (descriptors.CHANNEL_FD,) if self.launcher else ())

    def place(self, number: int) -> int:
        """The descriptor of a direction's listener, counted from 0."""
        return descriptors.FIRST_LISTENER + number

    def settle(self, opened: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Put listeners in their places; (index of the forward, place) of each."""
        placed = [(index, self.place(number)) for number, (index, _) in enumerate(opened)]
        for (_, fd), (_, place) in zip(opened, placed, strict=True):
            descriptors.move(fd, place)
        return placed

    def kept(
        self, direction: Direction, families: Sequence[int]
    ) -> Callable[[Forward], int | None]:
        """What has the listeners of a direction that were kept while we were restarted."""
        return lambda forward: self.passed.take(direction, forward, families)

    def compile(self) -> None:
        """Compile the filters: libseccomp is needed in this process and now only."""
        self._stage("compile")
        self.programs = filters.compile_all(self.options, self.first_flow)

    def probe(self) -> None:
        """Find the pipe size."""
        self._stage("probe")
        self.pipe_size = probe_size(Kernel())
        self.say(f"pipes have {self.pipe_size} bytes")

    def enter(self) -> None:
        """Make COMMAND's namespaces if there is one, and send a monitor into the target's."""
        self._stage("enter")
        options = self.options
        # Before any fork, so that the host monitor can read what the inbound relays write.
        self.planner = Planner(
            options,
            self.pipe_size,
            self.first_flow,
            self.programs.book,
            self.programs.relays,
            has_ruleset=self.landlock.abi > 0,
            passed_first=self.passed_first,
            are_kept=self.manager.keeps > 0,
        )
        gc.collect()
        gc.freeze()
        if options.mode is Mode.COMMAND:
            self.container = container.for_command(self)
            self.target = self.container.target
        host_lockdown.confine_signals(self)
        if options.inbound or options.outbound or options.dynamic:
            self._start_target_monitor(self.target)
        self.options = self.free.settle(self.options, Direction.OUTBOUND, self.target_listeners)
        self.planner.options = self.options
        self.ports += self.planner.ports(Direction.INBOUND, self.host_listeners, self.added)
        self.ports += self.planner.ports(Direction.OUTBOUND, self.target_listeners, self.added)
        loops.refuse([(port.direction, port.forward) for port in self.ports])
        self.store = stored.keep(self)
        self._give_up_inbound()
        self.target_listeners = self.settle(self.target_listeners)
        self._keep_copies(Direction.OUTBOUND, self.target_listeners)

    def _start_target_monitor(self, target: namespaces.Target | None) -> None:
        """Send a monitor into the target's namespaces, and take what it listens on there."""
        assert target is not None
        options, planner = self.options, self.planner
        plan = Namespace(
            target=target,
            forwards=options.outbound,
            optional_from=self.added[Direction.OUTBOUND],
            passed=self.passed,
            versions=options.families,
            is_watched=bool(options.inbound_auto),
            is_dynamic=bool(options.dynamic),
            listeners=[fd for _, fd in self.host_listeners],
            relays=partial(planner.relays, Direction.INBOUND, self.host_listeners),
            stats=planner.stats[Direction.INBOUND],
            book=planner.books[Direction.INBOUND],
            first_flow=self.first_flow,
            confinement=host_lockdown.confinement(self, Direction.INBOUND, self.programs.target),
        )
        started = namespace.start(plan, self.log, self.undoing)
        self.monitor = started.child
        self.target_listeners = [*started.listeners]
        self.target_families = started.families
        self.target_namespace = started.namespace
        if started.asker is not None:
            self.askers[Direction.INBOUND] = started.asker

    def _give_up_inbound(self) -> None:
        """The target monitor has the inbound listeners."""
        self._keep_copies(Direction.INBOUND, self.host_listeners)
        descriptors.clear(place for _, place in self.host_listeners)
        self.host_listeners = []

    def _keep_copies(self, direction: Direction, opened: Sequence[tuple[int, int]]) -> None:
        """Where ports may change, keep each listener once more: it takes one to end it for good."""
        first = self.planner.first(direction)
        for index, fd in opened if self.options.dynamic else ():
            copy = descriptors.above(fd, self.first_flow, "a listener")
            self.copies[first + index] = copy

    def gather(self) -> Host:
        """What the host monitor works with."""
        options = self.options
        taken = signals.take(has_command=self.container is not None)
        descriptors.move(taken, descriptors.SIGNALS_FD)
        self.target = self.target and departure.placed(self.target)
        return Host(
            log=self.log,
            target=self.target,
            quit_with_target=options.netns_quit,
            ports=self.ports,
            first_free=self.planner.first(Direction.OUTBOUND) + len(options.outbound),
            dynamic=options.dynamic,
            desk=self._desk() if options.dynamic else None,
            watched={
                direction: Watched(options.auto(direction), asker)
                for direction, asker in self.askers.items()
            },
            versions=options.families,
            check_room=self.planner.check_room,
            signals=descriptors.SIGNALS_FD,
            terminal=self.terminal,
            monitor=self.monitor,
            container=self.container,
            plans=self.planner.relays(
                Direction.OUTBOUND, self.target_listeners, self.host_families
            ),
            traffic=[Traffic(one, self.planner.stats[one]) for one in Direction],
            log_flows=options.log_flows,
            drain=options.drain,
            store=self.store if self.control else None,
            notifier=self.notifier,
            watchdog=self.manager.watchdog,
            missing=self.missing,  # the target monitor's is added
        )

    def _desk(self) -> Desk:
        """What ports that change are made with."""
        families = {Direction.INBOUND: self.host_families, Direction.OUTBOUND: self.target_families}
        return Desk(
            self.planner.books,
            {one: families[one] for one in Direction},
            self.ports,
            self.copies,
            self.target_namespace,
            self.planner.sink,
        )

    def _control(self) -> Control | None:
        """Nothing of what serves the control socket is imported where there is none."""
        if self.control is None:
            return None
        from hardsplice.control import host

        return host.control_of(self)

    def isolate(self) -> None:
        """Lock the host monitor down."""
        self._stage("isolate")
        self.locked = True
        host_lockdown.lock_host_monitor(self)

    def ready(self, monitor: HostMonitor, control: Control | None) -> None:
        """All is bound and locked down: serve the control socket, and say so, to whoever asked to
        be told.
        """
        if control is not None:
            control.serve(monitor)
        # The target monitor's words are other people's, too.
        missing = list(dict.fromkeys(map(printable, self.missing)))
        for what in missing:
            self.log.line(Level.WARNING, f"not in force: {what}")
        for what in self.unsealed:
            self.log.line(Level.DEBUG, f"not in force: {what}")
        self._stage("ready")
        self.is_ready = True
        took = f"ready in {1000 * (time.monotonic() - self.began):.0f} ms"
        self.log.line(Level.DEBUG, took)
        self.free.log(self.log)
        if self.ready_fd is not None:
            self.free.tell_program(descriptors.READY_FD)
            descriptors.clear((descriptors.READY_FD,))
        if self.launcher:  # it exits now, or prints what --audit shows
            text = "\n".join([took, *missing, *self.unsealed])
            heard = self.launcher.send(Record(Kind.READY, text=text.encode()))
            if not heard and not self.options.foreground:
                raise Failure("go", "into the background", "the process that started it is gone")
            self.launcher.leave()
            self.launcher = None

    def undo(self) -> None:
        """Set-up failed: let go of all that it made. After lock-down a file can't be removed any
        more.
        """
        if self.pid_file and not self.locked:
            self.pid_file.remove()
        for one in (self.control, self.metrics):
            if one and not self.locked:
                one.remove()
        if self.container:
            self.container.end()
        self.undoing.close()
