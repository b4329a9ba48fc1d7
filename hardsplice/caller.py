# SPDX-License-Identifier: GPL-2.0-or-later
"""What our caller gave us that is COMMAND's, and that we can't do with ourselves.

The rest needs no care: what the kernel hands on, to those that are forked or executed, is COMMAND's
as it was. One thing is lost before any code of ours runs: Python ignores SIGPIPE and SIGXFSZ from
its start, so whether the caller did can't be found out, and COMMAND has them at their default.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """What is to be given back."""

    ignores_children: bool = False  # SIGCHLD is ignored
    closed: tuple[int, ...] = ()  # which of the standard streams are


def take() -> Caller:
    """Make this process one that works: who has SIGCHLD ignored never learns how a child ended
    (wait(2)), and what is opened must not take the place of a standard stream.
    """
    ignores = signal.signal(signal.SIGCHLD, signal.SIG_DFL) is signal.SIG_IGN
    return Caller(ignores, tuple(fd for fd in (0, 1, 2) if _fill(fd)))


def _fill(fd: int) -> bool:
    """Put /dev/null where nothing is open; whether that was so. Those below are taken already."""
    try:
        os.fstat(fd)
    except OSError:
        return os.open(os.devnull, os.O_RDWR) == fd
    return False


def give_back(caller: Caller) -> None:
    """For a process that is about to become COMMAND."""
    if caller.ignores_children:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for fd in caller.closed:
        os.close(fd)
