# SPDX-License-Identifier: GPL-2.0-or-later
"""Supervising one relay: start it, fill its pools, and restart it when it dies.

The monitor keeps the listeners open, so while a relay is replaced clients wait in the kernel's
backlog and none is refused. A relay that keeps dying is restarted after growing delays, and finally
given up.

A relay may have been taken over, so the work that it can cause is limited: it has at most one open
request for sockets of each family, and all requests that can't be served share one timer; notes are
passed on no more often than a correct relay makes them; what it leaves behind is processed a piece
at a time.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator

from hardsplice.ipc import child
from hardsplice.ipc.channel import close_all
from hardsplice.ipc.child import Child
from hardsplice.ipc.dialogue import DYNAMIC_RELAY, RELAY, Dialogue
from hardsplice.ipc.loop import Loop
from hardsplice.ipc.messages import Kind, MalformedError, Note, Record
from hardsplice.kernel import linux
from hardsplice.kernel.status import describe_status
from hardsplice.model.direction import Direction
from hardsplice.model.errors import reason_of
from hardsplice.model.protocol import Protocol
from hardsplice.model.roles import RELAYS
from hardsplice.model.unforeseen import next_step
from hardsplice.monitor.backoff import DEATHS_MAX, WINDOW, Backoff, is_denial
from hardsplice.monitor.outbox import Outbox
from hardsplice.monitor.owner import SupervisorOwner
from hardsplice.monitor.placing import NOT_HERE, Placing
from hardsplice.monitor.reports import Reports
from hardsplice.monitor.supply import RETRY_SECONDS, Supply
from hardsplice.net.listener import Listener
from hardsplice.net.listeners import UNSOUND, has_ended, is_sound
from hardsplice.relay import main as relay
from hardsplice.relay import orders
from hardsplice.relay.pools import POOL_SIZE
from hardsplice.telemetry.counters import DENIED_CALLS, DENIED_RECORDS, RESTARTS
from hardsplice.telemetry.flow_table import End

ROWS_A_PASS = 256  # of a relay's flow table that are closed before others have their turn
STOP_SECONDS = 0.5  # for a child to end by itself once its channel is closed


class Supervisor:
    """One relay and its channel."""

    def __init__(self, plan: relay.Plan, loop: Loop, owner: SupervisorOwner) -> None:
        self.plan = plan
        self.loop = loop
        self.owner = owner
        self.backoff = Backoff()
        self.child: Child | None = None
        self.was_ready = False
        self.is_idle = plan.protocol is Protocol.UDP and not plan.listeners  # so none is started
        self.dialogue = self._dialogue()
        self.last_words = ""
        self.succeeds = ""  # why the relay's predecessor ended
        self.is_cut_off = False
        self.is_in_breach = False  # it violated the protocol
        self.is_pinged = False  # whether the relay owes an answer
        self.is_draining = False
        self.outbox = Outbox(loop, self._record_sent, owner.note, self._cut_off)
        self.supply = Supply(loop, plan.protocol, owner.note)
        self.asked: deque[Callable[[], None]] = deque()  # what to do at its answers to pings
        self.placing = Placing(loop, self._has, self._ask, self._cut_off)
        self.reports = Reports(owner)

    def _dialogue(self) -> Dialogue:
        return Dialogue(DYNAMIC_RELAY if self.plan.is_dynamic else RELAY)

    def start(self) -> None:
        """Fork a relay."""
        if self.is_draining:
            return
        monitor, role = os.getpid(), RELAYS[self.plan.direction, self.plan.protocol]
        plan = self.plan._replace(foreign=self.owner.foreign_places(self.plan))
        try:
            pid, channel = child.fork(
                role.parent,
                role.name,
                lambda theirs: relay.main(plan, theirs, monitor),
                self._fork,
            )
        except OSError as error:
            self._start_later(error)
            return
        self.child = Child(pid, channel)
        self.plan.stats.mark_started()
        self.dialogue = self._dialogue()
        self.asked.clear()
        self.last_words = ""
        self.is_cut_off = self.is_in_breach = False
        self.outbox.begin(channel)
        self.loop.add(channel.fileno(), self._on_channel)
        self.loop.add(self.child.pidfd, self._on_exit)

    def _fork(self) -> int:
        with self.plan.stats.shared():
            return linux.fork()

    def stop(self, deadline: float) -> None:
        """End the relay, by the monotonic clock's ``deadline``, and wait until it has ended: its
        listeners are free then. What it has sent before is still received.
        """
        if self.child is not None:
            self.child.hang_up()
            self.child.end(max(0.0, deadline - time.monotonic()))
            self._receive_rest()
            self._forget()

    def drain(self) -> None:
        """Have the relay stop accepting, and end once it has no flow left."""
        self.is_draining = True
        self.outbox.send(Record(Kind.DRAIN))

    @property
    def is_drained(self) -> bool:
        """Whether there is no relay, and none will be started again."""
        return self.child is None and (self.is_draining or self.is_idle)

    # --- what the relay is sent ------------------------------------------------------------------

    def add(self, listener: Listener) -> None:
        """Have the relay, and each that replaces it, serve one more listener."""
        self.plan = self.plan._replace(listeners=(*self.plan.listeners, listener))
        if self.is_idle:
            self.is_idle = False
            self.was_ready = True  # what it can't do from now on is no error of the start
            self.start()
            return
        self.outbox.send(orders.add(listener, self.plan.book))

    def remove(
        self, listener: Listener, *, reset_flows: bool, let_go: Callable[[], None] | None
    ) -> None:
        """Have relays no longer serve that listener, which the caller may end after this;
        ``let_go`` is called once the relay doesn't have it any more.
        """
        left = tuple(one for one in self.plan.listeners if one.port_id != listener.port_id)
        self.plan = self.plan._replace(listeners=left)
        was_sent = not self.outbox.take_back(Kind.ADD_LISTENER, listener.port_id)
        if let_go and was_sent and self.child:
            self.placing.when_let_go(listener.port_id, let_go)
        elif let_go:
            let_go()
        if was_sent:
            self.outbox.send(orders.remove(listener, reset_flows=reset_flows))

    def _has(self, index: int, place: int) -> bool:
        """Whether relays accept on the listener of that port, at that place."""
        return any((one.port_id, one.fd) == (index, place) for one in self.plan.listeners)

    def _record_sent(self, record: Record) -> None:
        """A record was sent: if it is about a listener, the relay makes its call
        (monitor/placing.py).
        """
        if record.kind != Kind.DRAIN:
            is_added = record.kind == Kind.ADD_LISTENER
            self.placing.record_sent(record.detail, record.index, is_added=is_added)

    def poll(self) -> None:
        """Have the relay check its listeners for clients that wait."""
        if self.child is not None and not self.is_cut_off:
            self.child.channel.send(Record(Kind.POLL), wait=False)

    def ping(self) -> None:
        """Ping the relay."""
        self.is_pinged = not self.is_drained
        self._ask(self._alive)

    def _ask(self, then: Callable[[], None]) -> None:
        """Ping the relay, and call that when it answers, if it does."""
        child = None if self.is_cut_off else self.child
        if child and child.channel.send(Record(Kind.PING), wait=False):
            self.dialogue.expect()
            self.asked.append(then)

    def hang_up(self) -> None:
        """Tell the relay to end, which it does at end of file on its channel."""
        if self.child is not None:
            self.child.hang_up()

    def _forget(self) -> None:
        if self.child is None:
            return
        for fd in self.child.descriptors:
            self.loop.remove(fd)
        self.child.forget()
        self.child = None
        self.outbox.close()
        self.supply.forget()
        self.placing.forget()

    def _on_exit(self) -> None:
        assert self.child is not None
        self._receive_rest()
        status = self.child.wait()
        self._forget()
        self._report_left_rows(self._left_rows(), status)

    def _report_left_rows(self, rows: Iterator[bytes | None], status: int) -> None:
        """The relay has ended, and so have the flows that are still in its table. Once these are
        reported, decide what to do about its end.
        """
        some = list(itertools.islice(rows, ROWS_A_PASS))
        for row in some:
            if row is not None and self.plan.log_flows:
                self.owner.flow_ended(End.RELAY_DIED, row)
        if len(some) == ROWS_A_PASS:
            self.loop.after(0, lambda: self._report_left_rows(rows, status))
        else:
            self.plan.stats.begin_anew()
            self._replace(status)

    def _left_rows(self) -> Iterator[bytes | None]:
        stats = self.plan.stats
        if stats.flows is None:
            return iter(())
        return stats.flows.close_all(stats.count, time.monotonic())

    def _replace(self, status: int) -> None:
        """Start another relay, unless it has to end."""
        reason, _, hint = (self.last_words or describe_status(status)).partition("\n")
        if self.is_draining:
            if status:
                self.owner.note(Note.DIED, 0, 0, reason.encode(errors="replace"))
            self._alive()
            self.owner.relay_drained()
            return
        if not self.was_ready:
            self.owner.relay_lost(f"it did not start: {reason}", hint or None)
            return
        if not all(self._is_sound(one.fd) for one in self.plan.listeners):
            # Filters forbid a relay to do that; if one did anyway, its successor doesn't use it.
            self.owner.relay_lost(UNSOUND)
            return
        delay = self.backoff.delay(time.monotonic())
        if delay is None:
            self.owner.relay_lost(f"it died {DEATHS_MAX + 1} times in {WINDOW:.0f} s: {reason}")
            return
        self._count(status)
        self.succeeds = reason
        self.owner.accept_paused()
        self.loop.after(delay, self.start)

    def _is_sound(self, fd: int) -> bool:
        """Whether relays can go on with a listener. If ports may change, one of the host that has
        ended was removed, and the order about that comes next; otherwise the host monitor hears
        that a relay was replaced, and checks it itself (monitor/effects.py).
        """
        plan, protocol = self.plan, self.plan.protocol
        is_the_hosts = plan.is_dynamic and plan.direction is Direction.INBOUND
        return is_sound(fd, protocol) or (is_the_hosts and has_ended(fd, protocol))

    def _start_later(self, error: OSError) -> None:
        """There are too many processes now, or too little memory. Others of the same user may use
        these up, which is no reason to end: clients wait in the backlog.
        """
        if not self.was_ready:
            self.owner.relay_lost(reason_of(error), next_step(error))
            return
        self.owner.note(Note.START_DELAYED, error.errno or 0, 0, b"")
        self.loop.after(RETRY_SECONDS, self.start)

    def _count(self, status: int) -> None:
        """The relay is replaced: count that, and whether it had tried something forbidden."""
        kept = self.plan.stats.kept
        kept[RESTARTS] += 1
        if self.is_in_breach:
            kept[DENIED_RECORDS] += 1
        elif is_denial(status):
            kept[DENIED_CALLS] += 1

    def _receive_rest(self) -> None:
        """The relay has ended: its last records may be in the channel, or some to discard."""
        if self.child is None:
            return
        try:
            for record in () if self.is_cut_off else self.child.last_words():
                self._handle(record)
                if self.is_cut_off:
                    break
        except MalformedError as error:
            self._cut_off(str(error))
        self.child.channel.discard_rest()

    def _on_channel(self) -> None:
        assert self.child is not None
        try:
            record = self.child.channel.receive(wait=False)
        except BlockingIOError:
            return
        except MalformedError as error:
            self._cut_off(str(error))
            return
        if record is None:
            # Usually it has ended, as the pidfd reports next. An empty record looks the same.
            self._kill()
        else:
            self._handle(record)

    def _handle(self, record: Record) -> None:
        """Serve one record of the relay, which may have been taken over: a kind that isn't in the
        table ends it.
        """
        try:
            self.dialogue.check(record)
            _REQUESTS[record.kind](self, record)
        except MalformedError as error:
            close_all(record.fds)
            self._cut_off(str(error))

    def _cut_off(self, why: str) -> None:
        """The relay violates the protocol: end it. Its successor starts clean."""
        self.last_words = f"it was ended, since it broke the protocol: {why}"
        self.is_in_breach = True
        self._kill()

    def _kill(self) -> None:
        """End the relay and stop reading. What is left in the channel is read at its exit."""
        if self.child is None or self.is_cut_off:
            return
        self.is_cut_off = True
        self.loop.remove(self.child.channel.fileno())
        self.outbox.close()
        self.child.kill()

    def _alive(self) -> None:
        if self.is_pinged:
            self.is_pinged = False
            self.owner.relay_alive()

    def _pong(self, _: Record) -> None:
        self.asked.popleft()()

    def _ready(self, record: Record) -> None:
        if record.fds and not self._take_questions(record.fds[0]):
            return
        self._alive()  # a relay that was being replaced can't have got the ping
        if self.succeeds:
            self.owner.note(Note.RESTARTED, 0, 0, self.succeeds.encode(errors="replace"))
            self.succeeds = ""
        if not self.was_ready:
            self.was_ready = True
            self.owner.relay_ready()

    def _take_questions(self, fd: int) -> bool:
        """Take the descriptor from which the relay's calls are read; without it the relay is of no
        use where ports may change.
        """
        try:
            self.placing.begin(fd)
        except OSError as error:
            self._cut_off(NOT_HERE if error.errno == errno.EINVAL else str(error))
            return False
        return True

    def _fatal(self, record: Record) -> None:
        self.last_words = record.text.decode(errors="replace")

    def _note(self, record: Record) -> None:
        self.reports.note(record, trace=self.plan.trace)

    def _accept_paused(self, _: Record) -> None:
        self.owner.accept_paused()

    def _flow(self, record: Record) -> None:
        self.reports.flow(record, log_flows=self.plan.log_flows)

    def _want_sockets(self, record: Record) -> None:
        family, number = record.small, record.detail
        if family not in self.plan.families or not 0 < number <= POOL_SIZE:
            raise MalformedError(f"{number} sockets of family {family} are not to be had")
        if family in self.supply.owed:
            raise MalformedError("it asks for sockets while it has not got those that it asked for")
        if self.child is not None:
            self.supply.order(self.child.channel, family, number)


# What is done about each kind that a relay may send (dialogue.RELAY).
_REQUESTS: dict[int, Callable[[Supervisor, Record], None]] = {
    Kind.READY: Supervisor._ready,
    Kind.READY_PLACING: Supervisor._ready,
    Kind.FATAL: Supervisor._fatal,
    Kind.NOTE: Supervisor._note,
    Kind.WANT_SOCKETS: Supervisor._want_sockets,
    Kind.ACCEPT_PAUSED: Supervisor._accept_paused,
    Kind.FLOW: Supervisor._flow,
    Kind.PONG: Supervisor._pong,
}
