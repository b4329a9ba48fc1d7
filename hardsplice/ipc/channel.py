# SPDX-License-Identifier: GPL-2.0-or-later
"""Channels between hardsplice's processes: records (ipc/messages.py) over SOCK_SEQPACKET pairs,
with descriptors.

SEQPACKET keeps records whole and reports when the other end is closed, which is how a child notices
that its monitor died, and the reverse. Each end knows the process at the other end, and accepts
only what that process may send: an invalid record ends the connection, never the receiver.
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
    MalformedError,
    Record,
    decode,
    encode,
)
from hardsplice.kernel import socketcalls
from hardsplice.kernel.scm import Messages, packet_pair

# Records that are read at once from a process that has ended. A socket's buffer holds some 300;
# more come only if another process still holds the other end and goes on sending.
LAST_RECORDS = 1024
# The kernel's errors when it has no memory for a packet.
_SHORT = (errno.ENOBUFS, errno.ENOMEM)
# The next step to report with Sent.CROWDED.
CROWDED_HINT = (
    "descriptors on their way between processes are counted for each user, up to the limit on open "
    "ones: run each instance as a user of its own (--runas, User=), or raise ulimit -n"
)
# One at a time is sent or received in a process.
_messages = Messages(HEADER_SIZE + TEXT_LIMIT, FDS_LIMIT)


class Sent(Enum):
    """The result of sending a record; true if it was sent."""

    YES = auto()
    FULL = auto()  # the other end has too much to read already
    GONE = auto()  # the other end is closed
    CROWDED = auto()  # too many descriptors of this user are in transit (ETOOMANYREFS, unix(7))

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
        """Close the channel; the other end sees end of file."""
        if self._fd >= 0:
            os.close(self._take())

    def leave(self) -> None:
        """Close a channel that has a fixed descriptor number, which stays occupied."""
        descriptors.clear((self._take(),))

    def finish(self) -> None:
        """Announce that no more is sent: the other end gets end of file, and may still send."""
        socketcalls.shutdown(self._fd, socket.SHUT_WR)

    def move_to(self, fd: int) -> None:
        """Give the channel a fixed descriptor number, which policies name."""
        descriptors.move(self._take(), fd)
        self._fd = fd

    def send(self, record: Record, *, wait: bool = True) -> Sent:
        """Send a record. With ``wait`` off, the other end may have too much to read."""
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
        MalformedError for an invalid record, and for one that the other end may not send.
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
                raise MalformedError("a record is too long")
            record = decode(packet, fds)
            messages.check(record, self._due)
            return record
        except MalformedError:
            close_all(fds)
            raise

    def _receive(self, flags: int) -> tuple[bytes, tuple[int, ...], int]:
        try:
            return _messages.recvmsg(self._fd, flags)
        except ConnectionResetError:
            # The other end was closed with unread data (unix_release_sock, net/unix/af_unix.c).
            # That is reported once, before what it sent: its last records are still to come.
            return _messages.recvmsg(self._fd, flags)

    def discard_rest(self) -> None:
        """Discard what is still to be received, before closing."""
        with contextlib.suppress(OSError):
            for _ in range(LAST_RECORDS):
                with contextlib.suppress(MalformedError):
                    record = self.receive(wait=False)
                    if record is None:
                        return
                    close_all(record.fds)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors, each run of neighbours in one call.

    Nothing else is done to descriptors from a hostile process: an option that is set here would be
    set for all holders of the same socket, and the sender may have chosen any socket.
    """
    ordered = sorted(fds)
    while ordered:
        first = last = ordered.pop(0)
        while ordered and ordered[0] == last + 1:
            last = ordered.pop(0)
        os.closerange(first, last + 1)
