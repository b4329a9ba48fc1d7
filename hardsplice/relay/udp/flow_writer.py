# SPDX-License-Identifier: GPL-2.0-or-later
"""The datagram relay's side of the flow table. As in relay/tcp/flow_writer.py a flow's bytes are
counted in its row while it has one (`Flow.tally`), and without an option that asks for flows there
is no flow writer.
"""

from __future__ import annotations

from collections.abc import Callable

from hardsplice.kernel import socketcalls
from hardsplice.kernel.hints import TYPE_CHECKING
from hardsplice.model.protocol import Protocol
from hardsplice.relay.flow_rows import FlowRows, Report
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.flow_table import End, State

if TYPE_CHECKING:
    from hardsplice.relay.udp.table import Flow

_UDP = Protocol.UDP.number


class FlowWriter(FlowRows):
    """The rows of one relay's flows."""

    def opened(self, flow: Flow) -> None:
        """A client's first datagram has come."""
        at = self._take()
        if at is not None:
            client = socketcalls.endpoint(flow.key)
            target = socketcalls.endpoint(flow.target.sockaddr)
            self._table.open(at, flow.state.port_id, _UDP, client, target, self._now())
            flow.tally = at

    def aimed(self, flow: Flow) -> None:
        """Another target is tried."""
        if flow.tally != count.BYTES:
            self._table.aim(flow.tally, socketcalls.endpoint(flow.target.sockaddr))

    def answered(self, flow: Flow) -> None:
        """The target has answered for the first time."""
        if flow.tally != count.BYTES:
            self._table.mark(flow.tally, State.ESTABLISHED)
            count.count_latency(self._counters, self._now() - self._table.started(flow.tally))

    def closed(self, flow: Flow, end: End) -> None:
        """The flow is over."""
        at = flow.tally
        if at != count.BYTES:
            flow.tally = count.BYTES
            self._give_back(at, end)


def flow_writer_of(
    stats: count.Stats, now: Callable[[], float], report: Report | None
) -> FlowWriter | None:
    """The flow writer of a relay, if there is a table to keep."""
    return None if stats.flows is None else FlowWriter(stats.count, stats.flows, now, report)
