# SPDX-License-Identifier: GPL-2.0-or-later
"""Forked processes: a process is forked with a channel to it, reports why it can't go on, and its
parent receives what it sends, ends it and waits for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator

from hardsplice.ipc.channel import LAST_RECORDS, Channel, close_all
from hardsplice.ipc.lifeline import Hold
from hardsplice.ipc.messages import Kind, MalformedError, Record
from hardsplice.kernel.hints import NoReturn
from hardsplice.model.errors import text_of
from hardsplice.model.unforeseen import as_error


def fork(
    one: str,
    other: str,
    life: Callable[[Channel], NoReturn],
    by: Callable[[], int] = os.fork,
) -> tuple[int, Channel]:
    """Fork a process that runs ``life`` with its end of a new channel: its PID, and our end.
    ``one`` is the role of this process, ``other`` that of the new one; ``by`` is the function that
    forks. OSError if there can't be one more process, and then nothing is left open.
    """
    ours, theirs = Channel.pair(one, other)
    try:
        pid = by()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        ours.close()
        life(theirs)
    theirs.close()
    return pid, ours


def live(life: Callable[[], int], channel: Channel, verb: str, object: str) -> NoReturn:  # noqa: A002
    """Run a forked process: its ``life``, which returns its exit status. An error that ends it
    early is sent over the channel; ``verb`` and ``object`` say what failed.
    """
    status = 1
    try:
        status = life()
    except BaseException as error:  # noqa: BLE001 - a forked process must not return
        with contextlib.suppress(Exception):
            failure = as_error(error, verb, object)
            channel.send(Record(Kind.FATAL, text=text_of(failure)))
    os._exit(status)


def has_ended(pidfd: int, seconds: float = 0.0) -> bool:
    """Whether a process has ended, or does within so many seconds."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(int(seconds * 1000)))


class Child:
    """A process as its parent holds it, until its exit status was read."""

    __slots__ = ("channel", "line", "pid", "pidfd")

    def __init__(self, pid: int, channel: Channel, line: Hold | None = None) -> None:
        """``channel`` is our end of the channel to it, ``line`` its lifeline, if it has one.
        OSError if there is no descriptor left.
        """
        self.pid, self.pidfd = pid, os.pidfd_open(pid)
        self.channel = channel
        self.line = line

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that the parent holds for it."""
        channel, line = self.channel.fileno(), self.line
        return (
            self.pidfd,
            *((channel,) if channel >= 0 else ()),
            *((line.fileno(),) if line is not None else ()),
        )

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, or does within so many seconds."""
        return has_ended(self.pidfd, seconds)

    def forget(self) -> None:
        """Close what the parent holds for one whose exit status was read."""
        self.channel.close()
        os.close(self.pidfd)

    # --- what it sends ----------------------------------------------------------------------------

    def first_word(self) -> Record | None:
        """Wait for its next record; None if it ended without one. Processes that it started may
        hold its end of the channel, and outlive it. MalformedError.
        """
        poller = select.poll()
        for fd in (self.channel.fileno(), self.pidfd):
            poller.register(fd, select.POLLIN)
        poller.poll()
        try:
            return self.channel.receive(wait=False)
        except BlockingIOError:
            return None

    def last_words(self) -> Iterator[Record]:
        """What one that has ended sent, and was not received yet: at most LAST_RECORDS, since
        others may hold its end of the channel and go on sending. MalformedError.
        """
        with contextlib.suppress(BlockingIOError):
            for _ in range(LAST_RECORDS):
                record = self.channel.receive(wait=False)
                if record is None:
                    return
                yield record

    def receive_until_end(self, seconds: float, handle: Callable[[], bool]) -> None:
        """Receive from one that was told to end until it has ended, for at most ``seconds``:
        ``handle`` takes one record, and returns whether there may be more.
        """
        poller = select.poll()
        for fd in (self.channel.fileno(), self.pidfd):
            poller.register(fd, select.POLLIN)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poller.poll(int(left * 1000) + 1))
            if self.channel.fileno() in ready:
                if not handle():
                    poller.unregister(self.channel.fileno())
            elif ready:
                return

    # --- its end ----------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Tell it to end, by end of file on its channel; what it sends is still received."""
        self.channel.finish()

    def kill(self) -> None:
        """Send it SIGKILL. PermissionError if it is another user's."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def end(self, seconds: float) -> int:
        """Wait for one that was told to end; after ``seconds`` it is killed. Its wait status."""
        if not self.has_ended(seconds):
            try:
                self.kill()
            except PermissionError:  # another user's by now: the kernel ends it when we end
                return signal.SIGKILL
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended; its wait status."""
        return os.waitpid(self.pid, 0)[1]

    def reap(self) -> int | None:
        """The wait status of one that has ended; None if it was read already, or is another
        process's to read.
        """
        with contextlib.suppress(ChildProcessError):
            return os.waitpid(self.pid, os.WNOHANG)[1]
        return None

    def let_go(self) -> None:
        """Close its lifeline, at which the kernel kills it, whichever user it is by now."""
        if self.line is not None:
            self.line.let_go()

    def give_up(self, seconds: float) -> None:
        """End it, since set-up failed, and read its exit status. It is told to, so that it can end
        what it has started itself and wait for that, and after ``seconds`` it is killed.
        """
        if not self.has_ended():
            with contextlib.suppress(OSError):
                self.hang_up()
                self.receive_until_end(seconds, self._discard)
        self.channel.close()
        self.let_go()
        with contextlib.suppress(OSError):
            self.end(0)

    def _discard(self) -> bool:
        with contextlib.suppress(MalformedError):
            record = self.channel.receive(wait=False)
            if record is None:
                return False
            close_all(record.fds)
        return True
