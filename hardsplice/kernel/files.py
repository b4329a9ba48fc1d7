# SPDX-License-Identifier: GPL-2.0-or-later
"""Files named on the command line, perhaps in directories where other users may write: there may be
a pipe without a reader, a device, a link to somewhere else, or a file with a lease on it. None of
these keeps us waiting.
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
    nothing is there. Raises OSError, also for anything there that is no regular file.

    A umask takes rights from the group and from others, never from the owner, who uses it again.
    """
    with contextlib.suppress(FileNotFoundError):
        _check(os.lstat(path))  # merely opening some devices has an effect
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
    """Create files whose owner has the requested rights, whatever the umask is."""
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
