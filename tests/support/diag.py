# SPDX-License-Identifier: GPL-2.0-or-later
"""One question to the kernel about one TCP socket, by sock_diag(7).

/proc/net/tcp has the same answer, at the price of printing thousands of connections in TIME_WAIT.
"""

from __future__ import annotations

import socket
import struct

SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
NETLINK_SOCK_DIAG = 4  # linux/netlink.h
_NLM_F_REQUEST = 1
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST = struct.Struct("=BBBBI")  # inet_diag_req_v2 up to its socket's identity
_IDENTITY = struct.Struct("=2s2s16s16sIII")  # inet_diag_sockid, its cookie "any"
_RECEIVE_QUEUE = _HEADER.size + 4 + _IDENTITY.size + 4  # offset of inet_diag_msg.idiag_rqueue


def unread_by_peer(diag_socket: socket.socket, sock: socket.socket) -> int:
    """Bytes that wait in the receive queue of the socket that `sock` is connected to.

    `diag_socket` is a NETLINK_SOCK_DIAG socket of the namespace in which the two are.
    """
    family = sock.family
    (theirs, their_port), (ours, our_port) = sock.getpeername()[:2], sock.getsockname()[:2]
    identity = _IDENTITY.pack(
        struct.pack("!H", their_port),
        struct.pack("!H", our_port),
        socket.inet_pton(family, theirs).ljust(16, b"\0"),
        socket.inet_pton(family, ours).ljust(16, b"\0"),
        0,
        0xFFFFFFFF,
        0xFFFFFFFF,
    )
    payload = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + identity
    size = _HEADER.size + len(payload)
    diag_socket.send(_HEADER.pack(size, SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + payload)
    answer = diag_socket.recv(4096)
    if _HEADER.unpack_from(answer)[1] != SOCK_DIAG_BY_FAMILY:
        return 0  # an error: there is no such socket any more
    queued: int = struct.unpack_from("=I", answer, _RECEIVE_QUEUE)[0]
    return queued


def diag_socket() -> socket.socket:
    """A socket to ask with, in the namespace of the caller."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG)
