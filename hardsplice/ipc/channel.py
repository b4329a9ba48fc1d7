# SPDX-License-Identifier: GPL-2.0-or-later
"""What hardsplice's processes say to each other: small records over SOCK_SEQPACKET pairs,
descriptors beside them.

A record is one packet: a fixed header and a short text. SEQPACKET keeps records whole and says when
the other end has gone, which is how a child learns that its monitor died, and the reverse. Whoever
receives treats what it gets as hostile: a record that doesn't fit ends the connection, never the
receiver.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum, auto, unique

from hardsplice.ipc import descriptors
from hardsplice.kernel import socketcalls
from hardsplice.kernel.scm import Messages, packet_pair

_HEADER = struct.Struct("=BBHiI")
TEXT_LIMIT = 2048  # bytes of text in a record
# All descriptors that one record can carry (SCM_MAX_FD, include/net/scm.h).
FDS_LIMIT = 253
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
_messages = Messages(_HEADER.size + TEXT_LIMIT, FDS_LIMIT)


@unique
class Kind(IntEnum):
    """What a record is about, and who may say it."""

    READY = 1  # child to monitor: set up and locked down
    FATAL = 2  # child to monitor: text says why it ends
    LISTENERS = 3  # target monitor to host monitor, before lock-down: listeners, by index
    BOUND = 4  # target monitor to host monitor: all listeners were sent
    ASK = 5  # relay to monitor: sockets wanted; small = family, detail = number
    SOCKETS = 6  # monitor to relay: sockets; small = family
    NOTE = 7  # relay to monitor to host monitor: something for the log
    NAMESPACES = 8  # PID 1 of a command to host monitor: its namespaces stand
    GO = 9  # host monitor to PID 1 or its guard: go on, and at last, start the command
    SIGNAL = 10  # host monitor to PID 1: pass on signal number detail; its answer, once it has
    EXITED = 11  # PID 1 to host monitor: the command's wait status is detail
    YIELD = 12  # relay to monitor: it stops accepting, so that others must
    LOOK = 13  # monitor to relay: clients may wait, of whom another was told
    # Listeners that come and go (monitor/handover.py, relay/orders.py); index is the port's number.
    OPEN = 14  # host monitor to target monitor: listen; text is the forward
    OPENED = 15  # its answer: the listener, or an errno in detail
    SERVE = 16  # host monitor to target monitor to relay: a listener
    SERVED = 17  # the target monitor's answer; detail as above
    CLOSE = 18  # host monitor to target monitor to relay: end a listener; small: and its flows
    CLOSED = 19  # the target monitor's answer
    FLOW = 20  # relay to monitor to host monitor: a flow ended; small = how, text = its row
    # host monitor to target monitor, monitor to relay: do you go on? To PID 1: has COMMAND stopped?
    PING = 21
    PONG = 22  # the answer; PID 1's is in small
    STOPPED = 23  # PID 1 to host monitor: the command was stopped, and may go on by now
    DRAIN = 24  # as PING: accept nobody any more, end once nobody is connected


class Note(IntEnum):
    """What a relay finds worth a line."""

    REFUSED = 1
    TIMED_OUT = 2
    ACCEPT = 3
    DESCRIPTORS = 4
    ERROR = 5
    RESTARTED = 6
    SOCKETS = 7
    OPENED = 8  # with --trace: a flow's target was reached
    ENDED = 9  # with --trace: a flow is over; detail is 0 after FIN both ways, 1 after a reset
    CROWDED = 10  # see Sent
    LOOPBACK = 11  # of a monitor: a target is not reached, as the loopback interface is down
    SHORT = 12  # there is no process for a relay, or no memory
    DIED = 13  # of a keeper: a relay ended with connections, and has no successor


class Sent(Enum):
    """What became of a record; true if it is on its way."""

    YES = auto()
    FULL = auto()  # the other end has too much to read already
    GONE = auto()  # there is no other end any more
    CROWDED = auto()  # too many descriptors of this user are on their way (ETOOMANYREFS, unix(7))

    def __bool__(self) -> bool:
        return self is Sent.YES


class Malformed(Exception):  # noqa: N818 - what is raised is the record
    """A record that no well-behaved process sends."""


@dataclass(frozen=True, slots=True)
class Record:
    """One packet: what, two numbers, an index, a text, and descriptors, now the receiver's."""

    kind: int
    small: int = 0
    index: int = 0
    detail: int = 0
    text: bytes = b""
    fds: tuple[int, ...] = ()


def encode(record: Record) -> bytes:
    """The packet of a record, without its descriptors."""
    text = record.text[:TEXT_LIMIT]
    return _HEADER.pack(record.kind, record.small, len(text), record.detail, record.index) + text


def decode(packet: bytes, fds: tuple[int, ...] = ()) -> Record:
    """The record in a packet; Malformed when it is none."""
    if len(packet) < _HEADER.size:
        raise Malformed(f"{len(packet)} bytes are no record")
    kind, small, length, detail, index = _HEADER.unpack_from(packet)
    text = packet[_HEADER.size :]
    if len(text) != length:
        raise Malformed(f"a text of {len(text)} bytes says that it has {length}")
    return Record(kind, small, index, detail, text, fds)


class Channel:
    """One end of a SEQPACKET pair: a descriptor. No socket object, for which the interpreter makes
    calls of its own, by functions of the C library (kernel/socketcalls.py).
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two connected ends, close-on-exec, blocking."""
        ours, theirs = packet_pair()
        return cls(ours), cls(theirs)

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
        Malformed for nonsense.
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
            return decode(packet, fds)
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
