# SPDX-License-Identifier: GPL-2.0-or-later
"""What a relay may not do with its listeners, its targets, and the memory that they are written in:
one system call each, made by its number.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NoReturn

from hardsplice.kernel import linux, socketcalls
from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.sandbox.address_book import VALUES_SIZE, Area
from tests.arches import numbers

WORKS, KILLED, SEALED = "success", "SIGSYS", "EPERM"
NOT_MADE = 255  # the exit status of a process that lacked what it takes
ADDRESS, PORT = IPv4Address("127.0.0.1"), 9100  # the target
_FIXED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED, asm-generic/mman-common.h
_MAYMOVE, _MAYMOVE_FIXED = 1, 3  # MREMAP_*, linux/mman.h
_MADV_REMOVE = 9  # asm-generic/mman-common.h
_RW = mmap.PROT_READ | mmap.PROT_WRITE
_LINGER = (socket.SOL_SOCKET, socket.SO_LINGER)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Scene:
    """What a process finds that makes an attempt."""

    numbers: Mapping[str, int]
    area: Area
    listener: int
    slot: int  # the address of a target's slot
    flow: Callable[[], int]  # a TCP socket that isn't connected, as a relay gets them


@dataclass(frozen=True, slots=True)
class Attempt:
    """One system call."""

    name: str
    call: str
    arguments: Callable[[Scene], tuple[int, ...]]
    locked: str = KILLED  # what comes of it in a relay
    bare: bool = True  # without the sandbox it succeeds; else it fails, but reaches the kernel

    def make(self, scene: Scene) -> NoReturn:
        """Make it, and end with its errno."""
        status = NOT_MADE
        try:
            arguments = [ctypes.c_long(argument) for argument in self.arguments(scene)]
            number = ctypes.c_long(scene.numbers[self.call])
            ctypes.set_errno(0)
            failed = _libc.syscall(number, *arguments) == -1
            status = ctypes.get_errno() if failed else 0
        finally:
            os._exit(status)


# --- memory that attempts use: made before there is a filter --------------------------------------

_pages = mmap.mmap(-1, mmap.PAGESIZE)
_PAGES = ctypes.addressof(ctypes.c_char.from_buffer(_pages))
_room = ctypes.create_string_buffer(512)
_COPY, _UNSPEC, _VALUE, _LONGS = (ctypes.addressof(_room) + 128 * at for at in range(4))
ctypes.memmove(_COPY, socketcalls.sockaddr(ADDRESS, PORT), 16)
ctypes.memmove(_VALUE, struct.pack("=ii", 1, 0), 8)
_WORD = (1 << 8 * struct.calcsize("@L")) - 1


def _longs(*values: int) -> int:
    """The address of an array of longs."""
    array = struct.pack(f"@{len(values)}L", *(value & _WORD for value in values))
    ctypes.memmove(_LONGS, array, len(array))
    return _LONGS


# --- the attempts ---------------------------------------------------------------------------------


def attempts(arch: str) -> list[Attempt]:
    """Those that can be made on an architecture."""
    table = [*_connecting(), *_options(), *_listeners(), *_memory(arch)]
    if ARCHITECTURES[arch].bits == 64:
        table += _as_64_bits()
    if "socketcall" in numbers.of(arch):
        table += _through_socketcall()
    return table


def _connecting() -> list[Attempt]:
    def to(where: Callable[[Scene], int]) -> Callable[[Scene], tuple[int, ...]]:
        return lambda scene: (scene.flow(), where(scene), 16)

    return [
        Attempt("connect to a slot", "connect", to(lambda s: s.slot), WORKS),
        Attempt("connect to a copy of it", "connect", to(lambda _: _COPY)),
        Attempt("connect to AF_UNSPEC", "connect", to(lambda _: _UNSPEC)),
        Attempt("connect, inside a slot", "connect", to(lambda s: s.slot + 8)),
        Attempt(
            "connect, behind the book",
            "connect",
            to(lambda s: s.area.address + s.area.size),
            bare=False,
        ),
        Attempt("connect, before it", "connect", to(lambda s: s.area.address - 32)),
        Attempt("connect a listener", "connect", lambda s: (s.listener, s.slot, 16), bare=False),
    ]


def _options() -> list[Attempt]:
    return [
        Attempt("SO_LINGER", "setsockopt", lambda s: (s.flow(), *_LINGER, s.area.values, 8), WORKS),
        Attempt(
            "SO_LINGER, another value", "setsockopt", lambda s: (s.flow(), *_LINGER, _VALUE, 8)
        ),
        Attempt(
            "SO_LINGER of a listener",
            "setsockopt",
            lambda s: (s.listener, *_LINGER, s.area.values, 8),
        ),
    ]


def _listeners() -> list[Attempt]:
    return [
        Attempt("close a listener", "close", lambda s: (s.listener,)),
        Attempt("shut a listener", "shutdown", lambda s: (s.listener, socket.SHUT_RDWR)),
        Attempt("shut half a listener", "shutdown", lambda s: (s.listener, socket.SHUT_WR)),
    ]


def _as_64_bits() -> list[Attempt]:
    """A filter sees 64 bits of a descriptor, the kernel takes 32."""
    return [
        Attempt("close a listener, as 64 bits", "close", lambda s: (s.listener | 1 << 32,)),
        Attempt(
            "SO_LINGER of a listener, as 64 bits",
            "setsockopt",
            lambda s: (s.listener | 1 << 32, *_LINGER, s.area.values, 8),
        ),
    ]


def _memory(arch: str) -> list[Attempt]:
    """The book, taken away or replaced."""
    mmap_call = "mmap2" if "mmap2" in numbers.of(arch) else "mmap"

    def mapped(where: Callable[[Scene], int]) -> Callable[[Scene], tuple[int, ...]]:
        def arguments(scene: Scene) -> tuple[int, ...]:
            wanted = (where(scene), mmap.PAGESIZE, _RW, _FIXED, -1, 0)
            return (_longs(*wanted),) if arch == "s390x" else wanted

        return arguments

    # Where a filter can't see the arguments of mmap, mseal(2) alone is in the way.
    seen = KILLED if arch != "s390x" else SEALED if is_sealed() else WORKS
    return [
        Attempt("map over the book", mmap_call, mapped(lambda s: s.area.address), seen),
        Attempt("map over the values", mmap_call, mapped(lambda s: s.area.values), seen),
        Attempt("unmap the book", "munmap", lambda s: (s.area.address, s.area.size)),
        Attempt(
            "unmap it from below",
            "munmap",
            lambda s: (s.area.values - VALUES_SIZE, 2 * VALUES_SIZE),
        ),
        Attempt("protect it", "mprotect", lambda s: (s.area.address, s.area.size, 0)),
        Attempt(
            "make it writable",
            "mprotect",
            lambda s: (s.area.address, s.area.size, _RW),
            bare=False,
        ),
        Attempt(
            "move it",
            "mremap",
            lambda s: (s.area.address, s.area.size, s.area.size, _MAYMOVE, 0),
        ),
        Attempt(
            "move over it",
            "mremap",
            lambda s: (_PAGES, mmap.PAGESIZE, mmap.PAGESIZE, _MAYMOVE_FIXED, s.area.address),
        ),
        Attempt(
            "remove what it holds",
            "madvise",
            lambda s: (s.area.address, s.area.size, _MADV_REMOVE),
            bare=False,
        ),
    ]


def _through_socketcall() -> list[Attempt]:
    """Sub-calls of linux/net.h, which a relay makes by numbers of their own."""

    def sub(name: str, number: int, arguments: Callable[[Scene], tuple[int, ...]]) -> Attempt:
        return Attempt(
            f"socketcall: {name}", "socketcall", lambda scene: (number, _longs(*arguments(scene)))
        )

    return [
        sub("connect to a slot", 3, lambda s: (s.flow(), s.slot, 16)),
        sub("connect to AF_UNSPEC", 3, lambda s: (s.flow(), _UNSPEC, 16)),
        sub("shutdown", 13, lambda s: (s.listener, socket.SHUT_WR)),
        sub("setsockopt", 14, lambda s: (s.flow(), *_LINGER, s.area.values, 8)),
    ]


# What mseal(2) refuses to everybody.
SEALED_AGAINST = (
    "map over the book",
    "map over the values",
    "unmap the book",
    "unmap it from below",
    "protect it",
    "move it",
    "move over it",
)
_sealed: list[mmap.mmap] = []  # what can't be unmapped any more


def is_sealed() -> bool:
    """Whether this kernel has mseal(2)."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    _sealed.append(page)
    try:
        linux.mseal(ctypes.addressof(ctypes.c_char.from_buffer(page)), mmap.PAGESIZE)
    except OSError:
        return False
    return True
