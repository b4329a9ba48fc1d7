# SPDX-License-Identifier: GPL-2.0-or-later
"""What a relay reports for the log: checked, since the relay may have been taken over, limited to
what a correct relay sends, and passed on.
"""

from __future__ import annotations

import time

from hardsplice.ipc.messages import MalformedError, Record
from hardsplice.monitor import notes
from hardsplice.monitor.owner import SupervisorOwner
from hardsplice.relay.main import NOTE_SECONDS
from hardsplice.telemetry.flow_table import InvalidRowError, read_record


class Reports:
    """The reports of one relay and of those that take its place."""

    def __init__(self, owner: SupervisorOwner) -> None:
        self._owner = owner
        self._passed_on: dict[int, float] = {}  # when a note of that kind was passed on last

    def note(self, record: Record, *, trace: bool) -> None:
        """Pass a note on, of each kind one in NOTE_SECONDS; with ``trace`` there are others, too,
        all of which are passed on. MalformedError if the note is not a relay's to send.
        """
        kind = record.small
        if kind in notes.BY_RELAYS:
            now = time.monotonic()
            # Half, since both processes read the clock, and the channel may have been full.
            if now - self._passed_on.get(kind, -NOTE_SECONDS) < NOTE_SECONDS / 2:
                return
            self._passed_on[kind] = now
        elif kind not in notes.BY_TRACED_RELAYS or not trace:
            raise MalformedError(f"note {kind} is not a relay's to send")
        self._owner.note(kind, record.detail, record.index, record.text)

    def flow(self, record: Record, *, log_flows: bool) -> None:
        """Pass the end of a flow on; MalformedError if it is none, or without ``log_flows``."""
        try:
            read_record(record.small, record.text)
        except InvalidRowError as error:
            raise MalformedError(str(error)) from None
        if not log_flows:
            raise MalformedError("nobody asked for the ends of flows")
        self._owner.flow_ended(record.small, record.text)
