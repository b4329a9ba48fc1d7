# SPDX-License-Identifier: GPL-2.0-or-later
"""Forked processes: how one reports that it can't go on, and how its end is waited for."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from hardsplice.ipc.channel import Channel
from hardsplice.ipc.lifeline import Hold
from hardsplice.ipc.messages import Kind, Record
from hardsplice.model.errors import text_of
from hardsplice.model.unforeseen import as_failure


@dataclass(slots=True)
class Child:
    """A process that the host monitor waits for."""

    pid: int
    pidfd: int
    channel: Channel
    line: Hold  # its lifeline


def live(life: Callable[[], int], channel: Channel, verb: str, object: str) -> NoReturn:  # noqa: A002
    """Run a forked process: its ``life``, which returns its exit status. An error that ends it
    early is sent over the channel; ``verb`` and ``object`` say what failed.
    """
    status = 1
    try:
        status = life()
    except BaseException as error:  # noqa: BLE001 - a forked process must not return
        with contextlib.suppress(Exception):
            failure = as_failure(error, verb, object)
            channel.send(Record(Kind.FATAL, text=text_of(failure)))
    os._exit(status)


def has_ended(pidfd: int, seconds: float = 0.0) -> bool:
    """Whether a process has ended, or does within so many seconds."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(int(seconds * 1000)))


def wait_for(pid: int, pidfd: int, seconds: float) -> int:
    """Wait for a child that was told to end; after ``seconds`` it is killed. Its wait status.

    PID 1 of COMMAND may be another user's, and then can't be killed from here: the kernel does that
    when we end.
    """
    if not has_ended(pidfd, seconds):
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except PermissionError:
            return signal.SIGKILL
    return os.waitpid(pid, 0)[1]


def hear(channel: Channel, pidfd: int, seconds: float, handle: Callable[[], bool]) -> None:
    """Receive from a child that was told to end until it has ended, for at most ``seconds``:
    ``handle`` takes one record, and returns whether there may be more.
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
