# SPDX-License-Identifier: GPL-2.0-or-later
"""The caller's terminal, as far as it takes more than to pass it on.

COMMAND stays in the caller's process group, so that the terminal's keys reach it as they would
without hardsplice. Two things don't happen by themselves:

- at a hangup the kernel signals only the session's leader (tty_signal_session_leader,
  drivers/tty/tty_jobctrl.c). If that is this process, it has to pass the signal on to COMMAND;
- an interactive shell creates its own process group and puts it in the foreground. At its end it
  can't name the group that it came from, which has no number in its PID namespace. The program that
  waits for us then is in the background, and is stopped when it reads. So the foreground is
  restored at the end, and a shell starts in a group that it can name.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

# Access mode 3 is for ioctl(2) alone: what is open so can neither be read nor written (open(2))
_NEITHER_READ_NOR_WRITTEN = 3
_SHELLS = frozenset(
    {"sh", "ash", "bash", "csh", "dash", "fish", "ksh", "mksh", "tcsh", "yash", "zsh"}
)


class Terminal:
    """The terminal that controls our session."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._group = os.getpgrp()
        self.is_led_by_us = os.getsid(0) == os.getpid()  # the kernel signals a hangup to it
        self._is_minded = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # by the caller

    @classmethod
    def open(cls) -> Terminal | None:
        """None where there is no such terminal."""
        try:
            flags = _NEITHER_READ_NOR_WRITTEN | os.O_NOCTTY | os.O_CLOEXEC
            return cls(os.open("/dev/tty", flags))
        except OSError:
            return None

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def is_ours(self) -> bool:
        """Whether our group is in the foreground."""
        return self._front() == self._group

    def has_hung_up(self) -> bool:
        """Whether it has hung up, and the caller doesn't ignore that."""
        return self._is_minded and self._front() is None

    def stop(self) -> None:
        """Stop as by the terminal's key: COMMAND has stopped by itself, and the shell at this
        terminal has to notice that. If Landlock confines our signals, other processes of our group
        don't stop with us.
        """
        os.kill(0, signal.SIGTSTP)

    def give_back(self) -> None:
        """Put our group in the foreground, if the group that is there has ended. A group that still
        exists was put there by a process that does, too: the shell that started us.
        """
        front = self._front()
        if front is None or front == self._group or not self._group:
            return
        try:
            os.getpriority(os.PRIO_PGRP, front)
        except ProcessLookupError:
            os.tcsetpgrp(self._fd, self._group)

    def _front(self) -> int | None:
        try:
            return os.tcgetpgrp(self._fd)
        except OSError:
            return None


def is_for_people(command: Sequence[str]) -> bool:
    """Whether a command is an interactive shell."""
    return os.path.basename(command[0]) in _SHELLS and set(command[1:]) <= {"-i", "-l"}


def take_foreground() -> None:
    """Make this process a group of its own, in the foreground of its standard input."""
    os.setpgid(0, 0)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
    os.tcsetpgrp(0, os.getpgrp())
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
