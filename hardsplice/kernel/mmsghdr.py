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

from hardsplice.kernel.hints import Any
from hardsplice.kernel.packet_info import CMSG, FORMS, WORD, Form, space
from hardsplice.kernel.record import NamedTuple

SLOTS = 64  # datagrams a call, and parts of one (UDP_MAX_SEGMENTS before Linux 6.9)
ROOM = 1 << 16  # bytes of a slot: the largest datagram, or what UDP_GRO joined, fits
LARGEST = 65507  # bytes of payload that IPv4 carries in one datagram

SOL_UDP = 17  # linux/udp.h
UDP_SEGMENT, UDP_GRO = 103, 104
SO_RXQ_OVFL = 40  # asm-generic/socket.h


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


class Mmsghdr(ctypes.Structure):
    """struct mmsghdr of linux/socket.h."""

    _fields_ = (("header", _Msghdr), ("size", c_uint))


_IOVEC, _MMSGHDR = ctypes.sizeof(_Iovec), ctypes.sizeof(Mmsghdr)
_WORDS = _MMSGHDR // WORD  # of a header, which are as many with 32 bits and with 64
_PARTS, _PARTS_NUMBER = _Msghdr.parts.offset // WORD, _Msghdr.parts_number.offset // WORD
_CONTROL_SIZE = _Msghdr.control_size.offset // WORD
_INTS, _SIZE = _MMSGHDR // 4, Mmsghdr.size.offset // 4

_INT = struct.Struct("=i")
_COUNT = struct.Struct("=I")
_SEGMENT_SPACE = space(2)
_STRIDE = 256  # bytes of a slot for a name and control messages
_CONTROL_ROOM = 128  # bytes of it for control messages: three kinds, of 40 bytes at the most


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
        self._form = form = FORMS.get(name_size, Form(0, 0, 0))
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
        self.first_size = self._ints[_SIZE : _SIZE + 1]
        self.references = [self._headers.reference(slot * _MMSGHDR) for slot in range(SLOTS)]
        starts = range(0, _STRIDE * SLOTS, _STRIDE)
        self._keys = [self._names.view[at : at + form.key_size] for at in starts]
        self.plain = space(form.info) if form.name_size else 0  # bytes of control without extras

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

    def take_single(self) -> bytes | None:
        """The client's sockaddr and the packet information of the datagram in the first slot, which
        is made ready for the next call; None, and nothing is done, if it has extras. `first_size`
        has its size.
        """
        if self._words[_CONTROL_SIZE] != self.plain:
            return None
        self._words[_CONTROL_SIZE] = _CONTROL_ROOM
        return self._keys[0].tobytes()

    def keys(self, number: int) -> list[bytes]:
        """The same of so many datagrams without extras, from the first slot on."""
        return list(map(memoryview.tobytes, self._keys[:number]))

    def key_behind(self, slot: int, control_size: int) -> bytes:
        """The same of a datagram with extras: packet information is the last control message."""
        form, start = self._form, slot * _STRIDE
        info = start + form.control + control_size - space(form.info)
        name = self._names.view[start : start + form.control]
        return bytes(name) + bytes(self._names.view[info : info + CMSG.size + form.info])

    def control(self, slot: int, control_size: int) -> Control:
        """What came with a datagram besides packet information."""
        drops, segment = None, 0
        at = slot * _STRIDE + self._form.control
        end = at + min(control_size, _CONTROL_ROOM)
        while at + CMSG.size <= end:
            size, level, kind = CMSG.unpack_from(self._names.view, at)
            if (level, kind) == (SOL_UDP, UDP_GRO):
                (segment,) = _INT.unpack_from(self._names.view, at + CMSG.size)
            elif (level, kind) == (socket.SOL_SOCKET, SO_RXQ_OVFL):
                (drops,) = _COUNT.unpack_from(self._names.view, at + CMSG.size)
            at += max(CMSG.size, (size + WORD - 1) // WORD * WORD)
        return Control(drops, segment)


class Outbox:
    """The headers with which a listener of one family answers its clients, from slots."""

    def __init__(self, parts: Parts, name_size: int) -> None:
        form = FORMS[name_size]
        self.parts = parts
        self._names, self._headers = _Memory(_STRIDE * SLOTS), _Memory(_MMSGHDR * SLOTS)
        self.plain = space(form.info)  # bytes of control messages without a segment's size
        behind = form.control + self.plain
        for at in range(SLOTS):
            header = _Msghdr.from_buffer(self._headers.view, at * _MMSGHDR)
            name = at * _STRIDE
            header.name, header.name_size = self._names.address + name, form.name_size
            header.control = self._names.address + name + form.control
            CMSG.pack_into(self._names.view, name + behind, CMSG.size + 2, SOL_UDP, UDP_SEGMENT)
        self._words = self._headers.view.cast("L")
        self.references = [self._headers.reference(at * _MMSGHDR) for at in range(SLOTS)]
        # Of which single entry a message is, so that it needn't be written down again; -1: of none
        self._single = [-1] * SLOTS
        starts = range(0, _STRIDE * SLOTS, _STRIDE)
        self._replies = [self._names.view[at : at + behind] for at in starts]
        self._segments = [
            self._names.view[at + behind + CMSG.size :][:2].cast("H") for at in starts
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
