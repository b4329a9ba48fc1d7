# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways around the address book and the numbers of descriptors; attempts.py has the rest."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from collections.abc import Callable

from hardsplice.ipc.descriptors import FIRST_LISTENER
from hardsplice.kernel.pinned import BIND_IPV4, LINGER
from hardsplice.sandbox.address_book import SLOT, USUAL
from tests.sandbox.attempts import (
    MONITORS,
    REACHES,
    RELAYS,
    SERVING,
    WORKS,
    Row,
    Scene,
    call,
    place,
    sockaddr,
)
from tests.sandbox.job import ROLES

BOOK, END = USUAL.address, USUAL.address + USUAL.size
_RW = mmap.PROT_READ | mmap.PROT_WRITE
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_FIXED, _NOREPLACE, _NORESERVE = 0x10, 0x100000, 0x4000  # linux/mman.h
_MAYMOVE, _MREMAP_FIXED, _DONTUNMAP = 1, 2, 4
_HIGH = 1 << 32  # a bit of a descriptor that the kernel ignores
_OWN_LINGER = place(struct.pack("ii", 1, 0))
_LONG_LINGER = place(struct.pack("ii", 1, 60))
_INT = place(struct.pack("i", 1 << 30))
_UNSPEC = place(bytes(32))
_PAGES = mmap.mmap(-1, 4 * mmap.PAGESIZE)
_PAGE = ctypes.addressof(ctypes.c_char.from_buffer(_PAGES))


def _begun(result: int) -> int:
    return 0 if result == -errno.EINPROGRESS else result


def _connect(where: int) -> Callable[[Scene], int]:
    return lambda scene: _begun(call("connect", scene.pooled(), where, 16))


def _own(port: str) -> Callable[[Scene], int]:
    def attempt(scene: Scene) -> int:
        address = place(sockaddr(scene.job.ports[port]))
        return _begun(call("connect", scene.pooled(), address, 16))

    return attempt


def _elsewhere(scene: Scene) -> int:
    """An accepted socket, disconnected, is a fresh one of the namespace that the client is in."""
    fd = scene.client()
    done = call("connect", fd, _UNSPEC, 16)
    if done < 0:
        return done
    return _begun(call("connect", fd, place(sockaddr(scene.job.ports["theirs"])), 16))


def connections() -> list[Row]:
    """Connecting to what isn't a target."""
    own = "by an address of one's own"
    return [
        Row("connect to a target, by its slot", _connect(BOOK), SERVING,
            elsewhere=dict.fromkeys(SERVING, WORKS)),
        Row(f"connect to a target {own}", _own("target"), SERVING),
        Row(f"connect to another port {own}", _own("other"), SERVING),
        Row("AF_UNSPEC on a pooled socket", _connect(_UNSPEC), SERVING),
        Row("AF_UNSPEC on an accepted socket",
            lambda scene: call("connect", scene.client(), _UNSPEC, 16), ("relay-in",),
            clients=True),
        Row("connect an accepted socket again, where the client is", _elsewhere, ("relay-in",),
            clients=True),
        Row("connect to the middle of a slot", _connect(BOOK + 8), SERVING, bare=REACHES),
        Row("connect to half a slot", _connect(BOOK + 16), SERVING, bare=REACHES),
        Row("connect to an unused slot", _connect(BOOK + 100 * SLOT), SERVING,
            elsewhere=dict.fromkeys(SERVING, "EAFNOSUPPORT"), bare="EAFNOSUPPORT"),
        Row("connect to a slot that the book has no memory for", _connect(END - SLOT), SERVING,
            elsewhere=dict.fromkeys(SERVING, "EFAULT"), bare="EFAULT"),
        Row("connect to what lies before the book", _connect(USUAL.values + LINGER), SERVING,
            bare=REACHES),
        Row("connect to what lies behind the book", _connect(END), SERVING, bare=REACHES),
        Row("connect to a slot with a bit more", _connect(BOOK | 1 << 40), SERVING, bare=REACHES),
    ]  # fmt: skip


def listeners() -> list[Row]:
    """Spoiling a listener, which others have too. What works without the sandbox ends the port for
    all, so it is tried where no client is needed.
    """
    lives = ("relay-in",)
    rows = []
    for name, fd in (("a listener", FIRST_LISTENER),
                     ("a listener with a high bit", _HIGH | FIRST_LISTENER)):  # fmt: skip
        rows += [
            Row(f"SO_LINGER of {name}", _linger(fd, USUAL.values + LINGER), RELAYS),
            Row(f"SO_LINGER of {name}, by a value of one's own", _linger(fd, _OWN_LINGER), RELAYS),
            Row(f"connect {name}", _simply("connect", fd, BOOK, 16), lives, bare="EISCONN"),
            Row(f"shut down {name} for sending", _simply("shutdown", fd, 1), RELAYS, bare=REACHES),
            Row(f"shut down {name}", _simply("shutdown", fd, 2), ("relay-out",), bare=REACHES),
            Row(f"disconnect {name}", _simply("connect", fd, _UNSPEC, 16), ("relay-out",),
                bare=REACHES),
            Row(f"close {name}", _simply("close", fd), RELAYS),
        ]  # fmt: skip
    return rows


def _simply(name: str, *arguments: int) -> Callable[[Scene], int]:
    return lambda _: call(name, *arguments)


def _linger(fd: int, value: int) -> Callable[[Scene], int]:
    return lambda _: call("setsockopt", fd, socket.SOL_SOCKET, socket.SO_LINGER, value, 8)


def _option(level: int, name: int, value: int, size: int) -> Callable[[Scene], int]:
    return lambda scene: call("setsockopt", scene.pooled(), level, name, value, size)


def options() -> list[Row]:
    """Options of own sockets with values that nobody meant."""
    return [
        Row("SO_LINGER of a minute", _option(1, socket.SO_LINGER, _LONG_LINGER, 8), SERVING),
        Row("the same value somewhere else", _option(1, socket.SO_LINGER, _OWN_LINGER, 8), SERVING),
        Row("TCP_NOTSENT_LOWAT of one's own",
            _option(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _INT, 4), SERVING),
        Row("SO_OOBINLINE of one's own", _option(1, socket.SO_OOBINLINE, _INT, 4), SERVING),
        Row("TCP_NODELAY of one's own",
            _option(socket.IPPROTO_TCP, socket.TCP_NODELAY, _INT, 4), SERVING),
    ]  # fmt: skip


def memory() -> list[Row]:
    """Taking the book away, or putting other memory in its place."""
    page = mmap.PAGESIZE
    fixed = _PRIVATE | _FIXED
    tried: list[tuple[str, str, tuple[int, ...], str]] = [
        ("mmap", "over the book", (BOOK, page, _RW, fixed, -1, 0), REACHES),
        ("mmap", "at a fixed place", (_PAGE, page, _RW, fixed, -1, 0), WORKS),
        ("mmap", "at a fixed place, if it is free",
         (0x7000_0000_0000, page, _RW, _PRIVATE | _NOREPLACE, -1, 0), WORKS),
        ("mmap", "shared", (0, page, _RW, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, -1, 0), WORKS),
        ("mmap", "growing down", (0, page, _RW, _PRIVATE | 0x100, -1, 0), WORKS),
        ("munmap", "the book", (BOOK, page), REACHES),
        ("munmap", "from below", (0x10000, 0x1000000), REACHES),
        ("mprotect", "the book", (BOOK, page, _RW), REACHES),
        ("mprotect", "from below", (USUAL.values, END - USUAL.values, _RW), REACHES),
        ("mremap", "the book", (BOOK, page, page, _MAYMOVE, 0), REACHES),
        ("mremap", "onto the book",
         (_PAGE, page, page, _MAYMOVE | _MREMAP_FIXED, BOOK), REACHES),
        ("mremap", "and leave a hole", (_PAGE, page, page, _MAYMOVE | _DONTUNMAP, 0), REACHES),
        ("remap_file_pages", "of the book", (BOOK, page, 0, 0, 0), REACHES),
    ]  # fmt: skip
    rows = [
        Row(f"{name} {how}", _simply(name, *given), bare=bare) for name, how, given, bare in tried
    ]
    where = {**dict.fromkeys(SERVING, "SIGSEGV")}
    return [
        *rows,
        Row("mmap of a memfd", lambda s: call("mmap", 0, page, _RW, 2, s.props["memory"], 0)),
        Row("write into the book", lambda _: ctypes.memset(BOOK, 0, 1) and 0, SERVING,
            elsewhere=where, bare="SIGSEGV"),
        Row("write an option's value", lambda _: ctypes.memset(USUAL.values, 0, 1) and 0, SERVING,
            elsewhere=where, bare="SIGSEGV"),
    ]  # fmt: skip


def numbers() -> list[Row]:
    """Giving descriptors other numbers, and using those that are not meant for it."""
    local = struct.pack("=H", socket.AF_UNIX) + b"\0hardsplice-taken"

    def named(scene: Scene) -> int:
        address = place(local + str(os.getpid()).encode())
        return call("bind", scene.props["stream"], address, len(local) + 4)

    return [
        Row("dup2 to a high number", lambda _: call("dup2", 0, 6000)),
        Row("dup3 to a high number", lambda _: call("dup3", 0, 6000, 0)),
        Row("close the channel", lambda _: call("close", 3), SERVING),
        Row("close what is reserved", lambda _: call("close", 4), SERVING),
        Row("close_range of what is reserved", lambda _: call("close_range", 4, 5, 0)),
        Row("read from standard input", lambda _: call("read", 0, _INT, 4), bare=WORKS),
        Row("bind to a UNIX name", named),
        Row("bind from the place for listeners",
            lambda scene: call("bind", scene.pooled(), USUAL.values + BIND_IPV4, 8), SERVING,
            dynamic=dict.fromkeys(MONITORS, "EINVAL"), bare="EINVAL"),
        Row("bind by a pointer to nearby",
            lambda scene: call("bind", scene.pooled(), USUAL.values + BIND_IPV4 + 32, 16), SERVING,
            bare=REACHES),
        Row("listen with the largest backlog",
            lambda scene: call("listen", scene.pooled(), 65535), SERVING,
            dynamic=dict.fromkeys(MONITORS, WORKS)),
        Row("mmap, more memory than any process may have",
            lambda _: call("mmap", 0, 1 << 45, _RW, _PRIVATE | _NORESERVE, -1, 0),
            elsewhere=dict.fromkeys(ROLES, "ENOMEM")),
        Row("prctl, outlive the monitor", lambda _: call("prctl", 1, 0, 0, 0, 0)),
    ]  # fmt: skip


def all_of_them() -> list[Row]:
    """For the table."""
    return [*connections(), *listeners(), *options(), *memory(), *numbers()]
