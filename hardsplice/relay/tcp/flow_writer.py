# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay's side of the flow table: it opens a row for each flow that is accepted, keeps it
current, and closes it. If no option asks for flows there is no flow writer.

While a flow has a row its bytes are counted there, by the same statement that counts them for the
relay otherwise: `Flow.tally` says in which words. So the flow writer has nothing to do when bytes
move.

Nothing is formatted here. A flow's end is reported as the row itself, in one record; one that the
channel has no room for is counted, and the monitor says so.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from hardsplice.kernel import socketcalls
from hardsplice.model.protocol import Protocol
from hardsplice.relay.tcp.rules import CLIENT, Flow
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.flow_table import End, FlowTable, Packed, State

Report = Callable[[End, bytes], bool]
_TCP = Protocol.TCP.number


class FlowWriter:
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

    def opened(self, flow: Flow, client: Packed) -> None:
        """A client was accepted: begin a row, as long as there are any."""
        at = self._free.pop() if self._free else next(self._unused, None)
        if at is None:
            self._counters[count.UNLISTED] += 1
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
        text = self._table.close(at, self._counters, self._now())
        self._free.append(at)
        if self._report and not self._report(end, text):
            self._counters[count.UNLOGGED] += 1


def flow_writer_of(
    stats: count.Stats, now: Callable[[], float], report: Report | None
) -> FlowWriter | None:
    """The flow writer of a relay, if there is a table to keep."""
    return None if stats.flows is None else FlowWriter(stats.count, stats.flows, now, report)


def telling(before: int, code: int) -> int:
    """Which errno of two attempts to report, ``before`` being 0 at the first: that nothing listens
    rather than that there is no way, and that rather than that there is no address to come from,
    as the other address family may be switched off.
    """
    return before if before and _LITTLE.get(before, 0) < _LITTLE.get(code, 0) else code


def end_of_attempt(code: int) -> End:
    """How a flow ended whose target could not be connected, by the errno."""
    if code == errno.ETIMEDOUT:
        return End.TIMEOUT
    return End.LIMIT if code in _SHORT else End.REFUSED


# What connect(2) says when this machine is the reason: no local port (tcp_v4_connect), no memory.
_SHORT = (errno.EADDRNOTAVAIL, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
# How little an errno says of where the target is
_LITTLE = {errno.ENETUNREACH: 1, errno.EADDRNOTAVAIL: 2}
