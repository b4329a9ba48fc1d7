# SPDX-License-Identifier: GPL-2.0-or-later
"""What a relay is told of its listeners, in order and none lost: what its channel has no room for
waits here and is sent again soon. A relay that leaves its channel full for long is in breach.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable

from hardsplice.ipc.channel import Channel, Sent
from hardsplice.ipc.loop import Alarm, Loop
from hardsplice.ipc.messages import Kind, Note, Record
from hardsplice.monitor.supply import SHORT_SECONDS, Tell

AGAIN_SECONDS = 0.01  # until a relay is told again what its channel had no room for
DEAF_SECONDS = 2.0  # that a relay may leave its channel full


class Outbox:
    """What one relay is to be told, and has not been yet."""

    def __init__(
        self,
        loop: Loop,
        sent: Callable[[Record], None],
        note: Tell,
        breach: Callable[[str], None],
    ) -> None:
        """``sent`` is told of each record that is on its way; ``note`` is for the log; ``breach``
        ends the relay.
        """
        self.waiting: deque[Record] = deque()
        self._channel: Channel | None = None
        self._sent, self._note, self._breach = sent, note, breach
        self._deaf_since = 0.0
        self._again = Alarm(loop, self._send)

    def begin(self, channel: Channel) -> None:
        """There is a relay at the end of ``channel``, which knows all that came before."""
        self._channel = channel
        self.waiting.clear()

    def close(self) -> None:
        """The relay is gone, or is about to be: its successor learns all at its start."""
        self._channel = None

    def tell(self, record: Record) -> None:
        """Send a record; a relay that is not there learns it at its start."""
        if self._channel is None:
            return
        self.waiting.append(record)
        if len(self.waiting) == 1:
            self._deaf_since = time.monotonic()
            self._send()

    def take_back(self, kind: Kind, index: int) -> bool:
        """Don't tell what has not been told yet; False where it has been."""
        for record in self.waiting:
            if (record.kind, record.index) == (kind, index):
                self.waiting.remove(record)
                return True
        return False

    def _send(self) -> None:
        """Send what is left to send, or try again soon."""
        while self.waiting and self._channel is not None:
            sent = self._channel.send(self.waiting[0], wait=False)
            if sent is Sent.CROWDED:
                self._deaf_since = time.monotonic()  # it is not the relay's fault
                self._note(Note.CROWDED, errno.ETOOMANYREFS, 0, b"listeners")
                self._again.set(SHORT_SECONDS)
                return
            if not sent:
                if time.monotonic() - self._deaf_since > DEAF_SECONDS:
                    self._breach("it does not read what it is told")
                else:
                    self._again.set(AGAIN_SECONDS)
                return
            self._deaf_since = time.monotonic()
            self._sent(self.waiting.popleft())
