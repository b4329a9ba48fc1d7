# SPDX-License-Identifier: GPL-2.0-or-later
"""The interfaces to which relays are reported: by a supervisor (monitor/supervisor.py) to its
group, by the groups to their monitor.
"""

from __future__ import annotations

from hardsplice.kernel import hints
from hardsplice.model.protocol import Protocol
from hardsplice.relay import main as relay


class SupervisorOwner(hints.Protocol):
    """What a supervisor reports to."""

    def relay_ready(self) -> None:
        """The relay is locked down and serves, for the first time."""

    def relay_lost(self, reason: str, hint: str | None = None) -> None:
        """The relay can't be kept running."""

    def relay_alive(self) -> None:
        """The relay has answered, or another one has taken its place."""

    def accept_paused(self) -> None:
        """The relay stops accepting, or is gone: others have to check their listeners."""

    def note(self, kind: int, detail: int, port_id: int, text: bytes) -> None:
        """The relay, or its supervisor, has something for the log."""

    def flow_ended(self, end: int, row: bytes) -> None:
        """A flow ended; the record about it was checked (flow_table.read_record)."""

    def foreign_places(self, plan: relay.Plan) -> tuple[int, ...]:
        """Where the monitor has listeners that a relay of ``plan`` isn't to have."""

    def relay_drained(self) -> None:
        """The relay has ended, as told; or there was none."""


class RelaysOwner(hints.Protocol):
    """What all relays of a monitor, or those of one group, report to."""

    def relays_ready(self) -> None:
        """Every relay that has something to do at the start is locked down and serves."""

    def relay_lost(self, protocol: Protocol, reason: str, hint: str | None = None) -> None:
        """One of the relays of a protocol can't be kept running."""

    def relays_alive(self) -> None:
        """Every relay has answered."""

    def note(self, protocol: Protocol, kind: int, detail: int, port_id: int, text: bytes) -> None:
        """A relay of a protocol, or its supervisor, has something for the log."""

    def flow_ended(self, end: int, row: bytes) -> None:
        """A flow ended; the record about it was checked."""

    def relays_drained(self) -> None:
        """Every relay was to drain, and has ended."""
