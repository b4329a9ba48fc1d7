# SPDX-License-Identifier: GPL-2.0-or-later
"""The system calls with which relays receive and send datagrams, many at once, and the sockets for
them. What the calls get pointers to is in kernel/mmsghdr.py.

As in kernel/socketcalls.py hot calls return a result or the negated errno; the others raise
OSError. recvmmsg and sendmmsg are made by number: on i386 and s390x the C library may go through
socketcall(2), where time has 32 bits it tries two calls, and musl makes other calls of them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from ctypes import byref, c_int, c_long, c_size_t, c_void_p

from hardsplice.kernel import pinned
from hardsplice.kernel.linux import MACHINE, fail
from hardsplice.kernel.mmsghdr import (
    ROOM,
    SLOTS,
    SO_RXQ_OVFL,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    Inbox,
    Outbox,
    Parts,
)
from hardsplice.kernel.packet_info import IP_PKTINFO, IPV6_RECVPKTINFO
from hardsplice.kernel.socketcalls import IS_DIRECT, way

_errno = ctypes.get_errno
# None of the hot calls blocks, so the interpreter's lock is kept meanwhile, which saves a part of
# such a call.
hot = ctypes.PyDLL(None, use_errno=True)
_syscall = hot.syscall
_IS_64_BIT = sys.maxsize > 2**32
# From each architecture's asm/unistd.h; in 32 bits recvmmsg_time64, the same everywhere.
RECVMMSG = c_long(
    {"x86_64": 299, "ppc64le": 343, "s390x": 357}.get(MACHINE, 243) if _IS_64_BIT else 417
)
SENDMMSG = c_long(
    {"x86_64": 307, "ppc64le": 349, "s390x": 358}.get(MACHINE, 269)
    if _IS_64_BIT
    else {"x86_64": 345, "i386": 345, "i586": 345, "i686": 345}.get(MACHINE, 374)
)

# --- hot calls: a result or the negated errno -----------------------------------------------------

RECEIVE_FLAGS = int(socket.MSG_DONTWAIT)
_ERROR_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_ERRQUEUE)
SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_writev = hot.writev
_setsockopt = way("setsockopt")
_segment = c_int()
_segment_ref = byref(_segment)


def receive(fd: int, inbox: Inbox, first: int, most: int) -> int:
    """Receive up to ``most`` datagrams into the slots from ``first`` on: how many, or the negated
    errno.
    """
    number: int = _syscall(RECVMMSG, fd, inbox.references[first], most, RECEIVE_FLAGS, None)
    return number if number >= 0 else -_errno()


def discard_errors(fd: int, inbox: Inbox) -> int:
    """Throw away up to SLOTS of what is in a socket's error queue: how many, or the negated errno.

    A relay puts nothing there. One that was taken over can: copies of what it sent, for it to learn
    when that left (SO_TIMESTAMPING). They fill the queue that receiving needs, until somebody takes
    them.
    """
    number: int = _syscall(RECVMMSG, fd, inbox.references[0], SLOTS, _ERROR_FLAGS, None)
    inbox.reset()  # of the names' sizes, too: an error comes without a name
    return number if number >= 0 else -_errno()


def send_all(fd: int, outbox: Outbox, first: int, number: int) -> int:
    """Send so many messages: how many were sent, or the negated errno of the first."""
    sent: int = _syscall(SENDMMSG, fd, outbox.references[first], number, SEND_FLAGS)
    return sent if sent >= 0 else -_errno()


if IS_DIRECT:
    _sendto, _recvfrom = way("sendto"), way("recvfrom")

    def receive_single(fd: int, where: c_void_p) -> int:
        """Receive one datagram of a connected socket: its size, or the negated errno."""
        size: int = _recvfrom(fd, where, c_size_t(ROOM), RECEIVE_FLAGS, None, None)
        return size if size >= 0 else -_errno()

    def send(fd: int, where: c_void_p, size: int) -> int:
        """Send one datagram from a connected socket: its size, or the negated errno."""
        sent: int = _sendto(fd, where, c_size_t(size), SEND_FLAGS, None, 0)
        return sent if sent >= 0 else -_errno()
else:
    _send, _recv = hot.send, hot.recv

    def receive_single(fd: int, where: c_void_p) -> int:
        """Receive one datagram of a connected socket: its size, or the negated errno."""
        size: int = _recv(fd, where, ROOM, RECEIVE_FLAGS)
        return size if size >= 0 else -_errno()

    def send(fd: int, where: c_void_p, size: int) -> int:
        """Send one datagram from a connected socket: its size, or the negated errno."""
        sent: int = _send(fd, where, size, SEND_FLAGS)
        return sent if sent >= 0 else -_errno()


def write(fd: int, parts: Parts, first: int, number: int) -> int:
    """Send so many entries as datagrams of the size that ``segment`` has set: how many bytes, or
    the negated errno.
    """
    sent: int = _writev(fd, parts.references[first], number)
    return sent if sent >= 0 else -_errno()


def segment(fd: int, size: int) -> int:
    """Set the size of the datagrams into which a connected socket cuts what it is given; 0 for no
    cutting (UDP_SEGMENT). 0, or the negated errno.
    """
    _segment.value = size
    return 0 if _setsockopt(fd, SOL_UDP, UDP_SEGMENT, _segment_ref, 4) == 0 else -_errno()


def take_joined(fd: int) -> int:
    """Receive datagrams joined that come joined, from now on (UDP_GRO): 0, or the negated errno,
    which says that the kernel can't (Linux 5.0).
    """
    return 0 if _setsockopt(fd, SOL_UDP, UDP_GRO, pinned.values.one, 4) == 0 else -_errno()


# --- calls that raise OSError: making sockets -----------------------------------------------------

_socket = way("socket")
_SOCKET_TYPE = int(socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def plain_socket(family: int) -> int:
    """A bare UDP socket, non-blocking and close-on-exec."""
    fd: int = _socket(int(family), _SOCKET_TYPE, 0)
    if fd < 0:
        fail()
    return fd


def datagram_socket(family: int) -> int:
    """The same, for a pool: it counts what it drops."""
    fd = plain_socket(family)
    try:
        set_overflow(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _set(fd: int, level: int, name: int) -> None:
    if _setsockopt(fd, level, name, pinned.values.one, 4) != 0:
        fail()


def set_overflow(fd: int) -> None:
    """Report with each datagram how many the socket has dropped (SO_RXQ_OVFL)."""
    _set(fd, socket.SOL_SOCKET, SO_RXQ_OVFL)


def set_pktinfo(fd: int, family: int) -> None:
    """Report with each datagram which address it was sent to (IP_PKTINFO, IPV6_RECVPKTINFO)."""
    if family == socket.AF_INET:
        _set(fd, socket.IPPROTO_IP, IP_PKTINFO)
    else:
        _set(fd, socket.IPPROTO_IPV6, IPV6_RECVPKTINFO)
