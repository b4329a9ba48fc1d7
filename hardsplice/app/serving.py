# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of the host monitor and the control socket, from the results of the stages."""

from __future__ import annotations

import os

from hardsplice.app.entering import Entered
from hardsplice.app.opening import Opened
from hardsplice.app.options import Options
from hardsplice.ipc import descriptors
from hardsplice.kernel import signals, socketcalls
from hardsplice.kernel.hints import TYPE_CHECKING
from hardsplice.model.direction import Direction
from hardsplice.model.errors import printable, quote
from hardsplice.monitor import departure
from hardsplice.monitor.autoforward import Watched
from hardsplice.monitor.effects import Effects
from hardsplice.monitor.plan import Host
from hardsplice.telemetry.flow_log import Traffic
from hardsplice.telemetry.log import Log

if TYPE_CHECKING:
    from hardsplice.command.container import Container
    from hardsplice.command.terminal import Terminal
    from hardsplice.control.host import Control
    from hardsplice.monitor.plan import CommandMaker


def host_of(opened: Opened, entered: Entered, log: Log) -> Host:
    """What the host monitor works with. From here on it gets signals as records."""
    options, planner, inside = entered.listening.options, entered.planner, entered.inside
    taken = signals.take(has_command=entered.container is not None)
    descriptors.move(taken, descriptors.SIGNALS_FD)
    diag_sockets = {
        Direction.OUTBOUND: opened.diag_socket,
        Direction.INBOUND: inside.diag_socket if inside else None,
    }
    return Host(
        log=log,
        served=departure.placed(entered.served),
        quit_with_served=options.netns_quit,
        exit=opened.numbered.exit,
        ports=entered.ports,
        first_free=options.next_number,
        dynamic=options.dynamic,
        effects=_effects(opened, entered) if options.dynamic else None,
        watched={
            direction: Watched(options.auto(direction), diag_socket)
            for direction, diag_socket in diag_sockets.items()
            if diag_socket is not None
        },
        versions=options.versions,
        check_room=planner.check_room,
        signals=descriptors.SIGNALS_FD,
        terminal=opened.terminal,
        namespace_monitor=inside.child if inside else None,
        command=_command_of(entered.container, opened.terminal, log),
        plans=[
            one.plans(opened.families)
            for one in planner.drafts(Direction.OUTBOUND, entered.listeners)
        ],
        traffic=[
            Traffic(direction, stats, protocol)
            for (direction, protocol), stats in planner.stats.items()
        ],
        log_flows=options.log_flows,
        drain=options.drain,
        store=entered.store if opened.files.control else None,
        notifier=opened.notifier,
        watchdog=opened.manager.watchdog,
    )


def _command_of(
    container: Container | None, terminal: Terminal | None, log: Log
) -> CommandMaker | None:
    """What makes the host monitor's side of COMMAND, of which nothing is imported otherwise."""
    if container is None:
        return None
    from hardsplice.monitor.command import Command

    return lambda loop, above: Command(container, terminal, loop, log, above)


def _effects(opened: Opened, entered: Entered) -> Effects:
    """What ports that change are made with."""
    inside, planner = entered.inside, entered.planner
    return Effects(
        planner.books,
        {Direction.INBOUND: opened.families, Direction.OUTBOUND: inside.families if inside else ()},
        entered.ports,
        entered.copies,
        inside.namespace if inside else None,
        planner.sink,
    )


def control_of(opened: Opened, entered: Entered, began: float) -> Control | None:
    """What the control socket is served with, if there is to be one; nothing of what serves it is
    imported otherwise. The start ``began`` then, in CLOCK_MONOTONIC seconds.
    """
    files, container, inside = opened.files, entered.container, entered.inside
    if files.control is None:
        return None
    from hardsplice.control.host import Control
    from hardsplice.control.server import Admission

    options = opened.options
    listener = files.control.fileno()
    namespace = inside.namespace if inside and options.control_from_namespace else None
    return Control(
        listener=listener,
        metrics=files.metrics.fileno() if files.metrics else None,
        # Root's ID means root if root started us; in a namespace of our own it is not mapped.
        admission=Admission(
            frozenset({0, os.geteuid()}), socketcalls.namespace_cookie(listener), namespace
        ),
        versions=options.versions,
        served=quote(container.command) if container else entered.served.name,
        served_pid=container.init if container else options.pid,
        label=label(options, container.command if container else ""),
        began=began,
    )


def label(options: Options, command: str) -> str:
    """The name of the namespace in metrics: as the options name it."""
    if options.netns is not None:
        return printable(options.netns.removeprefix("/run/netns/"))
    return printable(command) if options.pid is None else str(options.pid)
