# SPDX-License-Identifier: GPL-2.0-or-later
"""What a descriptor is that another process has passed, by fcntl(2): the kernel answers that by
itself, whoever is behind the file. A file of a FUSE file system would be polled by a process that
need not answer.
"""

from __future__ import annotations

import fcntl
import os


def never_blocks(fd: int) -> bool:
    """Whether calls return at once that find nothing (O_NONBLOCK)."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK)


def is_pipe(fd: int) -> bool:
    """Whether it is a pipe, or a FIFO."""
    try:
        fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    except OSError:
        return False
    return True
