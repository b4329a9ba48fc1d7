# SPDX-License-Identifier: GPL-2.0-or-later
"""Log lines about ports and about what relays report."""

from __future__ import annotations

from collections.abc import Callable

from hardsplice.ipc.messages import Record
from hardsplice.model.direction import Direction, GroupKey
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward
from hardsplice.monitor.notes import in_words
from hardsplice.telemetry.log import Level, Log


class EventLog:
    """Finds the words."""

    def __init__(self, log: Log, find: Callable[[int], Forward | None]) -> None:
        """``find`` has the port with a number, if it is still there."""
        self._log = log
        self._find = find

    def trouble(self, failure: HardspliceError) -> None:
        """Something about ports went wrong that those who asked for them may not be there to hear
        of.
        """
        hint = f": {failure.hint}" if failure.hint else ""
        self._log.limited(Level.WARNING, ("ports", failure.verb), f"{failure}{hint}")

    def of_port(self, failure: HardspliceError) -> None:
        """A port that auto found can't be had. Nobody asked for it by name: it is said once, and
        of many with the same reason at the same moment only the first.
        """
        self._log.limited(Level.INFO, ("auto", failure.reason), f"auto: {failure}")

    def where(self, direction: Direction, port_id: int) -> str:
        """The port with this number as lines name it, where the number is not made up."""
        port = self._find(port_id)
        return port.name if port and port.direction is direction else "a port"

    def write(self, group: GroupKey, record: Record) -> None:
        """A note of a relay of that group, or of its supervisor's."""
        where = self.where(group[0], record.index)
        level, line = in_words(group, where, record.small, record.detail, record.text)
        if level is Level.TRACE:
            self._log.line(level, line)  # each of them was asked for
        else:
            self._log.limited(level, (group, record.small), line)
