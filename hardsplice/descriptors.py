# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors during set-up: enough of them, and the fixed numbers kept free for their use."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat

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


_PTY_MASTER = os.makedev(5, 2)  # /dev/ptmx, Documentation/admin-guide/devices.txt


def write_only(fd: int) -> None:
    """Open what is behind ``fd`` again, for writing alone, where it can be read: what somebody
    types at a terminal is not for whoever writes messages to it. OSError where that can't be done;
    a socket is left as it is, since it can't be opened.
    """
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
        return
    found = os.fstat(fd)
    if stat.S_ISSOCK(found.st_mode):
        return
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == _PTY_MASTER:
        raise OSError(errno.ENODEV, "the master's side of a terminal can't be opened twice")
    opened = _open_again(fd, os.O_APPEND if stat.S_ISREG(found.st_mode) else 0)
    os.dup2(opened, fd, inheritable=False)
    os.close(opened)


def _open_again(fd: int, flags: int) -> int:
    flags |= os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except PermissionError as error:
        # After su(1) and its like the terminal is another user's, but it has a second name, for
        # those whose session it controls; only of that terminal the group can be asked for.
        try:
            os.tcgetpgrp(fd)
        except OSError:
            raise error from None
        return os.open("/dev/tty", flags)
