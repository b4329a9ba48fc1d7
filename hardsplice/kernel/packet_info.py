# SPDX-License-Identifier: GPL-2.0-or-later
"""From whom a datagram is and which address it was sent to, as the kernel writes it down beside the
datagram (IP_PKTINFO, IPV6_PKTINFO), and how an answer is told both. Pure.

The client's sockaddr and the control message are next to each other, so that both together are the
key of a flow.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from ctypes import c_size_t

from hardsplice.kernel.pinned import IPV4_SIZE, IPV6_SIZE
from hardsplice.kernel.record import NamedTuple

IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_PKTINFO = 8, 49, 50  # linux/in.h, linux/in6.h

WORD = ctypes.sizeof(c_size_t)  # to which control messages are aligned
CMSG = struct.Struct("@Nii")  # struct cmsghdr: size, level, type


def space(size: int) -> int:
    """CMSG_SPACE: what a control message of so many bytes takes."""
    return CMSG.size + (size + WORD - 1) // WORD * WORD


class Form(NamedTuple):
    """Where names and packet information are, in what one family's listeners receive and send."""

    name_size: int  # sizeof(struct sockaddr_in), sockaddr_in6
    control: int  # where control messages begin: aligned
    info: int  # bytes of struct in_pktinfo, in6_pktinfo

    @property
    def key_size(self) -> int:
        """Bytes of the name and of one control message with packet information."""
        return self.control + CMSG.size + self.info


FORMS = {
    IPV4_SIZE: Form(IPV4_SIZE, 16, 12),
    IPV6_SIZE: Form(IPV6_SIZE, 32, 20),
}


_MULTICAST, _LINK_LOCAL = 0xFF, (0xFE, 0x80)
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96
_NOBODY = (bytes(4), bytes(16), _MAPPED + bytes(4))  # 0.0.0.0, ::, ::ffff:0.0.0.0


def reply_to(key: bytes) -> bytes:
    """Where the answer to a datagram with that key goes, and from which address: the one that the
    client had asked. An interface is named only where an address has no meaning without; and no
    address is where it was sent to a group, which can't be a source.
    """
    form = FORMS[IPV4_SIZE if len(key) == FORMS[IPV4_SIZE].key_size else IPV6_SIZE]
    head, info = key[: form.control], key[form.control + CMSG.size :]
    if form.name_size == IPV4_SIZE:
        level, kind = int(socket.IPPROTO_IP), IP_PKTINFO
        info = bytes(4) + info[4:8] + bytes(4)  # ipi_spec_dst is what the kernel takes
    else:
        level, kind = int(socket.IPPROTO_IPV6), IPV6_PKTINFO
        address, interface = info[:16], info[16:]
        if address[0] == _MULTICAST:
            address = bytes(16)
        is_local = address[0] == _LINK_LOCAL[0] and address[1] & 0xC0 == _LINK_LOCAL[1]
        info = address + (interface if is_local else bytes(4))
    control = CMSG.pack(CMSG.size + form.info, level, kind) + info
    return head + control.ljust(space(form.info), b"\0")


class Ends(NamedTuple):
    """Between whom a datagram was sent, by its key."""

    client: bytes  # an address
    port: int  # the client's
    asked: bytes  # the address of this machine

    @property
    def can_be_answered(self) -> bool:
        """Whether the client has an address and a port, one of the family that it asked by. The
        kernel would take an answer to no address as one to this machine itself; and in a packet of
        IPv6 an address of IPv4 (::ffff:0:0/96) is made up, to which an answer would go by IPv4.
        """
        return (
            self.port != 0
            and self.client not in _NOBODY
            and self.client.startswith(_MAPPED) == self.asked.startswith(_MAPPED)
        )

    @property
    def plain_client(self) -> bytes:
        """The client's address; where it is one of IPv4, in 4 bytes."""
        return self.client.removeprefix(_MAPPED)

    @property
    def plain_asked(self) -> bytes:
        """The address that was asked, likewise."""
        return self.asked.removeprefix(_MAPPED)


def ends_of(key: bytes) -> Ends:
    """Between whom a datagram with that key was sent."""
    port = int.from_bytes(key[2:4], "big")
    form = FORMS[IPV4_SIZE if len(key) == FORMS[IPV4_SIZE].key_size else IPV6_SIZE]
    info = key[form.control + CMSG.size :]
    if form.name_size == IPV4_SIZE:
        return Ends(key[4:8], port, info[4:8])  # ipi_spec_dst, as it may have been a broadcast
    return Ends(key[8:24], port, info[:16])


def form_of(reply: bytes) -> Form:
    return FORMS[IPV6_SIZE if len(reply) > 16 + space(12) else IPV4_SIZE]


def reply_from_anywhere(reply: bytes) -> bytes:
    """The same without an address to come from, where the kernel doesn't take that one."""
    form = form_of(reply)
    mapped = reply[8:20] if form.name_size == IPV6_SIZE else b""
    info = mapped if mapped == _MAPPED else b""
    head = reply[: form.control + CMSG.size]
    return head + info.ljust(space(form.info) - CMSG.size, b"\0")
