# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay's loop: it does what rules.py decides, with as few system calls as possible.

*No read just to see EAGAIN.* After a short read the loop returns to epoll; rules.py says why no
input is missed by that. So a round trip takes six calls: for each direction one wait, one splice
in, one splice out.

*Descriptors in one batch.* A descriptor closed while a batch of events is handled could be handed
out again in the same batch, and a stale event would hit the wrong flow. New descriptors for flows
come only from listeners and from the monitor, and those are served last.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence

from hardsplice.ipc.messages import Note
from hardsplice.net.listener import Listener
from hardsplice.relay.tcp.accepting import EVENTS_A_WAIT, JAM_SECONDS, Acceptor
from hardsplice.relay.tcp.connecting import SHORTAGE_SECONDS
from hardsplice.relay.tcp.flows import Resources
from hardsplice.relay.tcp.rules import (
    BLOCKED,
    CLIENT,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLPRI,
    EPOLLRDHUP,
    FINISHED,
    INPUT,
    OPEN,
    SIDES,
    TARGET,
    Flow,
    marked,
)
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.flow_table import End

# How many flows have to be jammed before they are reset: at least so many, and one in so many.
JAM_FLOWS, JAM_SHARE = 8, 8
IDLE_CHECKS = 4  # checks of all flows within the idle timeout
LAST_SECONDS = 0.1  # for which a relay that is told to end goes on with what is ready

# Neither EPOLLHUP nor EPOLLERR: they come unasked, and so in an event that is older than the wish
# for EPOLLPRI, where the sink's event in the same batch has just unblocked the direction.
# EPOLLRDHUP comes with both of them, and only where urgent data would have been announced too.
_FINISHED_HINT = EPOLLRDHUP
_ACTIONABLE = INPUT | EPOLLHUP | EPOLLERR


class Engine(Acceptor):
    """The layer that waits. ``turn`` handles one batch of events."""

    __slots__ = ("idle_check_at",)

    def __init__(
        self, resources: Resources, listeners: Sequence[Listener], *, shared: bool = False
    ) -> None:
        super().__init__(resources, listeners, shared=shared)
        self.idle_check_at = 0.0  # when to check for idle flows next

    def run(self, others: Mapping[int, Callable[[], None]]) -> None:
        """Serve until all is drained, once that was asked for, or the process is told to end."""
        while self.to_drain is None or self.flows:
            self.turn(others)

    def turn(
        self, others: Mapping[int, Callable[[], None]], patience: float | None = None
    ) -> Sequence[tuple[int, int]]:
        """Wait once, ``patience`` seconds at the most, and handle what came, which is returned.
        ``others`` maps descriptors that are not ours to callables.
        """
        self.turns += 1
        late: list[int] = []
        find, move = self.flows.get, self._move
        if self.restless:
            timeout = self._timeout() if patience is None else patience
            ready = self.epoll.poll(timeout, EVENTS_A_WAIT)
            if self.jam_began or self.limits.idle_seconds:
                self._stamp(ready)
        else:
            ready = self.epoll.poll(patience, EVENTS_A_WAIT)
        if len(ready) == EVENTS_A_WAIT:
            self.unfinished += 1
        for fd, events in ready:
            flow = find(fd)
            if flow is None:
                late.append(fd)
                continue
            side = TARGET if fd == flow.fd[TARGET] else CLIENT
            try:
                if events == EPOLLIN and flow.state[side] == OPEN and not flow.urgent_hidden[side]:
                    move(flow, side, False)  # the common case
                else:
                    self._handle(flow, side, events)
            except Exception as error:  # noqa: BLE001 - R8: it ends that flow only
                self._break(flow, error)
        for fd in late:
            listener = self.listeners.get(fd)
            if listener is not None:
                self._accept_some(listener)
            elif fd in others:
                others[fd]()
        if self.restless:
            self._end_round()
        return ready

    def _end_round(self) -> None:
        """What is due besides events, at the end of a turn."""
        if self._is_timed():
            self._check_deadlines()
        if self.starved:
            self._feed()
        if not self.accepting or self.unplaced:
            # What freed a resource (a flow that ended, a closed pipe) happened in this turn.
            self._request_sockets()
            self._reconsider_accepting()
        if self.gauges is not None:
            self._write_gauges(self.gauges)
            return
        self.restless = (
            not self.accepting or self._is_timed() or bool(self.starved or self.unplaced)
        )

    def add_sockets(self, family: int, fds: Sequence[int]) -> None:
        """Put sockets that the monitor sent into their pool."""
        self.pools[family].take(fds)
        if not fds:  # there was no descriptor left to receive one: asking again at once would spin
            self._begin_shortage()
        for _ in range(len(self.unplaced)):
            flow = self.unplaced.popleft()
            if flow.fd[CLIENT] >= 0:
                self._guarded(flow, self._try_connect)
        self._request_sockets()
        self._reconsider_accepting()

    def _stamp(self, ready: Sequence[tuple[int, int]]) -> None:
        """Note the time at which something happened in these flows, if it is needed."""
        self.moment = self.kernel.now()
        for fd, _ in ready:
            if flow := self.flows.get(fd):
                flow.seen = self.moment

    # --- the end of all ---------------------------------------------------------------------------

    def drain(self) -> None:
        """Stop accepting; ``run`` returns when the open flows have ended."""
        if self.to_drain is None:
            self.to_drain = len(set(self.flows.values()))
            self._reconsider_accepting()

    def finish(self) -> None:
        """This process is about to end. Move bytes that can be moved at once; then make each open
        flow end with a reset, so that no peer takes a truncated transfer for a complete one. The
        kernel closes what is left open.
        """
        if self.to_drain is None:
            number, self.to_drain = 0, 0
            self._reconsider_accepting()
        else:
            number = self.to_drain
        self.shortage_until = 0.0
        deadline = self.kernel.now() + LAST_SECONDS
        while self.flows and self.turn({}, 0.0) and self.kernel.now() < deadline:
            pass
        left = set(self.flows.values())
        self.counters[count.STOPPED] += len(left) - len(self.grace)
        self.counters[count.DRAINED] += max(0, number - len(left))
        for fd in self.flows:
            self.kernel.abort(fd)

    def start(self) -> None:
        """Ask for the first sockets; accepting begins when they are there."""
        self._request_sockets()
        self.pipes.fill()  # while the monitor makes them
        self._reconsider_accepting()

    # --- events ----------------------------------------------------------------------------------

    def _handle(self, flow: Flow, side: int, events: int) -> None:
        state = flow.state
        if flow.route:
            self._on_connecting(flow, side, events)
            return
        if state[CLIENT] == FINISHED and state[TARGET] == FINISHED:
            self._on_grace(flow, side, events)
            return
        if events & EPOLLERR and not flow.failed[side] and self._fail(flow, side):
            return
        if events & EPOLLOUT and state[1 - side] == BLOCKED:
            self._empty_pipe(flow, 1 - side)
            if flow.fd[CLIENT] < 0:
                return
        if events & _ACTIONABLE:
            if state[side] == OPEN:
                self._read(flow, side, events)
                return
            if events & (EPOLLHUP | EPOLLERR):
                flow.muted = marked(flow.muted, side)
        self._sync(flow)

    def _read(self, flow: Flow, side: int, events: int) -> None:
        finished = bool(events & _FINISHED_HINT)
        if events & EPOLLPRI or flow.urgent_hidden[side]:
            self._move_urgent(flow, side, finished)
            if flow.fd[CLIENT] >= 0:
                self._sync(flow)
        else:
            self._move(flow, side, finished)  # what it changes, it brings to epoll

    # --- time ------------------------------------------------------------------------------------

    def _is_timed(self) -> bool:
        """Whether something waits for the clock."""
        return bool(
            self.connecting or self.grace or self.shortage_until or self.jam_began
            or self.limits.idle_seconds
        )  # fmt: skip

    def _timeout(self) -> float:
        """Seconds that epoll may sleep; -1 when nothing is due, which is the rule."""
        if not (self._is_timed() or self.starved):
            return -1
        now = self.kernel.now()
        due = []
        if (
            self.starved
        ):  # other processes may use up the pipes, and no event reports when they stop
            due.append(now + SHORTAGE_SECONDS)
        if self.connecting:
            due.append(next(iter(self.connecting)).deadline)
        if self.shortage_until:
            due.append(self.shortage_until)
        if self.jam_began:
            due.append(self.jam_began + JAM_SECONDS)
        if self.limits.idle_seconds and self.flows:
            due.append(self.idle_check_at)
        due.extend(grace.check_at for grace in self.grace.values())
        return max(0.0, min(due) - now) if due else -1

    def _check_deadlines(self) -> None:
        now = self.kernel.now()
        while self.connecting:
            flow = next(iter(self.connecting))
            if flow.deadline > now:
                break
            self.counters[count.TIMED_OUT] += 1
            self.monitor.note(Note.TIMED_OUT, errno.ETIMEDOUT, flow.port_id)
            self._end(flow, abort=SIDES, end=End.TIMEOUT)
        for flow, grace in list(self.grace.items()):
            if grace.check_at <= now:
                self._check_grace(flow, grace, now)
        if self.shortage_until and now >= self.shortage_until:
            self.shortage_until = 0.0
            self._reconsider_accepting()
        if self.jam_began and now >= self.jam_began + JAM_SECONDS:
            self._check_jam(now)
        if self.limits.idle_seconds and now >= self.idle_check_at:
            self.idle_check_at = now + self.limits.idle_seconds / IDLE_CHECKS
            self._check_queues(now)
            silent = self._silent(now - self.limits.idle_seconds)
            self._end_all(silent, count.IDLE, End.IDLE)

    def _check_queues(self, now: float) -> None:
        """A flow isn't idle while a peer takes bytes that the kernel already has from us, although
        nothing happens here: there may be megabytes, and a slow reader takes minutes for them.
        """
        for flow in self._silent(now - self.limits.idle_seconds / IDLE_CHECKS):
            unsent = sum(self.kernel.unsent(flow.fd[side]) for side in SIDES)
            if unsent < flow.unsent:
                flow.seen = now
            flow.unsent = unsent

    def _check_jam(self, now: float) -> None:
        """Nothing could be accepted for some time. If half-closed flows in which nothing has
        happened since are a good part of all flows, reset them.
        """
        waiting = [flow for flow in self._silent(self.jam_began) if FINISHED in flow.state]
        self.jam_began = now
        if len(waiting) >= max(JAM_FLOWS, len(self.flows) // (2 * JAM_SHARE)):
            self._end_all(waiting, count.JAMMED, End.JAMMED)

    def _silent(self, since: float) -> list[Flow]:
        """The connected flows in which nothing has happened since then."""
        return [
            flow
            for flow in dict.fromkeys(self.flows.values())
            if flow.seen <= since
            and not flow.route
            and not (flow.state[CLIENT] == flow.state[TARGET] == FINISHED)
        ]

    def _end_all(self, flows: Sequence[Flow], counter: int, end: End) -> None:
        for flow in flows:
            self.counters[counter] += 1
            self._end(flow, abort=SIDES, end=end)
