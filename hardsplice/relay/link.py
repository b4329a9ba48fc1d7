# SPDX-License-Identifier: GPL-2.0-or-later
"""What every engine says to its monitor (relay/main.py)."""

from __future__ import annotations

from hardsplice.ipc.messages import Note
from hardsplice.kernel import hints


class MonitorLink(hints.Protocol):
    """What an engine says to its monitor; it never waits for an answer."""

    def request_sockets(self, family: int, number: int) -> bool:
        """Ask for sockets of FAMILIES[family]; False when the channel is full."""

    def trace(self, kind: Note, listener: int, detail: int = 0) -> None:
        """Report each flow, if an option asks for it."""

    def note(self, kind: Note, detail: int, listener: int = 0, text: str = "") -> None:
        """Report something worth a line in the log; ``detail`` is an errno or a number."""
