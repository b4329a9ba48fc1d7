# SPDX-License-Identifier: GPL-2.0-or-later
"""The seam between the engine and the kernel: every call that a relay makes for a connection, under
one roof.

The engine takes a Kernel; tests hand it another one that follows a script or plays faults which no
real kernel can be made to play on demand. The methods are the plain functions themselves, so the
seam costs no call.
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

from hardsplice import linux

SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


def open_pipe() -> tuple[int, int]:
    """A new pipe's descriptors, for reading and for writing; OSError when there are none left."""
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


def resize_pipe(fd: int, size: int) -> int:
    """Ask for ``size`` bytes; the size that the pipe then has, which may be larger.

    Past the user's allowance (pipe-user-pages-soft) the kernel says EPERM, past pipe-max-size
    EPERM too: the pipe works all the same with the size that it has.
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

    accept: Callable[[int], int] = staticmethod(linux.accept4)
    from_ipv4: Callable[[], bool] = staticmethod(linux.accepted_from_ipv4)
    accepted_from: Callable[[], tuple[bytes, int]] = staticmethod(linux.accepted_from)
    connect: Callable[[int, bytes], int] = staticmethod(linux.connect)
    connected: Callable[[int], int] = staticmethod(linux.connected)
    shutdown: Callable[[int, int], int] = staticmethod(linux.shutdown)
    abort: Callable[[int], int] = staticmethod(linux.abort)
    limit_unsent: Callable[[int, int], int] = staticmethod(linux.limit_unsent)
    keep_urgent_inline: Callable[[int], int] = staticmethod(linux.keep_urgent_inline)
    at_mark: Callable[[int], bool] = staticmethod(linux.sockatmark)
    receive_byte: Callable[[int, int], bytes | int] = staticmethod(linux.receive_byte)
    send_byte: Callable[[int, bytes, int], int] = staticmethod(linux.send_byte)
    unsent: Callable[[int], int] = staticmethod(unsent)
    splice: Callable[..., int] = staticmethod(os.splice)
    close: Callable[[int], None] = staticmethod(os.close)
    open_pipe: Callable[[], tuple[int, int]] = staticmethod(open_pipe)
    resize_pipe: Callable[[int, int], int] = staticmethod(resize_pipe)
    now: Callable[[], float] = staticmethod(time.monotonic)
    epoll: Callable[[], select.epoll] = staticmethod(select.epoll)
