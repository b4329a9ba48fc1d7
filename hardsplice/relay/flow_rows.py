# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of the flow table as a relay of either protocol keeps them: which are free, and how the end
of a flow is reported.

Nothing is formatted here. A flow's end is reported as the row itself, in one record; one that the
channel has no room for is counted, and the monitor says so.
"""

from __future__ import annotations

from collections.abc import Callable

from hardsplice.telemetry import counters as count
from hardsplice.telemetry.flow_table import End, FlowTable

Report = Callable[[End, bytes], bool]


class FlowRows:
    """The rows of one relay's flows."""

    def __init__(
        self,
        counters: memoryview,
        table: FlowTable,
        now: Callable[[], float],
        report: Report | None,
    ) -> None:
        """``report`` takes each flow's end and its row, and returns whether it could; None if no
        option asks for that.
        """
        self._counters = counters
        self._table = table
        self._now = now
        self._report = report
        self._unused = iter(table.positions())
        self._free: list[int] = []  # positions that were used and are free again

    def _take(self) -> int | None:
        """Where a new row goes, as long as there are any."""
        at = self._free.pop() if self._free else next(self._unused, None)
        if at is None:
            self._counters[count.UNLISTED] += 1
        return at

    def _give_back(self, at: int, end: End) -> None:
        """Close a row, and report it."""
        text = self._table.close(at, self._counters, self._now())
        self._free.append(at)
        if self._report and not self._report(end, text):
            self._counters[count.UNLOGGED] += 1
