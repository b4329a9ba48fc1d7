# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay's loop: it does what flow.py decides, with as few system calls as it can.

*No read just to see EAGAIN.* After a short read the loop goes back to epoll; flow.py says how no
input is missed by that. It makes a round trip six calls: for each direction one wait, one splice
in, one splice out.

*Descriptors in one batch.* A descriptor closed while a batch of events is handled could be handed
out again in the same batch, and a stale event would hit the wrong flow. New descriptors for flows
come only from listeners and from the monitor, and those are served last.

*Room.* The relay accepts while there is a socket in each pool and a descriptor to spare; else it
stops watching its listeners, and clients wait in the kernel's backlog.

*Sharing listeners.* With several relays a listener is watched with EPOLLEXCLUSIVE: a new connection
wakes the first in its queue of relays that is asleep, and is put before those that are awake, too
(ep_poll_callback, fs/eventpoll.c). Three things follow. The event is level-triggered, so a relay
that accepts one connection a turn is told again until the backlog is empty: of several that wait
none is forgotten. The queue does not turn by itself, and one relay would get all connections that
come while it sleeps; so whoever accepted goes to its end, by leaving epoll and entering it again.
And whoever was woken may be the only one who knows: if it stops accepting it says so, and the
others look again, which is the same leaving and entering, since epoll looks at what it is asked to
watch.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hardsplice.book import Pointer
from hardsplice.channel import Note
from hardsplice.flowtable import End
from hardsplice.relay import stats as count
from hardsplice.relay.connecting import SHORT_SECONDS, Connector
from hardsplice.relay.flow import (
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
)
from hardsplice.relay.habits import Burst
from hardsplice.relay.table import Resources

EVENTS_A_WAIT = 128
EPOLLEXCLUSIVE = 1 << 28  # linux/eventpoll.h

# The client went away before it was accepted, or none was there.
_NOT_OURS = (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPROTO)
# Neither EPOLLHUP nor EPOLLERR: they come unasked, and so in an event that is older than the wish
# for EPOLLPRI, where the sink's event in the same batch has just unblocked the direction.
# EPOLLRDHUP comes with both of them, and only where urgent data would have been announced too.
_FINISHED_HINT = EPOLLRDHUP
_ACTIONABLE = INPUT | EPOLLHUP | EPOLLERR


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket and where its connections go.

    A plan lists targets in the order to try. A dual-stack listener has one for clients of each
    family; for a listener of one family both are the same.
    """

    fd: int
    plan_ipv4: tuple[Pointer, ...]
    plan_ipv6: tuple[Pointer, ...]
    index: int  # what the monitor knows it by


class Engine(Connector):
    """The layer that waits and accepts. ``run`` never returns; ``turn`` handles one batch of
    events.
    """

    def __init__(
        self, resources: Resources, listeners: Sequence[Listener], *, shared: bool = False
    ) -> None:
        """``shared``: other relays watch the same listeners."""
        super().__init__(resources)
        self.shared = shared
        self.listen_mask = EPOLLIN | EPOLLEXCLUSIVE if shared else EPOLLIN
        self.listeners = {listener.fd: listener for listener in listeners}
        self.accepting = False
        self.turns = 0
        self.rounds = 0  # turns after which nobody was left that was ready (habits.Burst)
        self.burst = Burst()
        # With so many descriptors in use there is room left whatever the pools hold.
        promised = sum(self.pools[family].size for family in self.families)
        spare = self.limits.descriptors - self.limits.reserve
        self.comfortable = spare - promised - 1

    def run(self, others: Mapping[int, Callable[[], None]]) -> None:
        """Serve until the process is told to end."""
        while True:
            self.turn(others)

    def turn(self, others: Mapping[int, Callable[[], None]]) -> None:
        """Wait once and handle what came. ``others`` maps descriptors that are not ours to
        callables.
        """
        self.turns += 1
        late: list[int] = []
        find, move = self.flows.get, self._move
        timeout = self._timeout() if self.restless else -1
        ready = self.epoll.poll(timeout, EVENTS_A_WAIT)
        if len(ready) < EVENTS_A_WAIT:
            self.rounds += 1
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
            self._look_after()

    def _look_after(self) -> None:
        """What is to be done besides events, at the end of a turn."""
        if self.connecting or self.grace or self.short_until:
            self._look_at_clock()
        if self.starved:
            self._feed()
        if not self.accepting or self.unplaced:
            # Whatever made room, a flow that ended or a pipe that was closed, it was in this turn.
            self._ask()
            self._reconsider_accepting()
        if self.gauges is not None:
            self._tell(self.gauges)
            return
        self.restless = not self.accepting or bool(
            self.connecting or self.grace or self.short_until or self.starved or self.unplaced
        )

    def add_sockets(self, family: int, fds: Sequence[int]) -> None:
        """Put sockets that the monitor sent into their pool."""
        pool = self.pools[family]
        pool.ready.extend(fds)
        pool.asked = 0
        if not fds:  # there was no descriptor left to receive one: asking again at once would spin
            self._fall_short()
        for _ in range(len(self.unplaced)):
            flow = self.unplaced.popleft()
            if flow.fd[CLIENT] >= 0:
                self._guarded(flow, self._try_connect)
        self._ask()
        self._reconsider_accepting()

    def start(self) -> None:
        """Ask for the first sockets; accepting begins when they are there."""
        self._ask()
        self._reconsider_accepting()

    # --- accepting -------------------------------------------------------------------------------

    def _accept_some(self, listener: Listener) -> None:
        limit = self.burst.begin(self.turns, self.rounds, 1 + len(self.flows) // EVENTS_A_WAIT)
        accepted = 0
        while accepted < limit and self._accept(listener):
            accepted += 1
        self.burst.end(accepted)
        is_there = self.listeners.get(listener.fd) is listener  # it may have been shut down
        if self.shared and accepted and self.accepting and is_there:
            self._go_to_the_end(listener.fd)

    def _accept(self, listener: Listener) -> bool:
        """Accept one; False when there was none, or none may be accepted now."""
        if not self.accepting:
            return False
        fd = self.kernel.accept(listener.fd)
        if fd < 0:
            self._cannot_accept(listener, -fd)
            return False
        self.counters[count.ACCEPTED] += 1
        plan = listener.plan_ipv6
        if plan is not listener.plan_ipv4 and self.kernel.from_ipv4():
            plan = listener.plan_ipv4
        flow = Flow(fd, plan, listener.index)
        self.flows[fd] = flow
        if self.ledger is not None:
            self.ledger.opened(flow, self.kernel.accepted_from())
        self._guarded(flow, self._try_connect)
        used = self.other_descriptors + len(self.flows) + 2 * self.pipes.open
        if used > self.comfortable or self._is_low():
            self._ask()
            self._reconsider_accepting()
        return True

    def _is_low(self) -> bool:
        """Whether half of a pool is used. (A loop: any() with its generator takes thrice as long,
        and this is asked for every connection.)
        """
        for family in self.families:  # noqa: SIM110
            if self.pools[family].is_low:
                return True
        return False

    # --- listeners that come and go --------------------------------------------------------------

    def add_listener(self, listener: Listener) -> None:
        """Accept on one more, unless it has been removed meanwhile."""
        if self.kernel.take_listener(listener.fd):
            self.listeners[listener.fd] = listener
            if self.accepting:
                self.epoll.register(listener.fd, self.listen_mask)

    def remove_listener(self, index: int, place: int, *, reset_flows: bool) -> None:
        """Accept no more on the listener that the monitor knows by ``index``, whose descriptor is
        ``place``; its flows go on, or are reset.
        """
        listener = self.listeners.get(place)
        if listener is not None and listener.index == index:
            self._forget_listener(listener)
        self.kernel.take_listener(place)  # which gives it up, too: /dev/null comes in its place
        if reset_flows:
            for flow in dict.fromkeys(self.flows.values()):
                if flow.listener == index:
                    self.counters[count.RESET] += 1
                    self._end(flow, abort=SIDES, end=End.REMOVED)

    def _forget_listener(self, listener: Listener) -> None:
        del self.listeners[listener.fd]
        if self.accepting:
            self.epoll.unregister(listener.fd)

    # --- sharing listeners -----------------------------------------------------------------------

    def look_again(self) -> None:
        """Another relay has stopped accepting: clients may wait of whom only it was told."""
        if self.accepting:
            for fd in self.listeners:
                self._go_to_the_end(fd)

    def _go_to_the_end(self, fd: int) -> None:
        """Be the last of the relays that the next client of a listener would wake."""
        self.epoll.unregister(fd)
        self.epoll.register(fd, self.listen_mask)

    def _cannot_accept(self, listener: Listener, code: int) -> None:
        if code in _NOT_OURS:
            return
        if code == errno.EINVAL:  # it was shut down, of which we are told next
            self._forget_listener(listener)
            return
        self.monitor.note(Note.ACCEPT, code)
        self._fall_short()
        self._reconsider_accepting()

    def _reconsider_accepting(self) -> None:
        """Watch the listeners while there is a pooled socket of each family and a descriptor to
        spare.
        """
        possible = not self.short_until and all(
            self.pools[family].ready for family in self.families
        )
        if possible:
            slack = 0 if self.accepting else max(4, self.limits.reserve // 4)
            possible = self._free() > self.limits.reserve + slack or (
                not self.flows and self._free() > 0  # with a very low limit, one flow at a time
            )
            if not possible and self.accepting:
                self.monitor.note(Note.DESCRIPTORS, self.limits.descriptors)
        if possible == self.accepting:
            return
        self.accepting = possible
        if not possible:
            self.restless = True
            self.counters[count.PAUSED] += 1
        for fd in self.listeners:
            if possible:
                self.epoll.register(fd, self.listen_mask)
            else:
                self.epoll.unregister(fd)
        if self.shared and not possible:
            self.monitor.yield_listeners()

    # --- events ----------------------------------------------------------------------------------

    def _handle(self, flow: Flow, side: int, events: int) -> None:
        state = flow.state
        if flow.plan:
            self._on_connecting(flow, side, events)
            return
        if state[CLIENT] == FINISHED and state[TARGET] == FINISHED:
            self._on_grace(flow, side, events)
            return
        if events & EPOLLERR and not flow.failed[side] and self._fail(flow, side):
            return
        if events & EPOLLOUT and state[1 - side] == BLOCKED:
            self._drain(flow, 1 - side)
            if flow.fd[CLIENT] < 0:
                return
        if events & _ACTIONABLE:
            if state[side] == OPEN:
                self._read(flow, side, events)
                return
            if events & (EPOLLHUP | EPOLLERR):
                flow.muted[side] = True
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

    def _timeout(self) -> float:
        """Seconds that epoll may sleep; -1 when nothing is due, which is the rule."""
        if not (self.connecting or self.grace or self.short_until or self.starved):
            return -1
        now = self.kernel.now()
        due = []
        if self.starved:  # what keeps pipes from us may be others' use, of which no event tells
            due.append(now + SHORT_SECONDS)
        if self.connecting:
            due.append(next(iter(self.connecting)).deadline)
        if self.short_until:
            due.append(self.short_until)
        due.extend(grace.look for grace in self.grace.values())
        return max(0.0, min(due) - now)

    def _look_at_clock(self) -> None:
        now = self.kernel.now()
        while self.connecting:
            flow = next(iter(self.connecting))
            if flow.deadline > now:
                break
            self.counters[count.TIMED_OUT] += 1
            self.monitor.note(Note.TIMED_OUT, errno.ETIMEDOUT, flow.listener)
            self._end(flow, abort=SIDES, end=End.TIMEOUT)
        for flow, grace in list(self.grace.items()):
            if grace.look <= now:
                self._look_at_grace(flow, grace, now)
        if self.short_until and now >= self.short_until:
            self.short_until = 0.0
            self._reconsider_accepting()
