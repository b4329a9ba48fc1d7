# SPDX-License-Identifier: GPL-2.0-or-later
"""Wait statuses: in words, and as a shell gives them. Pure."""

from __future__ import annotations

import os
import signal


def describe_status(status: int) -> str:
    """How a process ended, from its wait status, in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        if number == signal.SIGSYS:
            return f"killed by {name}: it made a system call that its policy does not allow"
        return f"killed by {name}"
    return f"ended with status {os.WEXITSTATUS(status)}"


def exit_status(status: int) -> int:
    """A wait status as a shell gives it: the exit status, or 128 + the signal's number."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
