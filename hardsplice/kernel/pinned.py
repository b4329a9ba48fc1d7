# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory at a fixed address for what socket calls get a pointer to, so that filters can check it.

A filter sees a pointer, but not what it points to. So the values of socket options, and the address
of a listener that is created at run time, lie at a fixed address, in front of the address book's
slots (sandbox/address_book.py), and the filters compare the pointer. ``pin`` switches to that
memory; before, they lie in the process's own memory.

The address to listen at is written there at run time, and only the host monitor can do that. Not
even the host monitor can write the family, though: the family is at the end of a piece of memory
that no process can write, and the rest of the address at the beginning of the next piece, which the
host monitor can write. So only a TCP address can be bound. There is such an address for each
family.

    piece    0                   1                    2             3
             values, AF_INET | address, interface    AF_INET6 | address
    file     0                   2                    1             3

In the file, the pieces that can't be written come first: mremap(2) can extend a mapping of the
others further into the file, but never backwards. A piece is as large as the largest page size.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from ctypes import c_void_p

from hardsplice.kernel.record import NamedTuple

PIECE = 0x10000  # bytes
IN_FILE = (0, 2, 1, 3)  # which piece of the file each one is; written are those from FIRST_WRITTEN
FIRST_WRITTEN = 2
SIZE = len(IN_FILE) * PIECE

# Offsets in the memory that is pinned; the policies name the addresses.
LINGER, ONE, ZERO, MOST, UNSENT = 0x00, 0x20, 0x40, 0x60, 0x80
BIND_IPV4, BIND_IPV6 = PIECE - 2, 3 * PIECE - 2
DEVICE = PIECE + 0x20
PINNED = {
    "LINGER": LINGER, "ONE": ONE, "ZERO": ZERO, "MOST": MOST, "UNSENT": UNSENT,
    "BIND_IPV4": BIND_IPV4, "BIND_IPV6": BIND_IPV6, "DEVICE": DEVICE,
}  # fmt: skip
# What TCP_NOTSENT_LOWAT may be set to, in bytes; each is 32 bytes behind the one before.
UNSENT_SIZES = (512 << 10, 256 << 10, 128 << 10, 64 << 10)

_FAMILY = struct.Struct("=H")
IPV4_SIZE, IPV6_SIZE = 16, 28  # sizeof(struct sockaddr_in), sockaddr_in6
# Where no process can listen: port 1 of an address of class E, and of a multicast address.
NOWHERE = {
    socket.AF_INET: struct.pack("!H4s8x", 1, socket.inet_aton("240.0.0.1")),
    socket.AF_INET6: struct.pack("!HI16s4x", 1, 0, b"\xff".ljust(16, b"\0")),
}


def initial_values() -> Iterator[tuple[int, bytes]]:
    """What the memory holds: each with its offset, and none in two pieces."""
    yield LINGER, struct.pack("=ii", 1, 0)  # struct linger: on, 0 seconds
    yield ONE, struct.pack("=i", 1)
    yield ZERO, struct.pack("=i", 0)
    yield MOST, struct.pack("=i", 255)
    for number, size in enumerate(UNSENT_SIZES):
        yield UNSENT + 32 * number, struct.pack("=i", size)
    for offset, family in ((BIND_IPV4, socket.AF_INET), (BIND_IPV6, socket.AF_INET6)):
        yield offset, _FAMILY.pack(family)
        yield offset + _FAMILY.size, NOWHERE[family]


class Written(NamedTuple):
    """Where a process can write: behind the family of either address (piece 1 and 3)."""

    ipv4: int
    ipv6: int


class _Values:
    """Where the values are, each as a pointer that is made once."""

    def __init__(self, address: int, written: Written | None) -> None:
        def pointer(offset: int) -> c_void_p:
            return c_void_p(address + offset)

        self.linger, self.one, self.zero = pointer(LINGER), pointer(ONE), pointer(ZERO)
        self.most = pointer(MOST)
        self.unsent = {size: pointer(UNSENT + 32 * n) for n, size in enumerate(UNSENT_SIZES)}
        self.bind = {IPV4_SIZE: pointer(BIND_IPV4), IPV6_SIZE: pointer(BIND_IPV6)}
        self.device = pointer(DEVICE)
        self.written = written


_own = ctypes.create_string_buffer(3 * PIECE + IPV6_SIZE)
_at = ctypes.addressof(_own)
for _offset, _value in initial_values():
    ctypes.memmove(_at + _offset, _value, len(_value))
values = _Values(_at, Written(_at + PIECE, _at + 3 * PIECE))


def pin(address: int, written: Written | None) -> None:
    """Take the values from ``address`` from now on; ``written`` is where this process can write the
    same memory, if it can.
    """
    global values
    values = _Values(address, written)


def write_bind_address(sockaddr: bytes, device: bytes, written: Written | None = None) -> None:
    """Write down where to listen next, and at which interface; only the host monitor can do that.
    ``written`` is where, if not for this process itself.
    """
    clear_bind_address(written)
    ipv4, ipv6 = _written(written)
    (family,) = _FAMILY.unpack_from(sockaddr)
    rest = sockaddr[_FAMILY.size :]
    ctypes.memmove(ipv4 if family == socket.AF_INET else ipv6, rest, len(rest))
    ctypes.memmove(ipv4 + DEVICE - PIECE, device, len(device[:16]))


def clear_bind_address(written: Written | None = None) -> None:
    """There is nowhere to listen any more."""
    ipv4, ipv6 = _written(written)
    for at, nowhere in ((ipv4, NOWHERE[socket.AF_INET]), (ipv6, NOWHERE[socket.AF_INET6])):
        ctypes.memmove(at, nowhere, len(nowhere))
    ctypes.memmove(ipv4 + DEVICE - PIECE, bytes(16), 16)


def _written(written: Written | None) -> Written:
    found = values.written if written is None else written
    assert found is not None
    return found
