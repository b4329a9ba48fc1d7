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
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from hardsplice import linux, seal
from hardsplice.channel import Channel, Kind, Malformed, Note, Record, close_all, discard
from hardsplice.flowtable import End, Nonsense, read_record
from hardsplice.loop import Loop
from hardsplice.relay import main as relay
from hardsplice.relay import orders
from hardsplice.relay.engine import Listener
from hardsplice.relay.sockets import FAMILIES, POOL_SIZE
from hardsplice.relay.stats import DENIED_CALLS, DENIED_RECORDS, RESTARTS

DEATHS_MAX = 8  # in WINDOW seconds; the next one ends the program
WINDOW = 10.0
# Seconds before the first, second ... restart; then the last one again
DELAYS = (0.0, 0.05, 0.1, 0.2, 0.4)
SHORT_SECONDS = 1.0  # until sockets that could not be had are tried for again
TELL_SECONDS = 0.01  # until a relay is told again what its channel had no room for
DEAF_SECONDS = 2.0  # that a relay may leave its channel full
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


def is_denial(status: int) -> bool:
    """Whether a relay ended because it tried what its filter or seal.py forbids, from its wait
    status.
    """
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGSYS
    return os.WEXITSTATUS(status) == seal.STATUS


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


class Upward(Protocol):
    """Whom a keeper tells."""

    def relay_ready(self) -> None:
        """The relay is locked down and serves, for the first time."""

    def relay_lost(self, reason: str) -> None:
        """The relay can't be kept running."""

    def relay_alive(self) -> None:
        """The relay has answered, or another one has taken its place."""

    def relay_yields(self) -> None:
        """The relay stops accepting, or is gone: others with the same listeners have to look."""

    def note(self, kind: int, detail: int, index: int, text: bytes) -> None:
        """The relay, or the keeper, has something for the log."""

    def flow_ended(self, end: int, row: bytes) -> None:
        """A flow ended; what is said of it was checked (flowtable.read_record)."""


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
        self.is_in_breach = False  # it sent what it may not
        self.is_asked = False  # whether the relay owes an answer
        self.untold: deque[Record] = deque()  # what the relay's channel had no room for yet
        self.deaf_since = 0.0

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
        self.is_cut_off = self.is_in_breach = False
        self.untold.clear()
        self.loop.add(ours.fileno(), self._on_channel)
        self.loop.add(self.pidfd, self._on_exit)

    def stop(self, deadline: float) -> None:
        """Make the relay leave, by the monotonic clock's ``deadline``, and wait until it has: its
        listeners are free then. What it has said before is heard.
        """
        if self.pid:
            self.hang_up()
            wait_for(self.pid, self.pidfd, max(0.0, deadline - time.monotonic()))
            self._hear_out()
            self._forget()

    # --- what the relay is told ------------------------------------------------------------------

    def add(self, listener: Listener) -> None:
        """Have the relay, and each that takes its place, accept on one more listener."""
        self.plan = replace(self.plan, listeners=(*self.plan.listeners, listener))
        self._tell(orders.serve(listener))

    def remove(self, index: int, *, reset_flows: bool) -> None:
        """Have no relay accept on that listener any more; the caller may close it after this."""
        left = tuple(one for one in self.plan.listeners if one.index != index)
        self.plan = replace(self.plan, listeners=left)
        for record in self.untold:
            if (record.kind, record.index) == (Kind.SERVE, index):
                self.untold.remove(record)
                return
        self._tell(orders.close(index, reset_flows=reset_flows))

    def _tell(self, record: Record) -> None:
        """Send a record that must not be lost; a relay that is not there learns it at its start."""
        if self.channel is None or self.is_cut_off:
            return
        self.untold.append(record)
        if len(self.untold) == 1:
            self.deaf_since = time.monotonic()
            self._tell_more(self.pid)

    def _tell_more(self, pid: int) -> None:
        """Send what is left to send to that relay, or try again soon."""
        while self.untold and pid == self.pid and self.channel is not None:
            if not self.channel.send(self.untold[0], wait=False):
                if time.monotonic() - self.deaf_since > DEAF_SECONDS:
                    self._cut_off("it does not read what it is told")
                else:
                    self.loop.after(TELL_SECONDS, lambda: self._tell_more(pid))
                return
            self.deaf_since = time.monotonic()
            self.untold.popleft()

    def look(self) -> None:
        """Have the relay look for clients that wait."""
        if self.channel is not None and not self.is_cut_off:
            self.channel.send(Record(Kind.LOOK), wait=False)

    def ask_alive(self) -> None:
        """Ask the relay whether it goes on."""
        self.is_asked = True
        if self.channel is not None and not self.is_cut_off:
            self.channel.send(Record(Kind.PING), wait=False)

    def hang_up(self) -> None:
        """Tell the relay to leave, which it does at the end of its channel."""
        if self.channel is not None:
            self.channel.finish()

    def _forget(self) -> None:
        if self.channel is not None:
            self.loop.remove(self.channel.fileno())
            self.channel.close()
            self.channel = None
        self.loop.remove(self.pidfd)
        os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1

    def _on_exit(self) -> None:
        self._hear_out()
        status = os.waitpid(self.pid, 0)[1]
        self._forget()
        self._close_books()
        reason = self.last_words or describe_status(status)
        if not self.was_ready:
            self.upward.relay_lost(f"it did not start: {reason}")
            return
        delay = self.backoff.delay(time.monotonic())
        if delay is None:
            self.upward.relay_lost(f"it died {DEATHS_MAX + 1} times in {WINDOW:.0f} s: {reason}")
            return
        self._count(status)
        self.upward.note(Note.RESTARTED, 0, 0, reason.encode())
        self.upward.relay_yields()
        self.loop.after(delay, self.start)

    def _count(self, status: int) -> None:
        """The relay is replaced: count that, and whether it had tried what it may not."""
        counters = self.plan.stats.count
        counters[RESTARTS] += 1
        if self.is_in_breach:
            counters[DENIED_RECORDS] += 1
        elif is_denial(status):
            counters[DENIED_CALLS] += 1

    def _hear_out(self) -> None:
        """The relay has ended: its last words may be in the channel, or things to get rid of."""
        if self.channel is None:
            return
        with contextlib.suppress(BlockingIOError, Malformed):
            while not self.is_cut_off and (record := self.channel.receive(wait=False)) is not None:
                self._handle(record)
        self.channel.drain()

    def _close_books(self) -> None:
        """The relay has ended, and so have the flows that are still in its table."""
        stats = self.plan.stats
        if stats.flows is not None:
            for row in stats.flows.close_all(stats.count, time.monotonic()):
                if self.plan.log_flows:
                    self.upward.flow_ended(End.RELAY_DIED, row)

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
        self.is_in_breach = True
        self._kill()

    def _kill(self) -> None:
        """End the relay and hear no more of it. What is left in the channel is met at its exit."""
        if self.channel is None or self.is_cut_off:
            return
        self.is_cut_off = True
        self.loop.remove(self.channel.fileno())
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def _alive(self) -> None:
        if self.is_asked:
            self.is_asked = False
            self.upward.relay_alive()

    def _pong(self, _: Record) -> None:
        self._alive()

    def _ready(self, _: Record) -> None:
        self._alive()  # one that was being replaced can't have heard the question
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

    def _yield(self, _: Record) -> None:
        self.upward.relay_yields()

    def _flow(self, record: Record) -> None:
        try:
            read_record(record.small, record.text)
        except Nonsense as error:
            self._cut_off(str(error))
            return
        if not self.plan.log_flows:
            self._cut_off("nobody asked for the ends of flows")
            return
        self.upward.flow_ended(record.small, record.text)

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
        pid = self.pid
        if not made:
            self.loop.after(SHORT_SECONDS, lambda: self._ask_again(pid, record))
            return
        if self.channel is not None and not self.channel.send(
            Record(Kind.SOCKETS, family, fds=tuple(made)), wait=False
        ):
            self.loop.after(TELL_SECONDS, lambda: self._ask_again(pid, record))
        close_all(made)

    def _ask_again(self, pid: int, record: Record) -> None:
        """Try a request again that could not be served, unless the relay that made it is gone."""
        if pid == self.pid and self.channel is not None:
            self._ask(record)


def open_socket(family: int) -> int:
    """A socket for a pool: not blocking, with options set; ``family`` is an index into FAMILIES."""
    fd = linux.stream_socket(FAMILIES[family])
    try:
        linux.set_nodelay(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


# What a relay may ask of its monitor. There is nothing else.
_REQUESTS: dict[int, Callable[[Keeper, Record], None]] = {
    Kind.READY: Keeper._ready,
    Kind.FATAL: Keeper._fatal,
    Kind.NOTE: Keeper._note,
    Kind.ASK: Keeper._ask,
    Kind.YIELD: Keeper._yield,
    Kind.FLOW: Keeper._flow,
    Kind.PONG: Keeper._pong,
}
