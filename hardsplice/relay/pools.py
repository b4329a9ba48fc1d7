# SPDX-License-Identifier: GPL-2.0-or-later
"""The namespace pools: sockets that the monitor opened in advance, by address family.

A relay can't create a socket. It asks its monitor when half of a pool is used, and while a pool is
empty it accepts nothing; the backlog waits in the kernel.

The oldest socket is used first. The monitor closes its own copies right after it sent a batch, but
a connection whose copy is still open elsewhere would not end when the relay closes it. A batch
that waits behind another one gives the monitor enough time for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

# Sockets of each family. An order of half of them costs its monitor and the relay some 20 us beyond
# the sockets themselves; with twice the pool of the original that is 0.6 us a connection.
POOL_SIZE = 64


class SocketPool:
    """Sockets of one family, not connected yet."""

    __slots__ = ("family", "ready", "requested", "size")

    def __init__(self, family: int, size: int) -> None:
        self.family = family  # index into FAMILIES
        self.size = size
        self.ready: deque[int] = deque()
        self.requested = 0  # sockets that the monitor owes

    @property
    def is_low(self) -> bool:
        """Whether half are used."""
        return 2 * len(self.ready) <= self.size

    def take(self, fds: Iterable[int]) -> None:
        """The monitor has sent these, and owes none now."""
        self.ready.extend(fds)
        self.requested = 0

    def want(self) -> int:
        """How many to ask the monitor for now: none until half are used, and none while it owes
        some.
        """
        return self.size - len(self.ready) if self.is_low and not self.requested else 0
