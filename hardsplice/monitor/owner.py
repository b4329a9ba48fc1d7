# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface to which a relay's supervisor (monitor/supervisor.py) reports: its group."""

from __future__ import annotations

import typing

from hardsplice.relay import main as relay


class SupervisorOwner(typing.Protocol):
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
