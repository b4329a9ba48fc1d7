# SPDX-License-Identifier: GPL-2.0-or-later
"""A lifeline: a pipe that ends a process when the holder of its write end ends, or closes it.

Nothing is ever written to the pipe. The process at its read end has asked the kernel for SIGKILL
when something happens there (F_SETSIG and O_ASYNC, fcntl(2)), and all that can happen is that the
last write end is closed. The kernel sends that signal in the name of the process itself, so it
arrives where the parent's own signal, or its PR_SET_PDEATHSIG, would not: across a change of user,
out of a Landlock domain that scopes signals, and at a process that is stopped or hostile. There is
one exception: PID 1 of a PID namespace ignores signals that aren't sent from outside of it.
"""

from __future__ import annotations

import fcntl
import os
import signal

_F_SETSIG = 10  # asm-generic/fcntl.h


def pair() -> tuple[int, int]:
    """Both ends, close-on-exec: the read end for the process, the write end for its holder."""
    return os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)


class Hold:
    """The write end, until it is closed."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def fileno(self) -> int:
        """The descriptor, while there is one."""
        assert self._fd is not None
        return self._fd

    def let_go(self) -> None:
        """End the process at the other end; once is enough."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def hang_on(fd: int, *, group: bool = False) -> None:
    """Have this process killed when the other end of ``fd`` is closed; at once if that has happened
    already. With ``group``, have all of its process group killed, of which it has to be
    the leader: a process that it forks asks for nothing by itself.

    The kernel checks the user that the process had at this call, so it has to be repeated after a
    change of user (sigio_perm, fs/fcntl.c).
    """
    fcntl.fcntl(fd, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpid() if group else os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    try:
        if not os.read(fd, 1):
            os._exit(1)
    except BlockingIOError:
        pass
