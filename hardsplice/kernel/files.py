# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that people name on the command line, perhaps in folders where others may write: what is
there can be a pipe without a reader, a device, a link to somewhere else, a file with a lease on it.
None of these is opened for long, and none is waited for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Iterator


def open_regular(path: str, flags: int, mode: int) -> int:
    """A regular file's descriptor, close-on-exec; made with ``mode`` where ``flags`` say so and
    nothing is there. Raises OSError, also for what is there and is no regular file.

    A umask takes from others, and from the group; never from the owner, who is to use it again.
    """
    with contextlib.suppress(FileNotFoundError):
        _check(os.lstat(path))  # merely to open some devices has an effect
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    with _owner_keeps_rights():
        fd = os.open(path, flags, mode)
    try:
        _check(os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _owner_keeps_rights() -> Iterator[None]:
    """Make files whose owner has the rights that they are made with, whatever the umask is."""
    before = os.umask(0o077)
    os.umask(before & 0o077)
    try:
        yield
    finally:
        os.umask(before)


def _check(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def identity(found: os.stat_result) -> tuple[int, int]:
    """What tells a file from any other one while both exist."""
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def any_size() -> Iterator[None]:
    """Write files as large as the hard limit allows, memory that is a file among them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
