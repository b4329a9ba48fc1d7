# SPDX-License-Identifier: GPL-2.0-or-later
"""Listeners in the service manager's keeping, for when hardsplice is restarted: those that options
ask for, which it is given in set-up, and those of ports that are added at run time, which come back
as such. Where it keeps none, the latter are gone after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hardsplice.ipc.channel import CROWDED_HINT
from hardsplice.ipc.sd_notify import Notifier
from hardsplice.model.direction import Direction
from hardsplice.model.ports import Forward, overlap
from hardsplice.monitor.registry import Port, Source
from hardsplice.net import listeners
from hardsplice.net.inherited import added_name, stored_name
from hardsplice.telemetry.log import Level

if TYPE_CHECKING:
    from hardsplice.app.setup import Setup


class Store:
    """What the service manager keeps of ports, by their numbers."""

    def __init__(
        self, notifier: Notifier, room: int, kept: dict[int, str], tell: Callable[[str], None]
    ) -> None:
        """It keeps ``room`` listeners, and has those in ``kept``, each with its name."""
        self._notifier = notifier
        self._room = room
        self._kept = kept
        self._tell = tell

    def added(self, port: Port, fd: int) -> None:
        """A port was added, with this listener."""
        if port.source is not Source.CONTROL or not self._room:
            return
        if len(self._kept) >= self._room:
            self._tell(f"{_what(port)}: raise FileDescriptorStoreMax=")
            return
        name = added_name(port.direction, port.forward)
        if self._notifier.keep(name, fd):
            self._kept[port.id] = name
        else:
            self._tell(_what(port))

    def ports(self) -> Sequence[int]:
        """The numbers of the ports whose listeners it keeps."""
        return tuple(self._kept)

    def removed(self, port_id: int) -> None:
        """A port was removed."""
        name = self._kept.pop(port_id, None)
        if name is not None:
            self._notifier.drop(name)


def _what(port: Port) -> str:
    where = f"{listeners.describe(port.forward)} {port.direction.listens}"
    return f"the service manager does not keep the listener of {where}"


def sort_out(setup: Setup) -> list[tuple[Direction, Forward]]:
    """End what was kept and is not asked for any more. What was added at run time before the
    restart, and may come back: ports may be added now, too, and no option is in the way.
    """
    options = setup.options
    asked = [(one, forward) for one in Direction for forward in options.forwards(one)]
    by_port: dict[tuple[Direction, int], list[Forward]] = {}
    for direction, forward in asked:
        by_port.setdefault((direction, forward.port), []).append(forward)
    known = setup.passed.added(options.families) if options.control is not None else []
    back = [
        (direction, forward)
        for direction, forward in known
        if not any(overlap(one, forward) for one in by_port.get((direction, forward.port), ()))
    ]
    setup.passed.end_others([*asked, *back])
    return back


def bring_back(setup: Setup, added: Sequence[tuple[Direction, Forward]]) -> None:
    """Forward again what was ``added`` before the restart."""
    setup.added = {one: len(setup.options.forwards(one)) for one in Direction}
    for direction, forward in added:
        now = setup.options
        if direction is Direction.INBOUND:
            setup.options = replace(now, inbound=(*now.inbound, forward))
        else:
            setup.options = replace(now, outbound=(*now.outbound, forward))
    first = setup.added[Direction.INBOUND]
    opened = listeners.open_listeners(
        setup.options.inbound[first:],
        setup.host_families,
        Direction.INBOUND.listens,
        setup.kept(Direction.INBOUND, setup.host_families),
        optional_from=0,
    )
    setup.host_listeners += [(first + index, fd) for index, fd in opened]


def keep(setup: Setup) -> Store:
    """Have the service manager keep the listeners that are ours, and no other ones."""
    opened: dict[Direction, Sequence[tuple[int, int]]]
    opened = {Direction.INBOUND: setup.host_listeners, Direction.OUTBOUND: setup.target_listeners}
    names: dict[int, str] = {}
    current = []
    for direction, listening in opened.items():
        for index, fd in listening:
            name = _name(setup, direction, index)
            if name is not None:
                names[setup.planner.first(direction) + index] = name
                current.append((name, fd))
    room = setup.manager.keeps
    left_out, unsent = setup.passed.hand_over(setup.notifier, current, room)
    _tell(setup, opened, len(current), left_out, unsent)

    def tell(text: str) -> None:
        setup.log.limited(Level.WARNING, "store", text)

    return Store(setup.notifier, room, dict(list(names.items())[:room]), tell)


def _name(setup: Setup, direction: Direction, index: int) -> str | None:
    """The name under which a listener is kept; None for one of a socket unit."""
    forward = setup.options.forwards(direction)[index]
    if index >= setup.added[direction]:
        return added_name(direction, forward)
    if direction is Direction.INBOUND and index >= setup.passed_first:
        return None
    return stored_name(direction, setup.free.asked(setup.options, direction, index))


def _tell(
    setup: Setup,
    opened: dict[Direction, Sequence[tuple[int, int]]],
    number: int,
    left_out: int,
    unsent: int,
) -> None:
    """Say what is not as it should be."""
    for direction, listening in opened.items():
        there = {index for index, _ in listening}
        forwards = setup.options.forwards(direction)
        for index in range(setup.added[direction], len(forwards)):
            if index not in there:
                where = f"{listeners.describe(forwards[index])} {direction.listens}"
                text = f"{where}, which was added before the restart, could not be had again"
                setup.log.line(Level.WARNING, text)
    if unsent:
        text = f"{unsent} of {number} listeners could not be given to the service manager"
        setup.log.line(Level.WARNING, f"{text} to keep: {CROWDED_HINT}")
    if left_out and setup.manager.keeps:
        text = f"the service manager does not keep {left_out} of {number} listeners"
        setup.log.line(Level.WARNING, f"{text}: raise FileDescriptorStoreMax=")
