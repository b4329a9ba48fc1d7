# SPDX-License-Identifier: GPL-2.0-or-later
"""Sockets that UDP clients send to. They are bound and have no peer; none listens as TCP's do.

The address that a client has asked comes with its datagram (IP_PKTINFO), since its answer has to
come from there; and so does the number of datagrams for which the socket had no room.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from hardsplice.kernel import datagrams, mmsghdr, packet_info, socketcalls
from hardsplice.model.families import FAMILIES
from hardsplice.model.spec import Address

# What has the kernel tell the address that was asked.
_PKTINFO = {
    socket.AF_INET: (socket.IPPROTO_IP, packet_info.IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, packet_info.IPV6_RECVPKTINFO),
}


# What ours don't have, nor may: more control messages than relays have room for and know the order
# of, and what holds back or cuts what is sent. Level and names, from linux/in.h, linux/in6.h,
# asm-generic/socket.h and linux/udp.h.
_OFF = (
    # IP_RECVOPTS, IP_RETOPTS, IP_RECVERR, IP_RECVTTL, IP_RECVTOS, IP_PASSSEC, IP_RECVORIGDSTADDR,
    # IP_CHECKSUM, IP_RECVFRAGSIZE
    (socket.IPPROTO_IP, (6, 7, 11, 12, 13, 18, 20, 23, 25)),
    # IPV6_2292PKTINFO, _2292HOPOPTS, _2292DSTOPTS, _2292RTHDR, _2292HOPLIMIT, IPV6_FLOWINFO,
    # _RECVERR, _RECVHOPLIMIT, _RECVHOPOPTS, _RECVRTHDR, _RECVDSTOPTS, _RECVPATHMTU, _RECVTCLASS,
    # _RECVORIGDSTADDR, _RECVFRAGSIZE
    (socket.IPPROTO_IPV6, (2, 3, 4, 5, 8, 11, 25, 51, 53, 56, 58, 60, 66, 74, 77)),
    # SO_BROADCAST; SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING, and those of 64 bits;
    # SO_RCVMARK, SO_RCVPRIORITY
    (socket.SOL_SOCKET, (6, 29, 35, 37, 63, 64, 65, 75, 82)),
    (socket.IPPROTO_UDP, (1, mmsghdr.UDP_SEGMENT)),  # UDP_CORK
)


def open_listener(address: Address, *, dual: bool, interface: str | None) -> int:
    """As listeners.open_listener, which has found out these. It has no SO_REUSEADDR: another socket
    of the same user could take over its port by that.
    """
    is_ipv6 = address.version == 6
    family = int(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
    fd = datagrams.plain_socket(family)
    try:
        datagrams.set_pktinfo(fd, family)
        datagrams.set_overflow(fd)
        _take_joined(fd)
        if is_ipv6:
            socketcalls.set_ipv6_only(fd, value=not dual)
        if interface:
            socketcalls.bind_to_device(fd)
        socketcalls.bind(fd, len(socketcalls.sockaddr(address, 1)))
    except OSError:
        os.close(fd)
        raise
    return fd


def _take_joined(fd: int) -> None:
    """Before Linux 5.0 each datagram comes alone. No other reason is foreseen."""
    failure = datagrams.take_joined(fd)
    if failure not in (0, -errno.ENOPROTOOPT):
        raise OSError(-failure, os.strerror(-failure))


def has_no_peer(fd: int) -> bool:
    """Whether it takes datagrams of everybody."""
    return socketcalls.peer_address(fd) == b""


def is_sound(fd: int) -> bool:
    """Whether it has the options that it was made with, and no peer."""
    family = socketcalls.option(fd, socket.SOL_SOCKET, socket.SO_DOMAIN)
    if family not in FAMILIES:
        return False
    level, name = _PKTINFO[socket.AddressFamily(family)]
    return (
        socketcalls.option(fd, level, name) == 1
        and socketcalls.option(fd, socket.SOL_SOCKET, mmsghdr.SO_RXQ_OVFL) == 1
        and has_no_peer(fd)
    )


def make_sound(listener: socket.socket) -> None:
    """As listeners.make_sound."""
    for level, names in _OFF:
        for name in names:
            with contextlib.suppress(OSError):  # an older kernel, or another family
                listener.setsockopt(level, name, 0)
    if listener.family == socket.AF_INET6:  # which says it of IPv4, too
        listener.setsockopt(socket.IPPROTO_IP, packet_info.IP_PKTINFO, 0)
    listener.setsockopt(*_PKTINFO[socket.AddressFamily(listener.family)], 1)
    listener.setsockopt(socket.SOL_SOCKET, mmsghdr.SO_RXQ_OVFL, 1)
    _take_joined(listener.fileno())
    listener.setblocking(False)
