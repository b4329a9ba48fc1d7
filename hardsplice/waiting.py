# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for single things by poll(2), outside of any loop, and not for ever."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable

from hardsplice.channel import Channel


def wait_for(pid: int, pidfd: int, seconds: float) -> int:
    """Wait for a child that was asked to leave; after ``seconds`` it is killed. Its wait status.

    PID 1 of a COMMAND may be another user's, whom we can't kill: the kernel does that when we end.
    """
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(int(seconds * 1000)):
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except PermissionError:
            return signal.SIGKILL
    return os.waitpid(pid, 0)[1]


def hear(channel: Channel, pidfd: int, seconds: float, handle: Callable[[], bool]) -> None:
    """Hear a child that was told to leave until it has ended, though no longer than ``seconds``:
    ``handle`` takes one record, and says whether there may be more.
    """
    poller = select.poll()
    for fd in (channel.fileno(), pidfd):
        poller.register(fd, select.POLLIN)
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        ready = dict(poller.poll(int(left * 1000) + 1))
        if channel.fileno() in ready:
            if not handle():
                poller.unregister(channel.fileno())
        elif ready:
            return


def has_room(fd: int) -> bool:
    """Whether something can be written without waiting for a reader."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(0))
