# SPDX-License-Identifier: GPL-2.0-or-later
"""Listeners across a restart, in set-up: which of those that the service manager kept are taken
again, and which ones it keeps from now on (monitor/stored.py has what comes after lock-down).
"""

from __future__ import annotations

from collections.abc import Sequence

from hardsplice.app.listening import Listening, Opened
from hardsplice.app.options import Options
from hardsplice.ipc.channel import CROWDED_HINT
from hardsplice.ipc.sd_notify import Notifier
from hardsplice.model.direction import Direction
from hardsplice.model.forward import Forward, overlap
from hardsplice.monitor.stored import Store
from hardsplice.net import listeners
from hardsplice.net.inherited import Passed, added_name, stored_name
from hardsplice.telemetry.log import Level, Log

Added = Sequence[tuple[Direction, Forward]]


def sort_out(options: Options, passed: Passed) -> Added:
    """End what was kept and is no longer requested. Returns what was added at run time before the
    restart, and may come back: ports may be added now, too, and no option conflicts.
    """
    asked = [(one, forward) for one in Direction for forward in options.forwards(one)]
    by_port: dict[tuple[Direction, int], list[Forward]] = {}
    for direction, forward in asked:
        by_port.setdefault((direction, forward.port), []).append(forward)
    known = passed.added(options.families) if options.control is not None else []
    back = [
        (direction, forward)
        for direction, forward in known
        if not any(overlap(one, forward) for one in by_port.get((direction, forward.port), ()))
    ]
    passed.end_others([*asked, *back])
    return back


def bring_back(
    options: Options, added: Added, passed: Passed, families: Sequence[int]
) -> tuple[Options, Opened]:
    """Forward again what was ``added`` before the restart: the options with that, and those of its
    listeners that are on the host, which has these ``families``.
    """
    first = len(options.inbound)
    for one in Direction:
        more = (forward for direction, forward in added if direction is one)
        options = options.with_forwards(one, (*options.forwards(one), *more))
    opened = listeners.open_listeners(
        options.inbound[first:],
        families,
        Direction.INBOUND.listens,
        lambda forward: passed.take(Direction.INBOUND, forward, families),
        optional_from=0,
    )
    return options, [(first + index, fd) for index, fd in opened]


def keep(listening: Listening, passed: Passed, notifier: Notifier, room: int, log: Log) -> Store:
    """Have the service manager keep the listeners that are ours, as far as it has ``room``, and no
    other ones.
    """
    names: dict[int, str] = {}
    current = []
    for direction, opened in listening.opened.items():
        for index, fd in opened:
            name = _name(listening, direction, index)
            if name is not None:
                names[listening.options.first_number(direction) + index] = name
                current.append((name, fd))
    left_out, unsent = passed.hand_over(notifier, current, room)
    _tell_of_lost(listening, log)
    if unsent:
        text = f"{unsent} of {len(current)} listeners could not be given to the service manager"
        log.line(Level.WARNING, f"{text} to keep: {CROWDED_HINT}")
    if left_out and room:
        text = f"the service manager does not keep {left_out} of {len(current)} listeners"
        log.line(Level.WARNING, f"{text}: raise FileDescriptorStoreMax=")

    def tell(text: str) -> None:
        log.limited(Level.WARNING, "store", text)

    return Store(notifier, room, dict(list(names.items())[:room]), tell)


def _name(listening: Listening, direction: Direction, index: int) -> str | None:
    """The name under which a listener is kept; None for one of a socket unit."""
    options = listening.options
    if index >= listening.added_first[direction]:
        return added_name(direction, options.forwards(direction)[index])
    if direction is Direction.INBOUND and index >= listening.passed_first:
        return None
    return stored_name(direction, listening.free.as_asked(options, direction, index))


def _tell_of_lost(listening: Listening, log: Log) -> None:
    """Report which ports did not come back."""
    for direction, opened in listening.opened.items():
        there = {index for index, _ in opened}
        forwards = listening.options.forwards(direction)
        for index in range(listening.added_first[direction], len(forwards)):
            if index not in there:
                where = f"{listeners.describe(forwards[index])} {direction.listens}"
                text = f"{where}, which was added before the restart, could not be had again"
                log.line(Level.WARNING, text)
