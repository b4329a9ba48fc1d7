# SPDX-License-Identifier: GPL-2.0-or-later
"""One line for each flow that ends (--log-flows). The host monitor writes them, from the records of
relays, or from the rows of relays that did not live to send one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction, GroupKey, group_name
from hardsplice.model.protocol import Protocol
from hardsplice.telemetry.counters import Stats
from hardsplice.telemetry.flow_table import End, Ended, endpoint_text, read_record
from hardsplice.telemetry.log import Level, Log

FINISH_SECONDS = 0.3

_WORDS = {
    End.FIN: "closed by FIN",
    End.CLIENT_RESET: "reset by the client",
    End.TARGET_RESET: "reset by the target",
    End.REFUSED: "refused",
    End.TIMEOUT: "timed out",
    End.LIMIT: "refused for a limit of this machine",
    End.ERROR: "reset after an error",
    End.RELAY_DIED: "broken off when the relay died",
    End.STOPPED: "broken off when hardsplice ended",
    End.REMOVED: "reset when its port was removed",
    End.IDLE: "reset when nothing had moved for too long",
    End.JAMMED: "reset when descriptors had run out",
    End.LOOPBACK: "refused: the loopback interface is down",
    End.EXPIRED: "expired",
    End.UNANSWERED: "expired without an answer",
    End.EVICTED: "ended early, to make room for others",
}


class Traffic(NamedTuple):
    """All that is counted of one direction, by relays of one protocol."""

    direction: Direction
    stats: Sequence[Stats]  # one a relay
    protocol: Protocol = Protocol.TCP

    @property
    def missed(self) -> int:
        """Ends of flows of which the host monitor got no record."""
        return sum(one.unreported() for one in self.stats)


class FlowLog:
    """Where flows' ends are written."""

    def __init__(
        self, log: Log, traffic: Sequence[Traffic], where: Callable[[Direction, int], str]
    ) -> None:
        """``where`` names a port by its number."""
        self._log = log
        self._where = where
        self._traffic = {(one.direction, one.protocol): one for one in traffic}
        self._reported = dict.fromkeys(self._traffic, 0)  # of those that were missed

    def ended(self, direction: Direction, end: int, row: bytes) -> None:
        """A flow's end, as a relay reports it. Raises InvalidRowError."""
        ended = read_record(end, row)
        self._write(direction, ended)
        self._say_missed((direction, ended.flow.protocol))

    def finish(self) -> None:
        """The relays have ended, and so have the flows that are still in their tables. What can't
        be written within FINISH_SECONDS is counted, so that the end isn't held up.
        """
        deadline = time.monotonic() + FINISH_SECONDS
        for key, traffic in self._traffic.items():
            left_out = 0
            for stats in traffic.stats:
                if stats.flows is None:
                    continue
                for row in stats.flows.close_all(stats.count, time.monotonic()):
                    if time.monotonic() > deadline:
                        left_out += sum(stats.flows.states().values()) + (row is not None)
                        break
                    if row is not None:
                        self._write(key[0], read_record(End.STOPPED, row))
            self._say_missed(key, left_out, at_last=True)

    def _write(self, direction: Direction, ended: Ended) -> None:
        flow = ended.flow
        where = self._where(direction, flow.port_id)
        text = (
            f"{direction}, {where}: {endpoint_text(flow.client)} to {endpoint_text(flow.target)}: "
            f"{flow.bytes_to_target} bytes to the target, {flow.bytes_to_client} to the client, "
            f"{ended.seconds:.3f} s, {_WORDS[ended.end]}"
        )
        fields = {
            "event": "flow",
            "direction": direction,
            "protocol": flow.protocol,
            "listener": where,
            "client": str(flow.client[0]),
            "client_port": flow.client[1],
            "target": str(flow.target[0]),
            "target_port": flow.target[1],
            "bytes_to_target": flow.bytes_to_target,
            "bytes_to_client": flow.bytes_to_client,
            "seconds": round(ended.seconds, 6),
            "end": ended.end.name.lower(),
        }
        self._log.write(Level.INFO, text, fields)

    def _say_missed(self, key: GroupKey, left_out: int = 0, *, at_last: bool = False) -> None:
        """Report how many ends came without a record since the last report, and how many of the
        others are left out.
        """
        if key not in self._traffic:  # a relay that was taken over says so
            return
        unreported = max(0, self._traffic[key].missed - self._reported[key])
        missed = unreported + left_out
        if not missed:
            return
        text = f"{group_name(*key)}: {missed} ends of flows are not in the log: too many at once"
        if at_last:
            self._log.line(Level.WARNING, text)
        elif not self._log.limited(Level.WARNING, ("missed", key), text):
            return
        self._reported[key] += unreported
