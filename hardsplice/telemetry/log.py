# SPDX-License-Identifier: GPL-2.0-or-later
"""Log lines: where they go, which are written, and how many of one kind.

Only the host monitor writes them. The other processes send records, and their text is shown with
unprintable characters escaped, so that a taken-over relay can't control a terminal.

Neither a slow reader nor a stopped terminal holds the monitor up: a line that can't be written at
once is left out and counted. Only the last message of a process waits for its reader, for a moment.

A log file never grows beyond its limit, and keeps its newest lines: when it is full, the newest
half of it is read, the file is truncated and the half is written again. This needs one descriptor,
which is open already, and works on a file that another process has truncated meanwhile, since
writes always go to the end. A process that follows the file sees it shrink, as with logrotate's
copytruncate. The half is lost only if hardsplice is killed between the truncation and the write.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import socket
import stat
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import IntEnum

from hardsplice.kernel.files import open_regular
from hardsplice.kernel.hints import Literal
from hardsplice.model.errors import HardspliceError, printable, reason_of

_DAEMON = 3  # syslog's facility
LINES_A_SECOND = 1.0  # of one kind
LINE_LIMIT = (
    2048  # bytes of a line; pipes, syslog and the smallest log file take these in one piece
)
LAST_WORDS = 1.0  # seconds that last messages wait for their reader, all together
KEPT = 8 << 20  # bytes of a full log file that are kept at the most
_DOTS = "..."  # for what was cut off
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


LogFormat = Literal["text", "json"]


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
        self._poller = _poller()
        self._patience = LAST_WORDS
        self._missed = 0  # lines that could not be written
        self._is_torn = False  # the last line has no end

    def to_file(self, fd: int, limit: int) -> None:
        """Write to a file, open for reading and appending, once set-up is over; it keeps to
        ``limit`` bytes.
        """
        soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        self._next = fd
        self._next_limit = limit if soft == resource.RLIM_INFINITY else min(limit, soft)

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
        if stat.S_ISREG(os.fstat(2).st_mode):
            return resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return 0

    def settle(self) -> None:
        """Set-up is over: from now on descriptor 2 is the chosen destination."""
        self._limit, self._syslog = self._next_limit, self._next_is_syslog
        if self._limit:
            self._written = os.fstat(self._next or 2).st_size
        if self._next is not None:
            os.dup2(self._next, 2)
            os.close(self._next)
            self._next = None
            self._journal = False
        _have_own_end_of_pipe()
        self._poller = _poller()

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

    def last_words(self, text: str) -> None:
        """Write an error with which this process ends: it may wait for its reader."""
        self.write(Level.ERROR, text, {"message": text}, wait=True)

    def write(
        self, level: Level, text: str, fields: Mapping[str, object], *, wait: bool = False
    ) -> None:
        """Write one line, whatever its level: ``text``, or ``fields`` as JSON. Never raises: a full
        disk must not stop forwarding.
        """
        if self._missed and self._has_room(wait=wait):
            missed, self._missed = self._missed, 0
            lost = f"{missed} lines before this one are lost: nobody took them"
            self.line(Level.WARNING, lost)
        if not self._has_room(wait=wait) or not self._write(self._encode(level, text, fields)):
            self._missed += 1

    def _encode(self, level: Level, text: str, fields: Mapping[str, object]) -> bytes:
        """A line's bytes, LINE_LIMIT at most."""
        lead = ""
        if self._syslog:
            lead = f"<{_DAEMON << 3 | min(level, Level.DEBUG)}>hardsplice[{os.getpid()}]: "
        elif self._journal:
            lead = f"<{min(level, Level.DEBUG)}>"
        end = "" if self._syslog else "\n"
        limit = LINE_LIMIT - len(lead) - len(end)
        if self._form == "json":
            line = as_json(level, fields, time.time(), limit)
        else:
            name = "" if self._syslog else "hardsplice: "
            when = f"{timestamp(time.time())} " if self._limit else ""  # others add their own
            line = _cut(when + name + printable(text, LINE_LIMIT), limit)
        return f"{lead}{line}{end}".encode(errors="backslashreplace")

    def _has_room(self, *, wait: bool) -> bool:
        """Whether a line can be written without waiting for a reader: now, or, with ``wait``, while
        there is patience left.
        """
        poller = self._poller
        if poller is None or poller.poll(0):
            return True
        if not wait or self._patience <= 0:
            return False
        began = time.monotonic()
        has_room = bool(poller.poll(1000 * self._patience))
        self._patience -= time.monotonic() - began
        return has_room

    def _write(self, data: bytes) -> bool:
        """Whether all of a line was written; of one that was not nothing stays, where that can be
        had: else the next one begins by ending it.
        """
        if self._is_torn:
            data = b"\n" + data
        try:
            if self._limit and self._written + len(data) > self._limit:
                self._written = 0  # if what follows fails
                self._written = make_room(2, min(self._limit // 2, KEPT))
            written = os.write(2, data)
            if written == len(data):
                self._written += written
                self._is_torn = False
                return True
            if self._limit:
                os.ftruncate(2, os.lseek(2, 0, os.SEEK_END) - written)
            else:
                self._is_torn = True
        except OSError:
            pass
        return False


def open_file(path: str) -> int:
    """A log file, to read and to append to; HardspliceError where it can't be opened."""
    try:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        raise HardspliceError("write", f"log file {path}", reason_of(error)) from error
    try:
        # Two processes that limit the size of one file would remove each other's lines.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        taken = isinstance(error, BlockingIOError)
        reason = "another hardsplice writes it; give each its own" if taken else reason_of(error)
        raise HardspliceError("write", f"log file {path}", reason) from error
    return fd


def _poller() -> select.poll | None:
    """What tells whether descriptor 2 takes a line now; None where it has no reader to wait for."""
    try:
        if stat.S_ISREG(os.fstat(2).st_mode):
            return None
    except OSError:
        return None
    poller = select.poll()
    poller.register(2, select.POLLOUT)
    return poller


def _have_own_end_of_pipe() -> None:
    """Where descriptor 2 is a pipe, open it once more, so as not to wait for its reader: others
    that write to it, COMMAND for one, can fill it between our check and our write, and they share
    the flags of the end that we inherited. A pipe of another user can't be opened; it stays as it
    is.
    """
    if stat.S_ISFIFO(os.fstat(2).st_mode):
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
            own = os.open("/proc/self/fd/2", flags)
            os.dup2(own, 2, inheritable=False)
            os.close(own)


def is_journal(fd: int, stream: str) -> bool:
    """Whether ``fd`` is the stream to the journal that $JOURNAL_STREAM names (systemd.exec(5))."""
    device, _, inode = stream.partition(":")
    try:
        found = os.fstat(fd)
        return (found.st_dev, found.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False


def timestamp(now: float) -> str:
    """A time, in seconds since 1970, as ISO 8601 has it. In UTC: local time would take files that
    a process that is locked down can't read.
    """
    return (_EPOCH + timedelta(seconds=now)).isoformat(timespec="milliseconds")


def as_json(level: Level, fields: Mapping[str, object], now: float, limit: int) -> str:
    """One line of the log as a JSON object, of ``limit`` bytes at most: of too long a text the
    beginning. ``now`` is in seconds since 1970.
    """
    when = timestamp(now)
    shown = {
        name: printable(value, limit) if isinstance(value, str) else value
        for name, value in fields.items()
    }
    whole = {"time": when, "level": level.name.lower(), **shown}
    line = json.dumps(whole)
    texts = {name: text for name, text in shown.items() if isinstance(text, str)}
    while len(line) > limit and any(texts.values()):
        longest = max(texts, key=lambda name: len(json.dumps(texts[name])))
        whole[longest] = texts[longest] = _shorten(texts[longest], len(line) - limit)
        line = json.dumps(whole)
    return line


def _shorten(text: str, by: int) -> str:
    """``text`` without its end, so that it takes at least ``by`` bytes less in JSON, if it has as
    many. Dots stand for the end where there is room.
    """
    left = len(json.dumps(text)) - 2 - by - len(_DOTS)
    for at, char in enumerate(text):
        left -= len(json.dumps(char)) - 2
        if left < 0:
            return text[:at] + _DOTS if at else ""
    return ""


def make_room(fd: int, keep: int) -> int:
    """Remove the oldest lines of a full file, so that at most ``keep`` bytes remain, in whole
    lines: the size that it has then.
    """
    size = os.lseek(fd, 0, os.SEEK_END)  # which another process may have changed
    kept = os.pread(fd, keep + 1, max(0, size - keep - 1))
    if size > keep:
        kept = kept[kept.find(b"\n") + 1 or len(kept) :]
    os.ftruncate(fd, 0)
    return os.write(fd, kept) if kept else 0


def _cut(line: str, limit: int) -> str:
    """``line`` in ``limit`` bytes at most, each character of it whole."""
    data = line.encode(errors="backslashreplace")
    if len(data) <= limit:
        return line
    return data[: limit - len(_DOTS)].decode(errors="ignore") + _DOTS
