# SPDX-License-Identifier: GPL-2.0-or-later
"""How hardsplice's processes talk to each other: records (ipc/messages.py) over SOCK_SEQPACKET
pairs, descriptors beside them.

SEQPACKET keeps records whole and says when the other end has gone, which is how a child learns that
its monitor died, and the reverse. Each end knows who has the other one, and takes nothing else than
what that one may say: a record that doesn't fit ends the connection, never the receiver.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable
from enum import Enum, auto

from hardsplice.ipc import descriptors, messages
from hardsplice.ipc.messages import (
    FDS_LIMIT,
    HEADER_SIZE,
    TEXT_LIMIT,
    Due,
    Malformed,
    Record,
    decode,
    encode,
)
from hardsplice.kernel import socketcalls
from hardsplice.kernel.scm import Messages, packet_pair

# Records that are taken at once from somebody who has ended. What a socket's buffer holds are some
# 300; more come only while somebody else holds the other end still and goes on sending.
LAST_RECORDS = 1024
# What the kernel says when it has no memory for a packet.
_SHORT = (errno.ENOBUFS, errno.ENOMEM)
# A next step for whoever meets Sent.CROWDED.
CROWDED_HINT = (
    "descriptors on their way between processes are counted for each user, up to the limit on open "
    "ones: run each instance as a user of its own (--runas, User=), or raise ulimit -n"
)
# One at a time is sent or received in a process.
_messages = Messages(HEADER_SIZE + TEXT_LIMIT, FDS_LIMIT)


class Sent(Enum):
    """What became of a record; true if it is on its way."""

    YES = auto()
    FULL = auto()  # the other end has too much to read already
    GONE = auto()  # there is no other end any more
    CROWDED = auto()  # too many descriptors of this user are on their way (ETOOMANYREFS, unix(7))

    def __bool__(self) -> bool:
        return self is Sent.YES


class Channel:
    """One end of a SEQPACKET pair: a descriptor. No socket object, for which the interpreter makes
    calls of its own, by functions of the C library (kernel/socketcalls.py).
    """

    def __init__(self, fd: int, due: Due) -> None:
        """``due`` is what may be received."""
        self._fd = fd
        self._due = due

    @classmethod
    def pair(cls, one: str, other: str) -> tuple[Channel, Channel]:
        """Two connected ends, close-on-exec, blocking: that of the process with the role ``one``,
        and the ``other``'s, each by its name (model/roles.py).
        """
        ours, theirs = packet_pair()
        return cls(ours, messages.on(other, one)), cls(theirs, messages.on(one, other))

    def fileno(self) -> int:
        """The descriptor; -1 once it was given up."""
        return self._fd

    def _take(self) -> int:
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Hang up; the other end sees end of file."""
        if self._fd >= 0:
            os.close(self._take())

    def leave(self) -> None:
        """Hang up, where the channel has a fixed number: that stays taken."""
        descriptors.clear((self._take(),))

    def finish(self) -> None:
        """Say that no more will be sent: the other end sees end of file, and is still heard."""
        socketcalls.shutdown(self._fd, socket.SHUT_WR)

    def move_to(self, fd: int) -> None:
        """Give the channel a fixed descriptor number, which policies name."""
        descriptors.move(self._take(), fd)
        self._fd = fd

    def send(self, record: Record, *, wait: bool = True) -> Sent:
        """Send a record. With ``wait`` off it may be that the other end has too much to read."""
        flags = socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT)
        try:
            _messages.sendmsg(self._fd, encode(record), record.fds, flags)
        except BlockingIOError:
            return Sent.FULL
        except ConnectionError:
            return Sent.GONE
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                return Sent.CROWDED
            if error.errno in _SHORT:
                return Sent.FULL
            raise
        return Sent.YES

    def receive(self, *, wait: bool = True) -> Record | None:
        """The next record; None at the end. BlockingIOError with ``wait`` off and none there;
        Malformed for nonsense, and for what isn't the other end's to send.
        """
        flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        try:
            packet, fds, what = self._receive(flags)
        except ConnectionError:
            return None
        if not packet and not fds:
            return None
        try:
            if what & socket.MSG_TRUNC:
                raise Malformed("a record is too long")
            record = decode(packet, fds)
            messages.check(record, self._due)
            return record
        except Malformed:
            close_all(fds)
            raise

    def _receive(self, flags: int) -> tuple[bytes, tuple[int, ...], int]:
        try:
            return _messages.recvmsg(self._fd, flags)
        except ConnectionResetError:
            # The other end has gone without reading all (unix_release_sock, net/unix/af_unix.c).
            # That is said once, before what it sent: its last words are still to come.
            return _messages.recvmsg(self._fd, flags)

    def drain(self) -> None:
        """Get rid of what is still to be received, before closing: nobody will look at it."""
        with contextlib.suppress(OSError):
            for _ in range(LAST_RECORDS):
                with contextlib.suppress(Malformed):
                    record = self.receive(wait=False)
                    if record is None:
                        return
                    close_all(record.fds)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors, each run of neighbours in one call.

    Nothing else is done to those that somebody hostile sent: an option set here would be set for
    everybody who has the same socket, of which the sender may have chosen any.
    """
    ordered = sorted(fds)
    while ordered:
        first = last = ordered.pop(0)
        while ordered and ordered[0] == last + 1:
            last = ordered.pop(0)
        os.closerange(first, last + 1)
