# SPDX-License-Identifier: GPL-2.0-or-later
"""The stage *open*: all that needs the rights and the file system that this process is about to
lose.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

from hardsplice.app import numbering, restart
from hardsplice.app.listening import Listening, in_places
from hardsplice.app.options import Mode, Options
from hardsplice.app.pidfile import PidFile
from hardsplice.app.progress import Progress
from hardsplice.app.service import Besides, Service
from hardsplice.command.terminal import Terminal
from hardsplice.ipc import descriptors, sd_notify
from hardsplice.ipc.sd_notify import Manager, Notifier
from hardsplice.kernel.hints import TYPE_CHECKING
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction
from hardsplice.model.errors import quote
from hardsplice.model.forward import Forward
from hardsplice.model.identity import RunAs
from hardsplice.monitor import departure
from hardsplice.net import listeners, namespaces, sockdiag
from hardsplice.net.inherited import Passed
from hardsplice.net.namespaces import Served
from hardsplice.sandbox import landlock, steps, users
from hardsplice.telemetry.log import Level, Log, open_file

if TYPE_CHECKING:
    from hardsplice.control.socketfile import SocketFile


class Numbered(NamedTuple):
    """Descriptors, once each number below the first flow's has its meaning."""

    first_flow: int  # the first one behind the places of listeners
    limits: tuple[int, int]  # RLIMIT_NOFILE, soft and hard, as we were given it
    passed: Passed  # listeners of the service manager's
    ready: int | None  # --ready-fd
    exit: int | None  # --exit-fd
    aside: Mapping[int, int]  # COMMAND's: the number that each is to have, and has


class Before(NamedTuple):
    """How this process was before its lock-down."""

    user: RunAs | None  # the user that it will become; None: it doesn't change its user
    parent: steps.Parent
    last_capability: int  # the highest that this kernel knows
    landlock: landlock.Support


class Files(NamedTuple):
    """Files that were created, if options ask for them."""

    pid: PidFile | None
    control: SocketFile | None
    metrics: SocketFile | None
    service: Service | None  # a front-end's


class Opened(NamedTuple):
    """What the stage leaves."""

    manager: Manager  # what the service manager says
    notifier: Notifier  # the way to it
    numbered: Numbered
    before: Before
    terminal: Terminal | None  # the one that controls our session, if there is one
    served: Served | None  # the namespaces that there are; COMMAND's come later
    files: Files
    diag_socket: socket.socket | None  # to ask what is listened on here (-T auto)
    families: tuple[int, ...]  # that the host has
    listening: Listening  # on the host

    @property
    def options(self) -> Options:
        """The options, with all that this stage has found out of what they leave open."""
        return self.listening.options

    @property
    def has_control(self) -> bool:
        """Whether clients' requests are served."""
        return self.files.control is not None or self.files.service is not None


def open_all(
    options: Options,
    progress: Progress,
    undo: contextlib.ExitStack,
    besides: Besides | None = None,
) -> Opened:
    """Open it all; ``undo`` gets what removes files. HardspliceError where that can't be done."""
    # What the service manager says is for the process that it started.
    main = os.getppid() if progress.launcher else os.getpid()
    manager = sd_notify.manager_of(os.environ, main)
    sd_notify.forget(os.environ)
    user = users.own_user(options.runas)
    if options.runas is not None:
        options = options._replace(runas=user)
    ports = besides.ports if besides else 0
    numbered = _number_descriptors(options, manager, progress, ports)
    terminal = Terminal.open() if options.foreground else None
    last_capability = steps.read_last_capability()
    before = Before(user, steps.Parent.now(), last_capability, landlock.support())
    served = _served(options, progress.log)
    if options.log_file is not None:
        progress.log.to_file(open_file(options.log_file), options.log_size)
    elif not options.foreground:
        progress.log.to_syslog()
    notifier = Notifier(manager.notify)
    progress.report_to(notifier)
    files = _make_files(options, undo, besides)
    diag_socket = _diag_socket(options)
    families = listeners.usable_families(options.versions)
    return Opened(
        manager, notifier, numbered, before, terminal, served, files, diag_socket, families,
        _listen(options, families, numbered.passed, progress.log),
    )  # fmt: skip


def _diag_socket(options: Options) -> socket.socket | None:
    """What tells what is listened on here, where that is watched."""
    watched = {one.protocol for one in options.outbound_auto}
    return sockdiag.open_socket(watched) if watched else None


def _number_descriptors(
    options: Options, manager: Manager, progress: Progress, ports: int
) -> Numbered:
    """Give each number below the first flow's its meaning: what is opened gets one above. Where
    ports may change, there are places for so many ``ports`` that come later, at least.
    """
    limits = descriptors.raise_limit()
    first = numbering.first_flow(options, len(manager.passed), ports, limits[1])
    passed = Passed(manager.passed, first)
    ready = None
    if options.ready_fd is not None:
        ready = descriptors.take_ready(options.ready_fd, first)
    ended = None
    if options.exit_fd is not None:
        ended = descriptors.take_exit(options.exit_fd, first)
    aside = descriptors.set_aside(first)  # what is left is the caller's, for COMMAND
    if progress.launcher:
        progress.launcher.move_to(descriptors.CHANNEL_FD)
    descriptors.reserve(first, (descriptors.CHANNEL_FD,) if progress.launcher else ())
    return Numbered(first, limits, passed, ready, ended, aside)


def _served(options: Options, log: Log) -> Served | None:
    """The namespaces that are to be served, where there are some already."""
    if options.mode is Mode.COMMAND:
        return None
    if options.mode is Mode.PID:
        assert options.pid is not None
        return namespaces.open_process(options.pid, netns_only=options.netns_only)
    if options.mode is Mode.OWN:
        return namespaces.open_own()
    assert options.netns is not None
    served = namespaces.open_path(options.netns, options.userns, netns_only=options.netns_only)
    return departure.prepared(served, log, ends=options.netns_quit)


def _make_files(options: Options, undo: contextlib.ExitStack, besides: Besides | None) -> Files:
    pid_file = control = metrics = None
    if options.pid_file is not None:
        pid_file = PidFile(options.pid_file)
        undo.callback(pid_file.remove)
    if options.control is not None:
        from hardsplice.control.socketfile import SocketFile

        control = SocketFile(options.control)
        undo.callback(control.remove)
        if options.metrics is not None:
            metrics = SocketFile(options.metrics, mode=0o666)
            undo.callback(metrics.remove)
    return Files(pid_file, control, metrics, besides.make() if besides else None)


def _listen(options: Options, families: tuple[int, ...], passed: Passed, log: Log) -> Listening:
    """Listen on the host: take again what was kept, open the rest, take what was passed."""
    added = restart.sort_out(options, passed)

    def kept(forward: Forward) -> int | None:
        return passed.take(forward, families)

    opened = listeners.open_listeners(options.inbound, families, kept)
    inherited = passed.inherit(options.inherited, options.next_number)
    options = options.adding(one.forward for one in inherited)
    numbered = [
        forward._replace(id=number) for number, forward in enumerate(added, options.next_number)
    ]
    options = options.adding(numbered)
    here = [one for one in numbered if one.direction is Direction.INBOUND]
    opened += [*inherited, *listeners.open_listeners(here, families, kept)]
    placed = in_places(opened)
    for name in passed.unclaimed():
        text = f"listener {quote(name)} was passed, but no -t inherit and no -u inherit takes it"
        log.line(Level.WARNING, text)
    return Listening(options, {Direction.INBOUND: placed})
