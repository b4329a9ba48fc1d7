# SPDX-License-Identifier: GPL-2.0-or-later
"""What is decided about datagrams: which go out together, what an errno means, how many flows there
may be. Pure.

Datagrams of one size go out with one call that gives the kernel all of them and their size
(UDP_SEGMENT); the last may be shorter. The kernel takes no more than what fits one datagram, nor
more than 64 of them.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

from hardsplice.kernel.mmsghdr import LARGEST, SLOTS

_FAMILY = struct.Struct("=H")
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96

EPOLLIN, EPOLLERR, EPOLLHUP = 0x01, 0x08, 0x10  # linux/eventpoll.h

Run = tuple[int, int, int]
"""Datagrams that go out with one call: the first one's index, how many pieces, and the size of each
datagram, or 0 where it is one datagram as it is."""

# The kernel can't send several at once: checksums are off, an IPsec policy, or it is too old.
NEVER_JOINED = frozenset({errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
# Or not so large ones, since they don't fit a packet of the path.
CANNOT_JOIN = NEVER_JOINED | {errno.EINVAL, errno.EMSGSIZE}
# What a first datagram's failure says of the target; others say that there was no room for it.
OF_TARGET = frozenset(
    {errno.ECONNREFUSED, errno.EACCES, errno.EPERM, errno.EINVAL, errno.EADDRNOTAVAIL}
)
# Errors that may be of an earlier datagram (ICMP), so that sending this one is worth another try.
OF_ANOTHER = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPROTO, errno.ENOPROTOOPT, errno.ETIMEDOUT}
)


# EMSGSIZE is also what the next datagram hears where one was too large for a router on the way.
MAYBE_OF_ANOTHER = OF_ANOTHER | {errno.EMSGSIZE}

# What the kernel says, which differs by its version, of an address that is none to send from.
NO_SOURCE = frozenset({errno.EINVAL, errno.ENETUNREACH})


# What sending says for ever where the address is gone that a flow's socket has as its own, or its
# peer (SOCK_DESTROY). It may also be that there is no way to the target at the moment.
MAYBE_USELESS = NO_SOURCE | {errno.EDESTADDRREQ, errno.EADDRNOTAVAIL}


def runs(sizes: Sequence[int], segments: Sequence[int], joinable: int) -> list[Run]:
    """How to send one flow's datagrams, in order.

    ``segments`` has the size of each datagram for those that the kernel had joined, else 0.
    Datagrams of up to ``joinable`` bytes may be joined. An empty one goes out by itself, as nothing
    would be left of it.
    """
    found: list[Run] = []
    first, number = 0, len(sizes)
    while first < number:
        size, segment = sizes[first], segments[first]
        if segment and segment < size:
            found.append((first, 1, segment))
            first += 1
            continue
        end = first + 1
        if 0 < size <= joinable:
            total, most = size, min(number, first + SLOTS)
            while end < most and 0 < sizes[end] <= size and total + sizes[end] <= LARGEST:
                if segments[end] and segments[end] < sizes[end]:
                    break
                total += sizes[end]
                end += 1
                if sizes[end - 1] < size:
                    break
        found.append((first, end - first, size if end - first > 1 else 0))
        first = end
    return found


def count_of(size: int, segment: int) -> int:
    """How many datagrams so many bytes are."""
    return -(-size // segment) if segment else 1


def joinable_after(code: int, segment: int) -> int:
    """How large datagrams may be that are joined, after such an errno for ``segment`` bytes."""
    return 0 if code in NEVER_JOINED else segment - 1


def is_ipv4(key: bytes) -> bool:
    """Whether a client, by its sockaddr, came by IPv4, be it mapped into IPv6."""
    return bool(_FAMILY.unpack_from(key)[0] == socket.AF_INET or key[8:20] == _MAPPED)


def flows_a_listener(most: int, listeners: int) -> int:
    """How many of all flows one listener may have: where there are others, three quarters."""
    return most if listeners <= 1 else max(1, most * 3 // 4)
