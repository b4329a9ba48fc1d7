# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines for people: where they go, which are wanted, and how many of a kind there may be.

Only the host monitor writes them. The others send records, and their text is shown with everything
unprintable escaped, so that a taken-over relay can't play with somebody's terminal.

Nobody who reads slowly, or a terminal that is stopped, holds the monitor up: a line that can't be
written at once is left out and counted.

A log file never grows past its limit, and what it has is the end of the story: when it is full, the
newest half of it is read, the file is cut to nothing and the half is written again. That takes one
descriptor, which is open already, and works on a file that somebody else has cut short meanwhile,
since writes go to the end always. Whoever reads along sees the file shrink, as with logrotate's
copytruncate. Only if hardsplice is killed between the cut and the write is the half lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import IntEnum

from hardsplice.errors import printable
from hardsplice.values import LogFormat

_DAEMON = 3  # syslog's facility
LINES_A_SECOND = 1.0  # of one kind
LINE_LIMIT = (
    2048  # bytes of a line; pipes, syslog and the smallest log file take these in one piece
)
LAST_WORDS = 1.0  # seconds that an error waits for its reader
KEPT = 8 << 20  # bytes of a full log file that are kept at the most
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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


class Log:
    """Where lines go. It is descriptor 2 always, so that the policy can name it; what is behind it
    may be standard error as it was inherited, a file with a limited size, or a socket connected to
    syslog.
    """

    def __init__(self, level: Level, form: LogFormat = "text", journal: str = "") -> None:
        """``journal`` is $JOURNAL_STREAM."""
        self.level = level
        self.limiter = Limiter()
        self._form = form
        self._next: int | None = None  # what becomes descriptor 2 when set-up is over
        self._next_limit = 0
        self._limit = 0  # bytes that a file may have; 0 for no limit
        self._written = 0
        self._next_is_syslog = False
        self._syslog = False
        self._journal = is_journal(2, journal)
        self._poller: select.poll | None = None  # where a reader may keep a writer waiting
        self._missed = 0  # lines that nobody took

    def to_file(self, fd: int, limit: int) -> None:
        """Write to a file, open for reading and appending, once set-up is over; it keeps to
        ``limit`` bytes.
        """
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
            self._journal = False
        if not stat.S_ISREG(os.fstat(2).st_mode):
            self._poller = select.poll()
            self._poller.register(2, select.POLLOUT)

    def line(self, level: Level, text: str) -> None:
        """Write one line, if lines of this level are wanted."""
        if level <= self.level:
            self.write(level, text, {"message": text})

    def limited(self, level: Level, kind: object, text: str) -> bool:
        """Like ``line``, but at most one of a kind in a second; whether this was the one."""
        left_out = self.limiter.admit(kind, time.monotonic())
        if left_out is None:
            return False
        more = f" ({left_out} more like it were left out)" if left_out else ""
        self.line(level, text + more)
        return True

    def write(self, level: Level, text: str, fields: Mapping[str, object]) -> None:
        """Write one line, wanted or not: ``text`` for people, or ``fields`` as JSON. Never raises:
        a full disk must not stop the relay.
        """
        lead = ""
        if self._syslog:
            lead = f"<{_DAEMON << 3 | min(level, Level.DEBUG)}>hardsplice[{os.getpid()}]: "
        elif self._journal:
            lead = f"<{min(level, Level.DEBUG)}>"
        if self._form == "json":
            line = as_json(level, fields, time.time())
        else:
            line = printable(text) if self._syslog else f"hardsplice: {printable(text)}"
        end = b"" if self._syslog else b"\n"
        data = (lead + line).encode(errors="backslashreplace")
        if self._missed and self._has_room(0):
            missed, self._missed = self._missed, 0
            self.line(Level.WARNING, f"{missed} lines before this one are lost: nobody read them")
        if not self._has_room(LAST_WORDS if level is Level.ERROR else 0):
            self._missed += 1
            return
        with contextlib.suppress(OSError):
            self._write(_cut(data, LINE_LIMIT - len(end)) + end)

    def _has_room(self, seconds: float) -> bool:
        """Whether a line can be written without waiting for a reader, now or in a moment."""
        poller = self._poller
        return poller is None or bool(poller.poll(int(seconds * 1000)))

    def _write(self, data: bytes) -> None:
        if self._limit and self._written + len(data) > self._limit:
            self._written = 0  # if what follows fails
            self._written = make_room(2, min(self._limit // 2, KEPT))
        self._written += os.write(2, data)


def is_journal(fd: int, stream: str) -> bool:
    """Whether ``fd`` is the stream to the journal that $JOURNAL_STREAM names (systemd.exec(5))."""
    device, _, inode = stream.partition(":")
    try:
        found = os.fstat(fd)
        return (found.st_dev, found.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False


def as_json(level: Level, fields: Mapping[str, object], now: float) -> str:
    """One line of the log as a JSON object; ``now`` is in seconds since 1970."""
    when = (_EPOCH + timedelta(seconds=now)).isoformat(timespec="milliseconds")
    return json.dumps({"time": when, "level": level.name.lower(), **fields})


def make_room(fd: int, keep: int) -> int:
    """Remove the oldest lines of a full file, so that at most ``keep`` bytes remain, in whole
    lines: the size that it has then.
    """
    size = os.lseek(fd, 0, os.SEEK_END)  # which somebody else may have changed
    kept = os.pread(fd, keep + 1, max(0, size - keep - 1))
    if size > keep:
        kept = kept[kept.find(b"\n") + 1 or len(kept) :]
    os.ftruncate(fd, 0)
    return os.write(fd, kept) if kept else 0


def _cut(data: bytes, limit: int) -> bytes:
    return data if len(data) <= limit else data[: limit - 3] + b"..."
