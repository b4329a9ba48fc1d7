# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory for receiving and sending many datagrams with one call: struct mmsghdr, and all that it
points to.

Everything is made once. Payload lies in slots of 64 KiB, into which recvmmsg(2) writes and from
which datagrams are sent, so that no object is made of it. Words of the structures are read and
written through memoryviews, which takes a fraction of what attributes of ctypes structures do. The
calls are in kernel/datagrams.py.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
from array import array
from collections.abc import Sequence
from ctypes import byref, c_char, c_int, c_size_t, c_uint, c_void_p
from typing import Any

from hardsplice.kernel.pinned import IPV4_SIZE, IPV6_SIZE
from hardsplice.kernel.record import NamedTuple

SLOTS = 64  # datagrams a call, and parts of one (UDP_MAX_SEGMENTS before Linux 6.9)
ROOM = 1 << 16  # bytes of a slot: the largest datagram, or what UDP_GRO joined, fits
LARGEST = 65507  # bytes of payload that IPv4 carries in one datagram

SOL_UDP = 17  # linux/udp.h
UDP_SEGMENT, UDP_GRO = 103, 104
SO_RXQ_OVFL = 40  # asm-generic/socket.h
IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_PKTINFO = 8, 49, 50  # linux/in.h, linux/in6.h


class _Iovec(ctypes.Structure):
    _fields_ = (("base", c_void_p), ("size", c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", c_void_p),
        ("name_size", c_uint),
        ("parts", c_void_p),
        ("parts_number", c_size_t),
        ("control", c_void_p),
        ("control_size", c_size_t),
        ("flags", c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("size", c_uint))


_WORD = ctypes.sizeof(c_size_t)
_IOVEC, _MMSGHDR = ctypes.sizeof(_Iovec), ctypes.sizeof(_Mmsghdr)
_WORDS = _MMSGHDR // _WORD  # of a header, which are as many with 32 bits and with 64
_PARTS, _PARTS_NUMBER = _Msghdr.parts.offset // _WORD, _Msghdr.parts_number.offset // _WORD
_CONTROL_SIZE = _Msghdr.control_size.offset // _WORD
_INTS, _SIZE = _MMSGHDR // 4, _Mmsghdr.size.offset // 4

_CMSG = struct.Struct("@Nii")  # struct cmsghdr: size, level, type
_INT = struct.Struct("=i")
_COUNT = struct.Struct("=I")


def _space(size: int) -> int:
    """CMSG_SPACE: what a control message of so many bytes takes."""
    return _CMSG.size + (size + _WORD - 1) // _WORD * _WORD


_SEGMENT_SPACE = _space(2)
_STRIDE = 256  # bytes of a slot for a name and control messages
_CONTROL_ROOM = 128  # bytes of it for control messages: three kinds, of 40 bytes at the most


class _Form(NamedTuple):
    """Where names and packet information are, in what one family's listeners receive and send. They
    are next to each other, so that both together are one key.
    """

    name_size: int  # sizeof(struct sockaddr_in), sockaddr_in6
    control: int  # where control messages begin: aligned
    info: int  # bytes of struct in_pktinfo, in6_pktinfo

    @property
    def key_size(self) -> int:
        """Bytes of the name and of one control message with packet information."""
        return self.control + _CMSG.size + self.info


_FORMS = {
    IPV4_SIZE: _Form(IPV4_SIZE, 16, 12),
    IPV6_SIZE: _Form(IPV6_SIZE, 32, 20),
}


class _Memory:
    """Bytes that stay where they are."""

    def __init__(self, size: int) -> None:
        self._bytes = bytearray(size)
        self.view = memoryview(self._bytes)
        self._first = c_char.from_buffer(self._bytes)
        self.address = ctypes.addressof(self._first)

    def reference(self, offset: int) -> Any:
        """A pointer to ``offset``, as ctypes passes it on."""
        return byref(self._first, offset)


class Buffers:
    """Slots for payload, and a struct iovec for each. What is never used takes no memory."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, SLOTS * ROOM, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._first = c_char.from_buffer(self.memory)
        address = ctypes.addressof(self._first)
        self.addresses = [address + slot * ROOM for slot in range(SLOTS)]
        self.pointers = [c_void_p(one) for one in self.addresses]
        self.whole = _parts(self.addresses, ROOM)

    def pointer(self, slot: int, offset: int) -> c_void_p:
        """Where a piece of a slot is, as ctypes passes it on."""
        return c_void_p(self.addresses[slot] + offset) if offset else self.pointers[slot]


def _parts(addresses: list[int], size: int) -> _Memory:
    """An array of struct iovec."""
    memory = _Memory(_IOVEC * len(addresses))
    for at, address in enumerate(addresses):
        entry = _Iovec.from_buffer(memory.view, at * _IOVEC)
        entry.base, entry.size = address, size
    return memory


class Parts:
    """The struct iovecs of what is sent: pieces of payload, one behind the other. Entry n begins as
    slot n; ``place`` changes that.
    """

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self._memory = _parts(buffers.addresses, 0)
        self.words = self._memory.view.cast("L")
        self._slots = memoryview(array("L", buffers.addresses))
        self.references = [self._memory.reference(at * _IOVEC) for at in range(SLOTS)]
        self.addresses = [self._memory.address + at * _IOVEC for at in range(SLOTS)]

    def resize(self, first: int, sizes: Sequence[int]) -> None:
        """How long the entries from ``first`` on are."""
        at = 2 * first + 1
        if len(sizes) == 1:
            self.words[at] = sizes[0]
        else:
            self.words[at : at + 2 * len(sizes) : 2] = memoryview(array("L", sizes))

    def point(self, entry: int, slot: int, offset: int, size: int) -> None:
        """Make an entry a piece of a slot."""
        self.words[2 * entry] = self.buffers.addresses[slot] + offset
        self.words[2 * entry + 1] = size

    def place(self, slots: Sequence[int], sizes: Sequence[int]) -> None:
        """Make the first entries pieces of these slots."""
        words, addresses = self.words, self.buffers.addresses
        for at, slot in enumerate(slots):
            words[2 * at] = addresses[slot]
            words[2 * at + 1] = sizes[at]

    def restore(self, number: int) -> None:
        """Let the first entries begin as their slots again."""
        self.words[: 2 * number : 2] = self._slots[:number]


class Control(NamedTuple):
    """What came with a datagram."""

    drops: int | None  # how many the socket has dropped in all (modulo 2**32), if any
    segment: int  # the size of each datagram that the kernel joined; 0: it is a single one


class Inbox:
    """The headers with which datagrams are received into slots.

    Before each call the headers of the slots that were used last are made anew (``renew``), since
    the kernel overwrites the sizes in them.
    """

    def __init__(self, buffers: Buffers, name_size: int) -> None:
        """``name_size`` is of a family's sockaddr; 0 for connected sockets."""
        self._form = form = _FORMS.get(name_size, _Form(0, 0, 0))
        self._names, self._headers = _Memory(_STRIDE * SLOTS), _Memory(_MMSGHDR * SLOTS)
        for slot in range(SLOTS):
            header = _Msghdr.from_buffer(self._headers.view, slot * _MMSGHDR)
            name = self._names.address + slot * _STRIDE
            if form.name_size:
                header.name, header.name_size = name, form.name_size
            header.parts, header.parts_number = buffers.whole.address + slot * _IOVEC, 1
            header.control, header.control_size = name + form.control, _CONTROL_ROOM
        self._template = bytes(self._headers.view)
        self._words, self._ints = self._headers.view.cast("L"), self._headers.view.cast("I")
        self.references = [self._headers.reference(slot * _MMSGHDR) for slot in range(SLOTS)]
        starts = range(0, _STRIDE * SLOTS, _STRIDE)
        self._keys = [self._names.view[at : at + form.key_size] for at in starts]
        self.plain = _space(form.info) if form.name_size else 0  # bytes of control without extras

    def take_single(self, slot: int) -> int:
        """How many bytes were received into a slot, which is made ready for the next call; -1, and
        nothing is done, if something special came with them.
        """
        words, at = self._words, _WORDS * slot + _CONTROL_SIZE
        if words[at] != self.plain:
            return -1
        words[at] = _CONTROL_ROOM
        return self._ints[_INTS * slot + _SIZE]

    def sizes(self, first: int, number: int) -> list[int]:
        """How many bytes were received into each of these slots."""
        at = _INTS * first + _SIZE
        return self._ints[at : at + _INTS * number : _INTS].tolist()

    def control_sizes(self, first: int, number: int) -> list[int]:
        """How many bytes of control messages came with each: `plain` if there is nothing
        special.
        """
        at = _WORDS * first + _CONTROL_SIZE
        return self._words[at : at + _WORDS * number : _WORDS].tolist()

    def renew(self, first: int, number: int) -> None:
        """Make the headers of these slots ready for the next call."""
        start, end = first * _MMSGHDR, (first + number) * _MMSGHDR
        self._headers.view[start:end] = self._template[start:end]

    def reset(self) -> None:
        """Make all headers anew, whatever the kernel has written into them."""
        self._headers.view[:] = self._template

    def key(self, slot: int) -> bytes:
        """The client's sockaddr and the packet information, of a datagram without extras."""
        return self._keys[slot].tobytes()

    def keys(self, number: int) -> list[bytes]:
        """The same of so many datagrams, from the first slot on."""
        return list(map(memoryview.tobytes, self._keys[:number]))

    def key_behind(self, slot: int, control_size: int) -> bytes:
        """The same of a datagram with extras: packet information is the last control message."""
        form, start = self._form, slot * _STRIDE
        info = start + form.control + control_size - _space(form.info)
        name = self._names.view[start : start + form.control]
        return bytes(name) + bytes(self._names.view[info : info + _CMSG.size + form.info])

    def control(self, slot: int, control_size: int) -> Control:
        """What came with a datagram besides packet information."""
        drops, segment = None, 0
        at = slot * _STRIDE + self._form.control
        end = at + min(control_size, _CONTROL_ROOM)
        while at + _CMSG.size <= end:
            size, level, kind = _CMSG.unpack_from(self._names.view, at)
            if (level, kind) == (SOL_UDP, UDP_GRO):
                (segment,) = _INT.unpack_from(self._names.view, at + _CMSG.size)
            elif (level, kind) == (socket.SOL_SOCKET, SO_RXQ_OVFL):
                (drops,) = _COUNT.unpack_from(self._names.view, at + _CMSG.size)
            at += max(_CMSG.size, (size + _WORD - 1) // _WORD * _WORD)
        return Control(drops, segment)


class Outbox:
    """The headers with which a listener of one family answers its clients, from slots."""

    def __init__(self, parts: Parts, name_size: int) -> None:
        form = _FORMS[name_size]
        self.parts = parts
        self._names, self._headers = _Memory(_STRIDE * SLOTS), _Memory(_MMSGHDR * SLOTS)
        self.plain = _space(form.info)  # bytes of control messages without a segment's size
        behind = form.control + self.plain
        for at in range(SLOTS):
            header = _Msghdr.from_buffer(self._headers.view, at * _MMSGHDR)
            name = at * _STRIDE
            header.name, header.name_size = self._names.address + name, form.name_size
            header.control = self._names.address + name + form.control
            _CMSG.pack_into(self._names.view, name + behind, _CMSG.size + 2, SOL_UDP, UDP_SEGMENT)
        self._words = self._headers.view.cast("L")
        self.references = [self._headers.reference(at * _MMSGHDR) for at in range(SLOTS)]
        # Of which single entry a message is, so that it needn't be written down again; -1: of none
        self._single = [-1] * SLOTS
        starts = range(0, _STRIDE * SLOTS, _STRIDE)
        self._replies = [self._names.view[at : at + behind] for at in starts]
        self._segments = [
            self._names.view[at + behind + _CMSG.size :][:2].cast("H") for at in starts
        ]

    def put(self, at: int, reply: bytes, first: int, number: int, segment: int) -> None:
        """Make message ``at`` of so many entries of `parts` from ``first`` on. ``reply`` is what
        ``reply_to`` made; ``segment`` is the size of each datagram, 0 where it is a single one.
        """
        self._replies[at][:] = reply
        is_single = number == 1 and not segment
        if is_single and self._single[at] == first:
            return
        self._single[at] = first if is_single else -1
        words, word = self._words, _WORDS * at
        words[word + _PARTS] = self.parts.addresses[first]
        words[word + _PARTS_NUMBER] = number
        if segment:
            self._segments[at][0] = segment
            words[word + _CONTROL_SIZE] = self.plain + _SEGMENT_SPACE
        else:
            words[word + _CONTROL_SIZE] = self.plain


_MULTICAST, _LINK_LOCAL = 0xFF, (0xFE, 0x80)
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96
_NOBODY = (bytes(4), bytes(16), _MAPPED + bytes(4))  # 0.0.0.0, ::, ::ffff:0.0.0.0


def reply_to(key: bytes) -> bytes:
    """Where the answer to a datagram with that key goes, and from which address: the one that the
    client had asked. An interface is named only where an address has no meaning without; and no
    address is where it was sent to a group, which can't be a source.
    """
    form = _FORMS[IPV4_SIZE if len(key) == _FORMS[IPV4_SIZE].key_size else IPV6_SIZE]
    head, info = key[: form.control], key[form.control + _CMSG.size :]
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
    control = _CMSG.pack(_CMSG.size + form.info, level, kind) + info
    return head + control.ljust(_space(form.info), b"\0")


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
    form = _FORMS[IPV4_SIZE if len(key) == _FORMS[IPV4_SIZE].key_size else IPV6_SIZE]
    info = key[form.control + _CMSG.size :]
    if form.name_size == IPV4_SIZE:
        return Ends(key[4:8], port, info[4:8])  # ipi_spec_dst, as it may have been a broadcast
    return Ends(key[8:24], port, info[:16])


def reply_from_anywhere(reply: bytes) -> bytes:
    """The same without an address to come from, where the kernel doesn't take that one."""
    form = _FORMS[IPV6_SIZE if len(reply) > 16 + _space(12) else IPV4_SIZE]
    mapped = reply[8:20] if form.name_size == IPV6_SIZE else b""
    info = mapped if mapped == _MAPPED else b""
    head = reply[: form.control + _CMSG.size]
    return head + info.ljust(_space(form.info) - _CMSG.size, b"\0")
