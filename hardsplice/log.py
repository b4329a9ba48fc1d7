# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines for people: where they go, which are wanted, and how many of a kind there may be.

Only the host monitor writes them. The others send records, and their text is shown with everything
unprintable escaped, so that a taken-over relay can't play with somebody's terminal.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from enum import IntEnum

_DAEMON = 3  # syslog's facility
LINES_A_SECOND = 1.0  # of one kind


class Level(IntEnum):
    """The numbers are syslog's (RFC 5424), but for TRACE, which goes there as DEBUG."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7
    TRACE = 8


class Limiter:
    """At most one line of a kind in a second; what was left out is counted."""

    def __init__(self) -> None:
        self._last: dict[object, float] = {}
        self._left_out: dict[object, int] = {}

    def admit(self, kind: object, now: float) -> int | None:
        """None to leave this one out; else how many were left out since the last."""
        last = self._last.get(kind)
        if last is not None and now - last < LINES_A_SECOND:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return None
        self._last[kind] = now
        return self._left_out.pop(kind, 0)


def printable(text: str) -> str:
    """``text`` on one line, whatever is in it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class Log:
    """Where lines go. It is descriptor 2 always, so that the policy can name it; what is behind it
    may be standard error as it was inherited, a file with a limited size, or a socket connected to
    syslog.
    """

    def __init__(self, level: Level) -> None:
        self.level = level
        self.limiter = Limiter()
        self._next: int | None = None  # what becomes descriptor 2 when set-up is over
        self._next_limit = 0
        self._limit = 0  # bytes after which a file starts over; 0 for no limit
        self._written = 0
        self._next_is_syslog = False
        self._syslog = False

    def to_file(self, fd: int, limit: int) -> None:
        """Write to a file once set-up is over, starting over when it has ``limit`` bytes."""
        self._next, self._next_limit = fd, limit

    def to_syslog(self) -> None:
        """Write to syslog once set-up is over, or nowhere where there is none: the background has
        no terminal.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            connection.connect("/dev/log")
        except OSError:
            connection.close()
            self._next = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            return
        self._next, self._next_is_syslog = connection.detach(), True

    @property
    def file_limit(self) -> int:
        """The largest file, in bytes, that this process still needs to write; -1 for any
        (RLIM_INFINITY).
        """
        if self._next_limit:
            return self._next_limit
        return -1 if stat.S_ISREG(os.fstat(2).st_mode) else 0

    def settle(self) -> None:
        """Set-up is over: from now on descriptor 2 is what was chosen."""
        self._limit, self._syslog = self._next_limit, self._next_is_syslog
        if self._limit:
            self._written = os.fstat(self._next or 2).st_size
        if self._next is not None:
            os.dup2(self._next, 2)
            os.close(self._next)
            self._next = None

    def line(self, level: Level, text: str) -> None:
        """Write one line, if lines of this level are wanted. Never raises: a full disk must not
        stop the relay.
        """
        if level > self.level:
            return
        lead = "hardsplice"
        if self._syslog:
            priority = _DAEMON << 3 | min(level, Level.DEBUG)
            lead = f"<{priority}>hardsplice[{os.getpid()}]"
        end = "" if self._syslog else "\n"
        with contextlib.suppress(OSError):
            self._write(f"{lead}: {printable(text)}{end}".encode(errors="backslashreplace"))

    def limited(self, level: Level, kind: object, text: str) -> None:
        """Like ``line``, but at most one of a kind in a second."""
        left_out = self.limiter.admit(kind, time.monotonic())
        if left_out is None:
            return
        more = f" ({left_out} more like it were left out)" if left_out else ""
        self.line(level, text + more)

    def _write(self, data: bytes) -> None:
        if self._limit and self._written + len(data) > self._limit:
            os.ftruncate(2, 0)
            os.lseek(2, 0, os.SEEK_SET)
            self._written = 0
        self._written += os.write(2, data)
