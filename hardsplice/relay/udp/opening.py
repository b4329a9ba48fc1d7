# SPDX-License-Identifier: GPL-2.0-or-later
"""New flows: a socket from the pool, connected to the target, and the next target if it refuses.

*Sources.* Who sends over a network puts there what he likes. A client without an address is none;
and neither is a listener of ours, which would get its own answers as questions, so that a server
which answers everything would do so for ever. Which addresses are ours is learnt from what clients
have asked: by the second round at the latest.

*The other loopback.* Where a target may be at either loopback address, the first datagram shows at
which: on loopback the refusal (ICMP) is there when send returns, and the datagram still in hand.
What worked is tried first from then on.

*An empty pool.* Listeners aren't watched until the monitor has sent sockets, and what has been
received already is kept meanwhile. If the monitor can't send any, or sends nothing for a second,
datagrams of new clients are dropped from then on until it does, and those of flows go on.

*Room.* At a bound the flow goes that was used the longest time ago of those whose target has never
answered, or else of the brief ones (table.py), so that a flood of single datagrams from made-up
addresses, however often they are answered, neither ends one whose client goes on nor keeps new
clients out. The ports of this network namespace are a bound as well, which other programs share.
"""

from __future__ import annotations

import errno
import socket
from collections import deque

from hardsplice.ipc.messages import Note
from hardsplice.kernel.mmsghdr import ROOM
from hardsplice.kernel.packet_info import Ends, ends_of
from hardsplice.kernel.record import NamedTuple
from hardsplice.relay.targets import end_of_attempt, telling
from hardsplice.relay.udp.rules import EPOLLIN, OF_ANOTHER, OF_TARGET, count_of, is_ipv4
from hardsplice.relay.udp.sending import Resources, Sender
from hardsplice.relay.udp.table import TICK, Flow, ListenerState
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.flow_table import End

NO_SOCKET, NO_ROOM = -1, -2  # in the place of an errno
SHORTAGE_SECONDS = 1.0  # until sockets are requested again that the monitor couldn't send
MOST_ENDPOINTS = 4096  # of its listeners that a relay remembers
PATIENCE_SECONDS = 1.0  # for which all clients wait for a monitor that says nothing


class Held(NamedTuple):
    """What was received from a new client while there was no socket for it."""

    state: ListenerState
    key: bytes
    payload: bytes
    segment: int


class Opener(Sender):
    """The layer that begins flows."""

    __slots__ = ("endpoints", "held", "patient_until", "shortage_until", "to_drain", "watching")

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources)
        self.held: deque[Held] = deque()
        # Where clients have reached our listeners: addresses and ports
        self.endpoints: set[tuple[bytes, int]] = set()
        self.watching = False  # the listeners
        self.patient_until = 0.0  # until when clients wait, while they do
        self.shortage_until = 0.0  # the monitor has no sockets: request none before then
        self.to_drain: int | None = None  # the number of flows when draining began

    def _open(self, state: ListenerState, key: bytes, slot: int, size: int, segment: int) -> None:
        """Begin a flow with its first datagram, which is in a slot; or keep that, or drop it."""
        self.has_changed = True
        if state.drops is None:  # this one told of none
            state.drops = 0
        number = count_of(size, segment)
        if not self._may_answer(state, ends_of(key)):
            self.counters[count.DROPPED_SOURCE] += number
            return
        if self.to_drain is not None or not self._has_room(state):
            self.counters[count.DROPPED_LIMIT] += number
            return
        route = state.listener.route_ipv6
        is_other = route is not state.listener.route_ipv4 and is_ipv4(key)
        if is_other:
            route = state.listener.route_ipv4
        flow = Flow(state, key, route[0], self.moment)
        try:
            code = self._try_targets(flow, is_other, slot, size, segment)
        except Exception as error:  # noqa: BLE001 - it ends that flow only
            self.counters[count.DROPPED_SEND] += number
            self._break(flow, error)
            return
        if code == 0:
            return
        if code == NO_SOCKET:
            self._hold(Held(state, key, self._payload(slot, size), segment))
            return
        self.counters[count.ACCEPTED] += 1
        self.counters[count.REFUSED] += 1
        self.counters[count.DROPPED_SEND] += number
        self.monitor.note(Note.REFUSED, code, state.port_id)
        if self.flow_writer is not None:
            self.flow_writer.opened(flow)
            self.flow_writer.closed(flow, end_of_attempt(code))

    def _may_answer(self, state: ListenerState, ends: Ends) -> bool:
        """Whether a flow may begin between these (module docstring, *Sources*)."""
        if len(self.endpoints) < MOST_ENDPOINTS:
            self.endpoints.add((ends.plain_asked, state.listener.port))
        return ends.can_be_answered and (ends.plain_client, ends.port) not in self.endpoints

    def _try_targets(self, flow: Flow, is_other: bool, slot: int, size: int, segment: int) -> int:
        """Connect to one candidate after the other until one takes the datagram: 0, or the errno;
        NO_SOCKET when there is none.
        """
        listener = flow.state.listener
        route = listener.route_ipv4 if is_other else listener.route_ipv6
        preferred = flow.state.preferred[is_other]
        refusal = 0
        for attempt in range(len(route)):
            at = (preferred + attempt) % len(route)
            flow.target = target = route[at]
            ready = self.pools[target.family].ready
            if not ready:
                return NO_SOCKET
            fd = ready.popleft()
            code = -self.kernel.connect(fd, target)
            if code == errno.EAGAIN and self._evict(self.flows.most_dispensable()):
                code = -self.kernel.connect(fd, target)  # there was no port left
            if code == 0 and attempt + 1 < len(route):
                code = self._probe(fd, slot, size, segment)
                if code in (0, NO_ROOM):
                    self._begin(flow, fd)
                    if code == NO_ROOM:
                        self.counters[count.DROPPED_SEND] += count_of(size, segment)
                    else:
                        self._count(flow, count_of(size, segment), size)
                        flow.state.preferred[is_other] = at
                    return 0
            elif code == 0:
                self._begin(flow, fd)
                flow.state.preferred[is_other] = at
                self._deliver(flow, (slot,), (size,), (segment,))
                return 0
            self.kernel.close(fd)
            refusal = telling(refusal, code)
        return refusal

    def _probe(self, fd: int, slot: int, size: int, segment: int) -> int:
        """Send the first datagram where another candidate is left: 0 when it was taken, or the
        errno; NO_ROOM when that says nothing of the target.
        """
        for offset in range(0, size, segment) if segment else (0,):
            length = min(segment, size - offset) if segment else size
            sent = self.kernel.send(fd, self.buffers.pointer(slot, offset), length)
            if sent < 0:
                return -sent if -sent in OF_TARGET | OF_ANOTHER else NO_ROOM
            code = self.kernel.option(fd, socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                return abs(code)
        return 0

    def _begin(self, flow: Flow, fd: int) -> None:
        """The flow has its socket."""
        flow.fd = fd
        self.counters[count.ACCEPTED] += 1
        self.flows.add(flow)
        self.epoll.register(fd, EPOLLIN)
        self.due = min(self.due, self.moment + self.flows.lifetimes.unanswered + TICK)
        if self.flow_writer is not None:
            self.flow_writer.opened(flow)
        if self.trace:
            self.monitor.trace(Note.OPENED, flow.state.port_id)

    def _has_room(self, state: ListenerState) -> bool:
        """Whether one more flow may begin; another one may end for that."""
        is_full, oldest = self.flows.in_the_way(state, len(self.listeners))
        return not is_full or self._evict(oldest)

    def _evict(self, flow: Flow | None) -> bool:
        """End a flow, if there is one, for another one."""
        if flow is None:
            return False
        self.counters[count.EVICTED] += 1
        self._end(flow, End.EVICTED)
        return True

    # --- without a socket -------------------------------------------------------------------------

    def _payload(self, slot: int, size: int) -> bytes:
        return self.buffers.memory[slot * ROOM : slot * ROOM + size]

    def _hold(self, held: Held) -> None:
        if self.shortage_until:
            self.counters[count.DROPPED_LIMIT] += count_of(len(held.payload), held.segment)
        else:
            self.held.append(held)

    def _open_held(self) -> None:
        """There are sockets again, or there won't be any: go on with what was kept."""
        for _ in range(len(self.held)):
            state, key, payload, segment = self.held.popleft()
            if self.listeners.get(state.fd) is not state:
                self.counters[count.DROPPED_LIMIT] += count_of(len(payload), segment)
                continue  # it was removed meanwhile
            self.buffers.memory[: len(payload)] = payload
            flow = state.flows.get(key)
            if flow is None:
                self._open(state, key, 0, len(payload), segment)
                continue
            try:
                self._deliver(flow, (0,), (len(payload),), (segment,))
            except Exception as error:  # noqa: BLE001 - it ends that flow only
                self._break(flow, error)

    def _begin_shortage(self) -> None:
        self.shortage_until = self.moment + SHORTAGE_SECONDS
        self.due = min(self.due, self.shortage_until)

    def _end_shortage(self) -> None:
        """It is time to try again; or to wait further, for what was requested already."""
        pools = [self.pools[family] for family in self.families]
        if any(pool.requested and not pool.ready for pool in pools):
            self._begin_shortage()
            return
        self.shortage_until = 0.0
        self._request_sockets()
        self._reconsider_watching()

    def _lose_patience(self) -> None:
        """The monitor has said nothing for too long: serve those clients that need no socket."""
        self._begin_shortage()
        self._open_held()
        self._reconsider_watching()

    def _request_sockets(self) -> None:
        """Request sockets for each pool that is half used."""
        if self.shortage_until:
            return
        for family in self.families:
            pool = self.pools[family]
            number = pool.want()
            if number > 0 and self.monitor.request_sockets(family, number):
                pool.requested = number

    def _reconsider_watching(self) -> None:
        """Watch the listeners while there are sockets for new clients, or there won't be any."""
        possible = not self.held and (
            bool(self.shortage_until or self.to_drain is not None)
            or all(self.pools[family].ready for family in self.families)
        )
        if possible == self.watching:
            return
        self.watching = possible
        if possible:
            self.patient_until = 0.0
        else:
            self.counters[count.PAUSED] += 1
            self.patient_until = self.moment + PATIENCE_SECONDS
            self.due = min(self.due, self.patient_until)
        for fd, state in self.listeners.items():
            if state.is_shut:
                continue
            if possible:
                self.epoll.register(fd, EPOLLIN)
            else:
                self.epoll.unregister(fd)
