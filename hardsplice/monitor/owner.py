# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface to which a relay's supervisor (monitor/supervisor.py) reports: its group."""

from __future__ import annotations

from typing import Protocol


class Upward(Protocol):
    """Whom a keeper tells."""

    def relay_ready(self) -> None:
        """The relay is locked down and serves, for the first time."""

    def relay_lost(self, reason: str, hint: str | None = None) -> None:
        """The relay can't be kept running."""

    def relay_alive(self) -> None:
        """The relay has answered, or another one has taken its place."""

    def relay_yields(self) -> None:
        """The relay stops accepting, or is gone: others with the same listeners have to look."""

    def note(self, kind: int, detail: int, index: int, text: bytes) -> None:
        """The relay, or the keeper, has something for the log."""

    def flow_ended(self, end: int, row: bytes) -> None:
        """A flow ended; what is said of it was checked (flowtable.read_record)."""

    def relay_drained(self) -> None:
        """The relay has ended, as it was told to; or there was none."""
