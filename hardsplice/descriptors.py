# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors during set-up: enough of them, and the fixed numbers kept free for their use."""

from __future__ import annotations

import fcntl
import os
import resource

from hardsplice import isolate
from hardsplice.errors import Failure, reason_of


def raise_limit() -> None:
    """Take all descriptors that the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def above_fixed(fd: int) -> int:
    """A copy of the --ready-fd where no fixed descriptor will be."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, isolate.LAST_FIXED_FD + 1)
    except OSError as error:
        raise Failure("use", f"--ready-fd {fd}", reason_of(error)) from error


def reserve_fixed() -> None:
    """Fill the fixed numbers that are free, so that nothing opened from now on gets one of them."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in range(isolate.LAST_FIXED_FD + 1):
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(null, fd, inheritable=False)
    if null > isolate.LAST_FIXED_FD:
        os.close(null)


def move(fd: int, to: int) -> None:
    """Give an open descriptor another number."""
    if fd != to:
        os.dup2(fd, to, inheritable=False)
        os.close(fd)
