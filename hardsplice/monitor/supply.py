# SPDX-License-Identifier: GPL-2.0-or-later
"""Sockets for a relay's pools: its requests, and what it got.

A relay has one open request of each family. What can't be created at once, or can't be sent, is
retried by one timer for all of them, so that a relay that doesn't receive what it requests costs
its monitor next to nothing. No sockets are sent to a relay that doesn't read: they would count as
descriptors in transit, which are limited for each user (Sent.CROWDED).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from hardsplice.ipc.channel import Channel, Sent, close_all
from hardsplice.ipc.loop import Alarm, Loop
from hardsplice.ipc.messages import Kind, Note, Record
from hardsplice.kernel import socketcalls
from hardsplice.model.families import FAMILIES
from hardsplice.model.protocol import Protocol
from hardsplice.relay.tcp.seam import unsent

RETRY_SECONDS = 1.0  # until sockets that could not be created are tried again
FULL_SECONDS = 0.01  # the same where the channel had no room for them, which soon it may have

# Bytes that a relay may leave unread; a record of sockets counts as 768 of them (skb->truesize).
UNREAD_MAX = 4096

Report = Callable[[int, int, int, bytes], None]  # as SupervisorOwner.note


class Supply:
    """What one relay waits for."""

    def __init__(self, loop: Loop, protocol: Protocol, report: Report) -> None:
        """``protocol`` is that of the sockets."""
        self._protocol = protocol
        self.owed: dict[int, int] = {}  # sockets, by family
        self._channel: Channel | None = None
        self._report = report
        self._again = Alarm(loop, lambda: self._send(tuple(self.owed)))
        self._patience = FULL_SECONDS

    def order(self, channel: Channel, family: int, number: int) -> None:
        """The relay at the end of ``channel`` asks for so many sockets of a family of which it is
        owed none.
        """
        self._channel = channel
        self.owed[family] = number
        self._send((family,))

    def forget(self) -> None:
        """The relay is gone."""
        self.owed.clear()
        self._channel = None
        self._patience = FULL_SECONDS

    def _send(self, families: Iterable[int]) -> None:
        for family in families:
            if self._channel is None:
                return
            if unsent(self._channel.fileno()) > UNREAD_MAX:
                self._wait()
                return
            made = self._open(family, self.owed[family])
            if not made:
                self._again.set(RETRY_SECONDS)
                continue
            sent = self._channel.send(Record(Kind.SOCKETS, family, fds=tuple(made)), wait=False)
            close_all(made)
            if sent:
                del self.owed[family]
                self._patience = FULL_SECONDS
            elif sent is Sent.FULL:
                self._wait()
            elif sent is Sent.CROWDED:
                self._report(Note.CROWDED, errno.ETOOMANYREFS, 0, b"sockets")
                self._again.set(RETRY_SECONDS)

    def _wait(self) -> None:
        """The relay does not read: try again, soon at first."""
        self._again.set(self._patience)
        self._patience = min(2 * self._patience, RETRY_SECONDS)

    def _open(self, family: int, number: int) -> list[int]:
        """So many sockets, or as many as can be had."""
        made: list[int] = []
        try:
            for _ in range(number):  # those made before an error count
                made.append(open_socket(family, self._protocol))  # noqa: PERF401
        except OSError as error:
            self._report(Note.SOCKETS, error.errno or 0, 0, b"")
        return made


def open_socket(family: int, protocol: Protocol = Protocol.TCP) -> int:
    """A socket for a pool, not blocking; ``family`` is an index into FAMILIES. One of TCP has
    TCP_NODELAY set, since it has no listener to inherit that from.
    """
    if protocol is Protocol.UDP:
        from hardsplice.kernel.datagrams import datagram_socket  # which set-up has imported

        return datagram_socket(FAMILIES[family])
    return socketcalls.pool_socket(int(FAMILIES[family]))
