# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeping one relay alive: start it, fill its pools, and start it again when it dies.

The listeners stay open in the monitor's hands, so while a relay is being replaced clients wait in
the kernel's backlog and none is refused. A relay that keeps dying is started later and later, and
at last given up.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from hardsplice import linux
from hardsplice.channel import Channel, Kind, Malformed, Note, Record, close_all, discard
from hardsplice.loop import Loop
from hardsplice.relay import main as relay
from hardsplice.relay.sockets import FAMILIES, POOL_SIZE

DEATHS_MAX = 8  # in WINDOW seconds; the next one ends the program
WINDOW = 10.0
# Seconds before the first, second ... restart; then the last one again
DELAYS = (0.0, 0.05, 0.1, 0.2, 0.4)
SHORT_SECONDS = 1.0  # until sockets that could not be had are tried for again
STOP_SECONDS = 0.5  # for a child to leave by itself once its channel is closed


class Backoff:
    """When to start again something that died."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()

    def delay(self, now: float) -> float | None:
        """Seconds to wait after a death at ``now``; None when it has died too often."""
        while self._deaths and now - self._deaths[0] > WINDOW:
            self._deaths.popleft()
        self._deaths.append(now)
        count = len(self._deaths)
        return None if count > DEATHS_MAX else DELAYS[min(count, len(DELAYS)) - 1]


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


class Upward(Protocol):
    """Whom a keeper tells."""

    def relay_ready(self) -> None:
        """The relay is locked down and serves, for the first time."""

    def relay_lost(self, reason: str) -> None:
        """The relay can't be kept running."""

    def note(self, kind: int, detail: int, index: int, text: bytes) -> None:
        """The relay, or the keeper, has something for the log."""


class Keeper:
    """One relay and its channel."""

    def __init__(self, plan: relay.Plan, loop: Loop, upward: Upward) -> None:
        self.plan = plan
        self.loop = loop
        self.upward = upward
        self.backoff = Backoff()
        self.channel: Channel | None = None
        self.pid = 0
        self.pidfd = -1
        self.was_ready = False
        self.last_words = ""
        self.is_cut_off = False

    def start(self) -> None:
        """Fork a relay."""
        ours, theirs = Channel.pair()
        monitor = os.getpid()
        pid = linux.fork()
        if pid == 0:
            relay.main(self.plan, theirs, monitor)  # never returns
        theirs.close()
        self.pid, self.pidfd, self.channel = pid, os.pidfd_open(pid), ours
        self.last_words = ""
        self.is_cut_off = False
        self.loop.add(ours.fileno(), self._on_channel)
        self.loop.add(self.pidfd, self._on_exit)

    def stop(self) -> None:
        """Make the relay leave, and wait until it has: its listeners are free then."""
        if self.pid:
            self._hang_up()
            wait_for(self.pid, self.pidfd, STOP_SECONDS)
            self._forget()

    def _hang_up(self) -> None:
        if self.channel is not None:
            self.loop.remove(self.channel.fileno())
            self.channel.drain()
            self.channel.close()
            self.channel = None

    def _forget(self) -> None:
        self.loop.remove(self.pidfd)
        os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1

    def _on_exit(self) -> None:
        self._hear_out()
        self._hang_up()
        status = os.waitpid(self.pid, 0)[1]
        self._forget()
        reason = self.last_words or describe_status(status)
        if not self.was_ready:
            self.upward.relay_lost(f"it did not start: {reason}")
            return
        delay = self.backoff.delay(time.monotonic())
        if delay is None:
            self.upward.relay_lost(f"it died {DEATHS_MAX + 1} times in {WINDOW:.0f} s: {reason}")
            return
        self.upward.note(Note.RESTARTED, 0, 0, reason.encode())
        self.loop.after(delay, self.start)

    def _hear_out(self) -> None:
        """The relay has ended: its last words may be in the channel, or things to get rid of."""
        if self.channel is None:
            return
        with contextlib.suppress(BlockingIOError, Malformed):
            while not self.is_cut_off and (record := self.channel.receive(wait=False)) is not None:
                self._handle(record)
        self.channel.drain()

    def _on_channel(self) -> None:
        assert self.channel is not None
        try:
            record = self.channel.receive(wait=False)
        except BlockingIOError:
            return
        except Malformed as error:
            self._cut_off(str(error))
            return
        if record is None:
            # It has ended, as a rule, and the pidfd says so next. An empty record looks the same.
            self._kill()
        else:
            self._handle(record)

    def _handle(self, record: Record) -> None:
        """Serve one record of the relay's, which may have been taken over: what isn't in the table
        ends it.
        """
        handler = _REQUESTS.get(record.kind)
        if handler is None or record.fds:
            discard(record.fds)
            self._cut_off(f"a record of kind {record.kind} is not a relay's to send")
        else:
            handler(self, record)

    def _cut_off(self, why: str) -> None:
        """The relay breaks the protocol: end it. Its successor starts clean."""
        self.last_words = f"it was ended, since it broke the protocol: {why}"
        self._kill()

    def _kill(self) -> None:
        """End the relay and hear no more of it. What is left in the channel is met at its exit."""
        if self.channel is None or self.is_cut_off:
            return
        self.is_cut_off = True
        self.loop.remove(self.channel.fileno())
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def _ready(self, _: Record) -> None:
        if not self.was_ready:
            self.was_ready = True
            self.upward.relay_ready()

    def _fatal(self, record: Record) -> None:
        self.last_words = record.text.decode(errors="replace")

    def _note(self, record: Record) -> None:
        if record.small in (Note.RESTARTED, Note.SOCKETS):  # these are the monitor's own
            self._cut_off(f"note {record.small} is not a relay's to send")
            return
        self.upward.note(record.small, record.detail, record.index, record.text)

    def _ask(self, record: Record) -> None:
        """Fill a pool: TCP_NODELAY is set here, since a pooled socket has no listener to inherit it
        from.
        """
        family, number = record.small, record.detail
        if family not in self.plan.families or not 0 < number <= POOL_SIZE:
            self._cut_off(f"{number} sockets of family {family} are not to be had")
            return
        made: list[int] = []
        try:
            for _ in range(number):  # those made before an error count
                made.append(open_socket(family))  # noqa: PERF401
        except OSError as error:
            self.upward.note(Note.SOCKETS, error.errno or 0, 0, b"")
        if not made:
            self.loop.after(SHORT_SECONDS, lambda: self._ask_again(self.pid, record))
            return
        if self.channel is not None:
            self.channel.send(Record(Kind.SOCKETS, family, fds=tuple(made)), wait=False)
        close_all(made)

    def _ask_again(self, pid: int, record: Record) -> None:
        """Try a request again that could not be served, unless the relay that made it is gone."""
        if pid == self.pid and self.channel is not None:
            self._ask(record)


def open_socket(family: int) -> int:
    """A socket for a pool: not blocking, with options set; ``family`` is an index into FAMILIES."""
    new = socket.socket(FAMILIES[family], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return new.detach()


# What a relay may ask of its monitor. There is nothing else.
_REQUESTS: dict[int, Callable[[Keeper, Record], None]] = {
    Kind.READY: Keeper._ready,
    Kind.FATAL: Keeper._fatal,
    Kind.NOTE: Keeper._note,
    Kind.ASK: Keeper._ask,
}
