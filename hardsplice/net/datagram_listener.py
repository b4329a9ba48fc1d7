# SPDX-License-Identifier: GPL-2.0-or-later
"""Sockets that UDP clients send to. They are bound and have no peer; none listens as TCP's do.

The address that a client has asked comes with its datagram (IP_PKTINFO), since its answer has to
come from there; and so does the number of datagrams for which the socket had no room.
"""

from __future__ import annotations

import contextlib
import os
import socket

from hardsplice.kernel import datagrams, mmsghdr, socketcalls
from hardsplice.model.families import FAMILIES
from hardsplice.model.spec import Address

# What has the kernel tell the address that was asked.
_PKTINFO = {
    socket.AF_INET: (socket.IPPROTO_IP, mmsghdr.IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, mmsghdr.IPV6_RECVPKTINFO),
}


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
        datagrams.set_gro(fd)
        if is_ipv6:
            socketcalls.set_ipv6_only(fd, value=not dual)
        if interface:
            socketcalls.bind_to_device(fd)
        socketcalls.bind(fd, len(socketcalls.sockaddr(address, 1)))
    except OSError:
        os.close(fd)
        raise
    return fd


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
    listener.setsockopt(*_PKTINFO[socket.AddressFamily(listener.family)], 1)
    listener.setsockopt(socket.SOL_SOCKET, mmsghdr.SO_RXQ_OVFL, 1)
    with contextlib.suppress(OSError):  # before Linux 5.0
        listener.setsockopt(socket.IPPROTO_UDP, mmsghdr.UDP_GRO, 1)
    listener.setblocking(False)
