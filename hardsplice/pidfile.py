# SPDX-License-Identifier: GPL-2.0-or-later
"""The PID file. It stays when hardsplice ends: a process that is locked down can't remove it."""

from __future__ import annotations

import contextlib
import os

from hardsplice.errors import Failure, reason_of, write_all
from hardsplice.files import identity, open_regular

_SIZE = 32  # bytes: more than any PID has


class PidFile:
    """A PID file: made early, so that a bad path is an early error; written last; removed if set-up
    fails.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.existed = os.path.lexists(path)
            self.fd = open_regular(path, os.O_WRONLY | os.O_CREAT, 0o644)
        except OSError as error:
            raise Failure("write", f"PID file {path}", reason_of(error)) from error

    def write(self) -> None:
        """Write our PID."""
        try:
            os.ftruncate(self.fd, 0)
            write_all(self.fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise Failure("write", f"PID file {self.path}", reason_of(error)) from error

    def remove(self) -> None:
        """Remove what we made, if it is still that which is there."""
        if not self.existed:
            with contextlib.suppress(OSError):
                if identity(os.lstat(self.path)) == identity(os.fstat(self.fd)):
                    os.unlink(self.path)


def remove_left(path: str, pid: int) -> None:
    """Remove the PID file of the process ``pid``, which ended and could not: one with its number in
    it, or with nothing yet.
    """
    with contextlib.suppress(OSError):
        fd = open_regular(path, os.O_RDONLY, 0)
        try:
            if os.read(fd, _SIZE) in (b"", f"{pid}\n".encode()):
                os.unlink(path)
        finally:
            os.close(fd)
