# SPDX-License-Identifier: GPL-2.0-or-later
"""Instances of hardsplice that were started for containers: which belongs to which.

An engine's calls are processes of their own, and what they know of each other is in a folder
(frontends/folders.py). An instance is found by its PID file, which it has
locked as long as it lives; so nothing in there can mislead, whatever was killed in between. Calls
for one container wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence

from hardsplice.app import pidfile, start
from hardsplice.app.command_line import parse_args
from hardsplice.frontends import folders
from hardsplice.ipc import sd_notify
from hardsplice.kernel.files import identity, open_regular
from hardsplice.model.errors import HardspliceError, reason_of, write_all

LOCK_SECONDS = 30.0  # that a call waits for another one
END_SECONDS = 3.0  # that an instance has to end
_PAUSE = 0.02
_PID, _LOCK, _NOTE = ".pid", ".lock", ".json"
_NOTE_LIMIT = 1 << 20


class Instances:
    """All that were started for one front-end."""

    def __init__(self, *names: str) -> None:
        """``names`` lead to its folder, which is made; HardspliceError where it can't be."""
        self.folder = folders.make(*names)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[Instance]:
        """The instance of that name, for one caller at a time. HardspliceError if another one takes
        too long.
        """
        instance = Instance(f"{self.folder}/{name}")
        lock = _lock(instance.path + _LOCK)
        try:
            yield instance
        finally:
            if not instance.has_files():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(instance.path + _LOCK)
            os.close(lock)

    def names(self) -> list[str]:
        """The names of all that there may be."""
        found = (os.path.splitext(name) for name in os.listdir(self.folder))
        return sorted({name for name, ending in found if ending in (_PID, _NOTE, _LOCK)})


class Instance:
    """One of them, whose files have names that begin with ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pid_file = path + _PID

    def has_files(self) -> bool:
        """Whether anything is known of it."""
        return os.path.lexists(self.pid_file) or os.path.lexists(self.path + _NOTE)

    def runs(self) -> bool:
        """Whether it is running."""
        process = pidfile.holder(self.pid_file)
        if process is not None:
            os.close(process)
        return process is not None

    def begin(self, words: Sequence[str]) -> None:
        """Begin to serve namespaces that are there already, as with this command line; return once
        all is ready. HardspliceError where nothing was started.

        Whoever started us may be supervised: nothing is told in its name.
        """
        began = time.monotonic()
        sd_notify.forget(os.environ)
        start.launch(parse_args(["-P", self.pid_file, *words]), began)

    def end(self) -> None:
        """End it, if it runs, and wait until it has; forget it."""
        process = pidfile.holder(self.pid_file)
        if process is not None:
            try:
                _end(process)
            finally:
                os.close(process)
        for ending in (_PID, _NOTE):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + ending)

    def write_note(self, text: bytes) -> None:
        """Keep something about it, all or nothing. HardspliceError where that can't be done."""
        path = self.path + _NOTE
        try:
            fd = open_regular(path + "~", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                write_all(fd, text)
            finally:
                os.close(fd)
            os.rename(path + "~", path)
        except OSError as error:
            raise HardspliceError("write", path, reason_of(error)) from error

    def read_note(self) -> bytes | None:
        """What was kept; None where nothing was."""
        try:
            fd = open_regular(self.path + _NOTE, os.O_RDONLY, 0)
        except OSError:
            return None
        with open(fd, "rb") as file:
            return file.read(_NOTE_LIMIT)


def _end(process: int) -> None:
    """End the process behind a pidfd, in its own way if that doesn't take too long."""
    for number, seconds in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, END_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, number)
        poller = select.poll()
        poller.register(process, select.POLLIN)
        if poller.poll(1000 * seconds):
            return


def _lock(path: str) -> int:
    """A descriptor with the lock of the file at ``path``, which whoever had it may have removed."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fd = open_regular(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise HardspliceError("lock", path, reason_of(error)) from error
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if identity(os.lstat(path)) == identity(os.fstat(fd)):
                return fd
        os.close(fd)
        if time.monotonic() > deadline:
            reason = f"another process has had it for {LOCK_SECONDS:.0f} seconds"
            raise HardspliceError("lock", path, reason)
        time.sleep(_PAUSE)
