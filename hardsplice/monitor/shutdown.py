# SPDX-License-Identifier: GPL-2.0-or-later
"""Shutdown. Told to end, hardsplice stops accepting and resets open connections, so that no peer
takes a truncated transfer for a complete one; with --drain it gives them some time to finish first.
Told a second time, it stops waiting.

Draining needs no answer: each relay ends when it has no flow left, and the namespace monitor when
its relays have ended.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from hardsplice.ipc.channel import Channel
from hardsplice.ipc.loop import Loop
from hardsplice.ipc.messages import TEXT_LIMIT, Kind, MalformedError, Record
from hardsplice.ipc.sd_notify import Notifier
from hardsplice.kernel import hints
from hardsplice.model.protocol import Protocol
from hardsplice.monitor.groups import RelayGroups
from hardsplice.telemetry.counters import COUNTERS, DRAINED, STOPPED
from hardsplice.telemetry.flow_log import Traffic
from hardsplice.telemetry.log import Level, Log

_ID = "I"  # of a port, in an array
# What flows are called, and what was done with those that did not finish.
_CALLED = {Protocol.TCP: ("connections", "reset"), Protocol.UDP: ("flows of UDP", "broken off")}
# How long a service manager shall wait for us beyond the time for connections.
MARGIN_SECONDS = 5


class Reachable(hints.Protocol):
    """A process that is told to drain."""

    channel: Channel


class Ending:
    """When hardsplice ends, and with which status."""

    def __init__(self, loop: Loop, seconds: int, log: Log, notifier: Notifier) -> None:
        """``seconds`` are for connections to finish; 0: none."""
        self._loop = loop
        self._seconds = seconds
        self._log = log
        self._notifier = notifier
        self._waiting: set[str] = set()
        self._status: int | None = None  # while it drains: how to end

    @property
    def is_draining(self) -> bool:
        """Whether it waits for connections to end."""
        return self._status is not None

    def begin(
        self, status: int, monitor: Reachable | None, groups: RelayGroups, stored: Sequence[int]
    ) -> None:
        """End with ``status``: at once, or when no connection is left. ``monitor`` is the namespace
        monitor; ``groups`` have the relays here; of the ports ``stored`` the service manager also
        has the listeners, even if it did not at the start.
        """
        if self.is_draining:
            return
        if not self._seconds:
            self._loop.stop(status)
            return
        self._status = status
        unit = "second" if self._seconds == 1 else "seconds"
        text = f"ending: connections have {self._seconds} {unit} to come to their end"
        self._log.line(Level.INFO, text)
        extended = (self._seconds + MARGIN_SECONDS) * 1_000_000
        self._notifier.status(text, "STOPPING=1", f"EXTEND_TIMEOUT_USEC={extended}")
        self._waiting = {"relays"}
        if monitor and all(monitor.channel.send(one, wait=False) for one in orders(stored)):
            self._waiting.add("namespace")
        self._loop.after(self._seconds, self.at_once)
        groups.mark_stored(stored)
        groups.drain()

    def drained(self, who: str) -> None:
        """No connection is left there."""
        self._waiting.discard(who)
        if self.is_draining and not self._waiting:
            self.at_once()

    def at_once(self) -> None:
        """Stop waiting."""
        assert self._status is not None
        self._loop.stop(self._status)


def orders(stored: Sequence[int]) -> Iterator[Record]:
    """The order to drain, with the IDs of ports whose listeners are stored; ``small`` says that
    more of them follow.
    """
    many = TEXT_LIMIT // array(_ID).itemsize
    parts = [stored[first : first + many] for first in range(0, len(stored), many)] or [()]
    for left, part in zip(reversed(range(len(parts))), parts, strict=True):
        yield Record(Kind.DRAIN_RELAYS, int(left > 0), text=array(_ID, part).tobytes())


def stored_ports(record: Record) -> Sequence[int]:
    """The IDs of the ports in such an order; MalformedError if it is invalid."""
    ids = array(_ID)
    if len(record.text) % ids.itemsize:
        raise MalformedError(f"{len(record.text)} bytes are no IDs")
    ids.frombytes(record.text)
    return ids


def account(log: Log, traffic: Sequence[Traffic]) -> None:
    """Report what happened to the connections, and to the flows of UDP, that were there when
    hardsplice was told to end.
    """
    said = []
    for protocol, (flows, were_cut) in _CALLED.items():
        counted = [
            stats.snapshot() for one in traffic if one.protocol is protocol for stats in one.stats
        ]
        drained, cut = (sum(one[COUNTERS[at]] for one in counted) for at in (DRAINED, STOPPED))
        if drained or cut:
            said.append(f"{flows} that finished meanwhile: {drained}, that were {were_cut}: {cut}")
    if said:
        log.line(Level.INFO, "; ".join(("ended", *said)))
