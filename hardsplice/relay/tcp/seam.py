# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface between the engine and the kernel: every call that a relay makes for a connection.

The engine takes a Kernel; tests pass another one that follows a script, or fails in ways that a
real kernel can't be made to. The methods are the plain functions themselves, so this indirection
costs no call.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import struct
import termios
import time
from collections.abc import Callable

from hardsplice.kernel import socketcalls, unotify
from hardsplice.relay.targets import connect
from hardsplice.sandbox.address_book import Pointer

SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


def open_pipe() -> tuple[int, int]:
    """A new pipe's descriptors, for reading and for writing; OSError when there are none left."""
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


def resize_pipe(fd: int, size: int) -> int:
    """Ask for ``size`` bytes; the size that the pipe then has, which may be larger.

    Beyond the user's allowance (pipe-user-pages-soft) or pipe-max-size the kernel returns EPERM:
    the pipe works all the same with the size that it has.
    """
    try:
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


def unsent(fd: int) -> int:
    """Bytes that the peer has not acknowledged yet, or not read, where it is a local one (SIOCOUTQ,
    which shares its number with TIOCOUTQ); 0 if unknown.
    """
    try:
        answer: bytes = fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])


class Kernel:
    """The real calls, and the size of a page, which is what a slot of a pipe holds at the most."""

    page_size = mmap.PAGESIZE

    accept: Callable[[int], int] = staticmethod(socketcalls.accept4)
    accept_from: Callable[[int], int] = staticmethod(socketcalls.accept4_from)
    from_ipv4: Callable[[], bool] = staticmethod(socketcalls.accepted_from_ipv4)
    accepted_from: Callable[[], tuple[bytes, int]] = staticmethod(socketcalls.accepted_from)
    connect: Callable[[int, Pointer], int] = staticmethod(connect)
    connected: Callable[[int], int] = staticmethod(socketcalls.connected)
    shutdown: Callable[[int, int], int] = staticmethod(socketcalls.shutdown)
    abort: Callable[[int], int] = staticmethod(socketcalls.abort)
    spare: Callable[[int], int] = staticmethod(socketcalls.spare)
    limit_unsent: Callable[[int, int], int] = staticmethod(socketcalls.limit_unsent)
    keep_urgent_inline: Callable[[int], int] = staticmethod(socketcalls.keep_urgent_inline)
    at_mark: Callable[[int], bool] = staticmethod(socketcalls.sockatmark)
    receive_byte: Callable[[int, int], bytes | int] = staticmethod(socketcalls.receive_byte)
    send_byte: Callable[[int, bytes, int], int] = staticmethod(socketcalls.send_byte)
    keep_alive: Callable[[int], None] = staticmethod(socketcalls.set_keepalive)
    unsent: Callable[[int], int] = staticmethod(unsent)
    splice: Callable[..., int] = staticmethod(os.splice)
    close: Callable[[int], None] = staticmethod(os.close)
    open_pipe: Callable[[], tuple[int, int]] = staticmethod(open_pipe)
    resize_pipe: Callable[[int, int], int] = staticmethod(resize_pipe)
    take_listener: Callable[[int], bool] = staticmethod(unotify.request_descriptor)
    now: Callable[[], float] = staticmethod(time.monotonic)
    epoll: Callable[[], select.epoll] = staticmethod(select.epoll)
