# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay's side of the flow table: it opens a row for each flow that is accepted, keeps it
current, and closes it. If no option asks for flows there is no flow writer.

While a flow has a row its bytes are counted there, by the same statement that counts them for the
relay otherwise: `Flow.tally` says in which words. So the flow writer has nothing to do when bytes
move.
"""

from __future__ import annotations

from collections.abc import Callable

from hardsplice.kernel import socketcalls
from hardsplice.model.protocol import Protocol
from hardsplice.relay.flow_rows import FlowRows, Report
from hardsplice.relay.tcp.rules import CLIENT, Flow
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.flow_table import End, Packed, State

_TCP = Protocol.TCP.number


class FlowWriter(FlowRows):
    """The rows of one relay's flows."""

    def opened(self, flow: Flow, client: Packed) -> None:
        """A client was accepted: begin a row, as long as there are any."""
        at = self._take()
        if at is None:
            return
        target = socketcalls.endpoint(flow.route[0].sockaddr)
        self._table.open(at, flow.port_id, _TCP, client, target, self._now())
        flow.tally = at

    def connected(self, flow: Flow) -> None:
        """A target was reached; the flow's plan still says which."""
        if flow.tally:
            self._table.aim(flow.tally, socketcalls.endpoint(flow.route[flow.attempt].sockaddr))
            self._table.mark(flow.tally, State.ESTABLISHED)
            count.count_latency(self._counters, self._now() - self._table.started(flow.tally))

    def half_closed(self, flow: Flow) -> None:
        """One direction has ended, the other goes on."""
        if flow.tally:
            self._table.mark(flow.tally, State.HALF_CLOSED)

    def closed(self, flow: Flow, end: End | None) -> None:
        """The flow is over; without ``end`` one of its sides was reset."""
        at = flow.tally
        if not at:
            return
        flow.tally = count.BYTES
        if end is None:
            end = End.CLIENT_RESET if flow.failed[CLIENT] else End.TARGET_RESET
        if flow.route:  # not reached: show what was tried last
            last = min(flow.attempt, len(flow.route) - 1)
            self._table.aim(at, socketcalls.endpoint(flow.route[last].sockaddr))
        self._give_back(at, end)


def flow_writer_of(
    stats: count.Stats, now: Callable[[], float], report: Report | None
) -> FlowWriter | None:
    """The flow writer of a relay, if there is a table to keep."""
    return None if stats.flows is None else FlowWriter(stats.count, stats.flows, now, report)
