# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors during set-up: enough of them, and the fixed numbers kept free for their use."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from collections.abc import Mapping

from hardsplice import isolate
from hardsplice.errors import Failure, reason_of


def raise_limit() -> tuple[int, int]:
    """Take all descriptors that the hard limit allows; what the limits were."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def take_ready(fd: int) -> int:
    """Move the --ready-fd to where no fixed descriptor will be. It is for us and not for COMMAND,
    unless it is one of the standard streams.
    """
    try:
        moved = above_fixed(fd)
    except OSError as error:
        raise Failure("use", f"--ready-fd {fd}", reason_of(error)) from error
    if fd > 2:
        os.close(fd)
    return moved


def above_fixed(fd: int) -> int:
    """A copy where no fixed descriptor will be."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, isolate.LAST_FIXED_FD + 1)


def set_aside(first: int) -> dict[int, int]:
    """Take what the caller gave beside the standard streams out of the way: everything from 3 on
    that would be inherited. What has a number below ``first`` moves above it. The number that each
    had, and the one that it has now, where nobody inherits it; ``put_back`` undoes this.

    What the interpreter or we open is never inheritable (PEP 446), so it has no part in this.
    """
    aside = {}
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        with contextlib.suppress(OSError):  # the listing's own
            if fd < 3 or not os.get_inheritable(fd):
                continue
            if fd >= first:
                os.set_inheritable(fd, False)
                aside[fd] = fd
                continue
            aside[fd] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first)
            os.close(fd)
    return aside


def put_back(aside: Mapping[int, int]) -> None:
    """Give what was set aside its numbers again, for a program that is about to be executed."""
    for old, new in aside.items():
        if old == new:
            os.set_inheritable(new, True)
        else:
            os.dup2(new, old)


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
