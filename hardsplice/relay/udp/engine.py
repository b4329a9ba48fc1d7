# SPDX-License-Identifier: GPL-2.0-or-later
"""The datagram relay's loop, listeners that come and go, and the clock.

*Descriptors in one batch.* As in relay/tcp/engine.py: a descriptor closed while a batch of events
is handled could be handed out again in the same batch. New ones come only from the monitor, which
is served last.

*The clock* is read once a turn. Only flows that may be over and a shortage wait for it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence

from hardsplice.ipc.messages import Note
from hardsplice.kernel.pinned import IPV4_SIZE, IPV6_SIZE
from hardsplice.model.unforeseen import kind_and_place
from hardsplice.net.listener import Listener
from hardsplice.relay.udp.answering import Answerer
from hardsplice.relay.udp.rules import EPOLLERR, EPOLLHUP, EPOLLIN
from hardsplice.relay.udp.sending import Resources
from hardsplice.relay.udp.table import NEVER, ListenerState
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.flow_table import End

EVENTS_A_WAIT = 128
SWEEP_SECONDS = 1.0  # at least, between two times that flows are ended by the clock
LAST_SECONDS = 0.1  # for which a relay that is told to end goes on with what is ready


class Engine(Answerer):
    """The layer that waits. ``turn`` handles one batch of events."""

    __slots__ = ()

    def __init__(self, resources: Resources, listeners: Sequence[Listener]) -> None:
        super().__init__(resources)
        for listener in listeners:
            self.listeners[listener.fd] = self._state_of(listener)

    def _state_of(self, listener: Listener) -> ListenerState:
        family = self.kernel.option(listener.fd, socket.SOL_SOCKET, socket.SO_DOMAIN)
        size = IPV4_SIZE if family == socket.AF_INET else IPV6_SIZE
        inbox = self.inboxes[size]
        take = self.kernel.to_take(listener.fd, inbox)
        return ListenerState(listener, take, inbox, self.outboxes[size])

    def start(self) -> None:
        """Ask for the first sockets; receiving begins when they are there."""
        self._request_sockets()
        self._reconsider_watching()

    def run(self, others: Mapping[int, Callable[[], None]]) -> None:
        """Serve until all is drained, once that was asked for, or the process is told to end."""
        while self.to_drain is None or self.flows.by_fd:
            self.turn(others)

    def turn(
        self, others: Mapping[int, Callable[[], None]], patience: float | None = None
    ) -> Sequence[tuple[int, int]]:
        """Wait once, ``patience`` seconds at the most, and handle what came, which is returned.
        ``others`` maps descriptors that are not ours to callables.
        """
        if patience is None and self.due < NEVER:
            patience = self.due - self.moment if self.due > self.moment else 0.0
        self.turns += 1
        ready = self.poll(patience, EVENTS_A_WAIT)
        self.moment = self.kernel.now()
        for fd, events in ready if len(ready) == 1 else self._take_answers(ready):
            flow = self.find(fd)
            if flow is not None:  # it alone has something
                self._hear(flow, events)
                continue
            state = self.listeners.get(fd)
            if state is None:
                if fd in others:
                    others[fd]()
                continue
            if events & EPOLLERR:  # left there by a relay that was taken over
                self.kernel.discard_errors(fd, state.inbox)
            if self.watching and not self.held:
                try:
                    self._take(state)
                except Exception as error:  # noqa: BLE001 - the others go on
                    self.counters[count.ERRORS] += 1
                    self.monitor.note(Note.ERROR, 0, state.port_id, kind_and_place(error))
            if events & EPOLLHUP:  # it was shut down, and the record about that comes next
                self._unwatch(state)
        if self.moment >= self.due:
            self._on_time()
        if self.has_changed:
            self._settle()
        return ready

    def _settle(self) -> None:
        """Flows have begun or ended, and sockets were used or have come."""
        for flow, code in self.refused:
            try:
                if flow.fd >= 0:  # it hasn't ended otherwise
                    self._end_refused(flow, code)
            except Exception as error:  # noqa: BLE001 - it ends that flow only
                self._break(flow, error)
        self.refused.clear()
        self.has_changed = False
        for family in self.families:
            if self.pools[family].is_low:
                self._request_sockets()
                break
        self._reconsider_watching()
        if self.gauges is not None:
            self._write_gauges(self.gauges)

    def add_sockets(self, family: int, fds: Sequence[int]) -> None:
        """Put sockets that the monitor sent into their pool."""
        self.has_changed = True
        self.pools[family].take(fds)
        if not fds:  # there was no descriptor left to receive one: asking again at once would spin
            self._begin_shortage()
        self._open_held()
        self._request_sockets()
        self._reconsider_watching()

    # --- listeners that come and go ---------------------------------------------------------------

    def add_listener(self, listener: Listener) -> None:
        """Receive from one more, unless it has been removed meanwhile."""
        if self.kernel.take_listener(listener.fd):
            self.listeners[listener.fd] = self._state_of(listener)
            if self.watching:
                self.epoll.register(listener.fd, EPOLLIN)

    def remove_listener(self, port_id: int, place: int, *, reset_flows: bool) -> None:  # noqa: ARG002
        """Receive no more from the listener of the forward ``port_id``, whose descriptor is
        ``place``. Its flows end in any case, as they have no other socket to answer from.
        """
        state = self.listeners.get(place)
        if state is not None and state.port_id == port_id:
            self._unwatch(state)
            del self.listeners[place]
            port = state.listener.port
            self.endpoints = {one for one in self.endpoints if one[1] != port}
            for flow in list(state.flows.values()):
                self.counters[count.RESET] += 1
                self._end(flow, End.REMOVED)
        self.kernel.take_listener(place)  # which also closes it here: /dev/null replaces it

    def _unwatch(self, state: ListenerState) -> None:
        if self.watching and not state.is_shut:
            self.epoll.unregister(state.fd)
        state.is_shut = True

    def poll_listeners(self) -> None:
        """Another relay has stopped receiving, which is nothing to us: no listener is shared."""

    # --- time -------------------------------------------------------------------------------------

    def _on_time(self) -> None:
        again = self.moment
        while (flow := self.flows.expired(self.moment)) is not None:
            answered = flow.answered
            self.counters[count.EXPIRED if answered else count.UNANSWERED] += 1
            self._end(flow, End.EXPIRED if answered else End.UNANSWERED)
            again = self.moment + SWEEP_SECONDS
        if self.shortage_until and self.moment >= self.shortage_until:
            self._end_shortage()
        if self.patient_until and self.moment >= self.patient_until:
            self._lose_patience()
        # Flows that are over soon after each other are ended together: each by itself would wake
        # this process as often as there are flows.
        others = min(self.shortage_until or NEVER, self.patient_until or NEVER)
        self.due = min(max(self.flows.due(), again), others)

    def _write_gauges(self, gauges: memoryview) -> None:
        """Write down what is in use, for monitors."""
        in_use = self.other_descriptors + len(self.flows.by_fd)
        for pool in self.pools:
            gauges[2 + pool.family] = len(pool.ready)
            in_use += len(pool.ready)
        gauges[4] = in_use

    # --- the end of all ---------------------------------------------------------------------------

    def drain(self) -> None:
        """Begin no more flows; ``run`` returns when those that there are have ended."""
        if self.to_drain is None:
            self.to_drain = len(self.flows.by_fd)
            self._open_held()
            self._reconsider_watching()

    def finish(self) -> None:
        """This process is about to end. Pass on what can be passed on at once."""
        if self.to_drain is None:
            number, self.to_drain = 0, 0
        else:
            number = self.to_drain
        deadline = self.kernel.now() + LAST_SECONDS
        while self.turn({}, 0.0) and self.moment < deadline:
            pass
        left = len(self.flows.by_fd)
        self.counters[count.STOPPED] += left
        self.counters[count.DRAINED] += max(0, number - left)
