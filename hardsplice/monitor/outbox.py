# SPDX-License-Identifier: GPL-2.0-or-later
"""Records for a relay that must arrive, in their order: those that its channel has no room for are
queued, and sent soon. A relay that leaves its channel full for long breaks the protocol.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable

from hardsplice.ipc.channel import Channel, Sent
from hardsplice.ipc.loop import Alarm, Loop
from hardsplice.ipc.messages import Kind, Note, Record
from hardsplice.monitor.supply import RETRY_SECONDS, Report

AGAIN_SECONDS = 0.01  # until the queue is sent again
FULL_SECONDS = 2.0  # that a relay may leave its channel full


class Outbox:
    """The queue of one relay."""

    def __init__(
        self,
        loop: Loop,
        sent: Callable[[Record], None],
        note: Report,
        breach: Callable[[str], None],
    ) -> None:
        """``sent`` is called with each record that was sent; ``note`` reports for the log;
        ``breach`` ends the relay.
        """
        self.waiting: deque[Record] = deque()
        self._channel: Channel | None = None
        self._sent, self._note, self._breach = sent, note, breach
        self._full_since = 0.0
        self._again = Alarm(loop, self._flush)

    def begin(self, channel: Channel) -> None:
        """A relay was started, whose channel this is; it knows what was queued before its start."""
        self._channel = channel
        self.waiting.clear()

    def close(self) -> None:
        """Send nothing any more: the relay has ended, or is about to."""
        self._channel = None

    def send(self, record: Record) -> None:
        """Send a record, or queue it. Without a relay that does nothing: the next one knows it when
        it starts.
        """
        if self._channel is None:
            return
        self.waiting.append(record)
        if len(self.waiting) == 1:
            self._full_since = time.monotonic()
            self._flush()

    def take_back(self, kind: Kind, index: int) -> bool:
        """Remove a record from the queue; False if it was sent already."""
        for record in self.waiting:
            if (record.kind, record.index) == (kind, index):
                self.waiting.remove(record)
                return True
        return False

    def _flush(self) -> None:
        """Send the queue as far as the channel has room, and the rest soon."""
        while self.waiting and self._channel is not None:
            sent = self._channel.send(self.waiting[0], wait=False)
            if sent is Sent.CROWDED:
                self._full_since = time.monotonic()  # not the relay's fault
                self._note(Note.CROWDED, errno.ETOOMANYREFS, 0, b"listeners")
                self._again.set(RETRY_SECONDS)
                return
            if not sent:
                if time.monotonic() - self._full_since > FULL_SECONDS:
                    self._breach("it does not read what it is sent")
                else:
                    self._again.set(AGAIN_SECONDS)
                return
            self._full_since = time.monotonic()
            self._sent(self.waiting.popleft())
