# SPDX-License-Identifier: GPL-2.0-or-later
"""The PID file. It remains when hardsplice ends: a locked-down process can't remove it.

A file belongs to one instance. There are two locks. Set-up takes a write lock of fcntl(2), which
needs a writable descriptor, so other users, who can only read the file, can't take one. A
locked-down process should have no such descriptor; so its lock is one of flock(2) on a read-only
descriptor, and lasts until the process ends in any way. A stale file therefore doesn't matter. Any
user who can read the file can take that second lock: if it is taken, the number in the file shows
whether an instance has it. No lock is waited for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from hardsplice.kernel.files import identity, open_regular
from hardsplice.model.errors import HardspliceError, reason_of, write_all
from hardsplice.model.roles import HOST

_SIZE = 32  # bytes: more than any PID has
_ATTEMPTS = 10  # to get hold of a file that others remove
_HELD = (errno.EAGAIN, errno.EACCES)


class PidFile:
    """A PID file: made and locked early, so that a bad path is an early error; written last;
    removed if set-up fails.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            for _ in range(_ATTEMPTS):
                self.existed = os.path.lexists(path)
                self.fd = open_regular(path, os.O_RDWR | os.O_CREAT, 0o644)
                self.held = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
                self._claim()
                if self._is_there():
                    return
                self._close()  # its owner has just removed it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        except OSError as error:
            raise HardspliceError("write", f"PID file {path}", reason_of(error)) from error

    def _claim(self) -> None:
        """Lock the file; HardspliceError where it is another instance's."""
        who = None
        if not _locked(self.fd, fcntl.LOCK_EX) and not _locked(self.fd, fcntl.LOCK_SH):
            who = "one that is about to start"
        elif not _kept(self.held) and _is_ours(pid := _read(self.fd)):
            who = f"process {pid}"
        if who is not None:
            self._close()
            hint = "give each instance a file of its own, or end the other one"
            reason = f"another instance has it, {who}"
            raise HardspliceError("write", f"PID file {self.path}", reason, hint)

    def _close(self) -> None:
        os.close(self.held)
        os.close(self.fd)

    def _is_there(self) -> bool:
        """Whether the file is still the one at its path."""
        with contextlib.suppress(FileNotFoundError):
            return identity(os.lstat(self.path)) == identity(os.fstat(self.fd))
        return False

    def write(self) -> None:
        """Write our PID."""
        try:
            os.ftruncate(self.fd, 0)
            write_all(self.fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise HardspliceError("write", f"PID file {self.path}", reason_of(error)) from error

    def remove(self) -> None:
        """Remove what we made, if it is still that which is there."""
        if not self.existed:
            with contextlib.suppress(OSError):
                if self._is_there():
                    os.unlink(self.path)


def _locked(fd: int, how: int) -> bool:
    """Whether the lock of set-up could be taken; a file system without locks is accepted."""
    try:
        fcntl.lockf(fd, how | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD
    return True


def _kept(fd: int) -> bool:
    """Whether the lock for life could be taken."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _read(fd: int) -> int:
    """The number in a PID file; 0 where there is none."""
    with contextlib.suppress(ValueError, OSError):
        return int(os.pread(fd, _SIZE, 0))
    return 0


def _is_ours(pid: int) -> bool:
    """Whether there is an instance with this number."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        return file.read() == f"{HOST.name}\n"
    return False


def holder(path: str) -> int | None:
    """A pidfd of the instance that has the PID file at ``path``; None where none has."""
    with contextlib.suppress(OSError):
        fd = open_regular(path, os.O_RDONLY, 0)
        try:
            pid = _read(fd)
            process = os.pidfd_open(pid) if pid else None
            # Only now that it can't become another one's: whose number is it?
            if process is not None and (_kept(fd) or not _is_ours(pid)):
                os.close(process)
                process = None
            return process
        finally:
            os.close(fd)
    return None


def remove_left(path: str, pid: int) -> None:
    """Remove the PID file of the process ``pid``, which ended and could not: one with its number in
    it, or with nothing yet, that nobody has locked.
    """
    with contextlib.suppress(OSError):
        fd = open_regular(path, os.O_RDONLY, 0)
        try:
            if _kept(fd) and os.read(fd, _SIZE) in (b"", f"{pid}\n".encode()):
                os.unlink(path)
        finally:
            os.close(fd)
