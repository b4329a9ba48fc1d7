# SPDX-License-Identifier: GPL-2.0-or-later
"""The listeners that set-up has opened, and their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hardsplice.app.free_ports import FreePorts
from hardsplice.app.options import Options
from hardsplice.ipc import descriptors
from hardsplice.model.direction import Direction
from hardsplice.monitor.registry import Port, Source

Opened = Sequence[tuple[int, int]]
"""A direction's: the index of the forward, and the descriptor."""


class Listening(NamedTuple):
    """What is listened on. The forwards of a direction stand in this order: those that options
    name; inbound, those whose listeners a socket unit passed; those that were added at run time
    before a restart.
    """

    options: Options  # with all of them, and the numbers that were chosen for free ports
    free: FreePorts
    passed_first: int  # the index of the first inbound one that a socket unit passed
    added_first: Mapping[Direction, int]  # of the first ones that were added before a restart
    opened: Mapping[Direction, Opened]

    def ports(self) -> list[Port]:
        """The ports that are listened on."""
        return [
            Port(
                self.options.first_number(direction) + index,
                direction,
                self.options.forwards(direction)[index],
                Source.CONTROL if index >= self.added_first[direction] else Source.OPTION,
            )
            for direction, opened in self.opened.items()
            for index, _ in opened
        ]


def in_places(opened: Opened) -> list[tuple[int, int]]:
    """Put a direction's listeners in the places that filters know them by."""
    placed = []
    for place, (index, fd) in enumerate(opened, descriptors.FIRST_LISTENER):
        descriptors.move(fd, place)
        placed.append((index, place))
    return placed
