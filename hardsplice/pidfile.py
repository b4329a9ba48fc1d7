# SPDX-License-Identifier: GPL-2.0-or-later
"""The PID file. It stays when hardsplice ends: a process that is locked down can't remove it."""

from __future__ import annotations

import contextlib
import os

from hardsplice.errors import Failure, reason_of


class PidFile:
    """A PID file: made early, so that a bad path is an early error; written last; removed if set-up
    fails.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self.existed = os.path.lexists(path)
            self.fd = os.open(path, flags, 0o644)
        except OSError as error:
            raise Failure("write", f"PID file {path}", reason_of(error)) from error

    def write(self) -> None:
        """Write our PID."""
        try:
            os.ftruncate(self.fd, 0)
            os.write(self.fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise Failure("write", f"PID file {self.path}", reason_of(error)) from error

    def remove(self) -> None:
        """Remove what we made."""
        if not self.existed:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
