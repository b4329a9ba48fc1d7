# SPDX-License-Identifier: GPL-2.0-or-later
"""Connecting to a flow's target: a socket from the pool, connect, and the next target if refused.

*connect, then getpeername.* A handshake over loopback is complete when connect(2) returns, although
it returns EINPROGRESS, since the socket's own lock holds the answer back until then. getpeername(2)
succeeds then, for one more call and without waiting. (So would a second connect(2), but on a socket
that was reset meanwhile it disconnects, and discards what the target had sent: tcp_disconnect.)
Nothing is read from a client before its target is connected.

*Keepalive.* An accepted socket inherits it from its listener. A pooled socket has nothing to
inherit it from, and another call for each would be measurable; so it is set only for targets on
other machines, which can vanish without a packet.
"""

from __future__ import annotations

import errno
from collections import deque

from hardsplice.ipc.messages import Note
from hardsplice.relay.targets import end_of_attempt, telling
from hardsplice.relay.tcp.flows import Resources
from hardsplice.relay.tcp.heuristics import Eagerness
from hardsplice.relay.tcp.moving import Mover
from hardsplice.relay.tcp.rules import (
    CLIENT,
    CONNECT,
    EPOLLERR,
    EPOLLHUP,
    NEITHER,
    RESUME,
    SIDES,
    TARGET,
    UNWATCHED,
    Flow,
    step,
)
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.flow_table import End

SHORTAGE_SECONDS = (
    1.0  # until a resource that was exhausted (a descriptor, a pipe, a socket) is requested again
)


class Connector(Mover):
    """The layer that connects."""

    __slots__ = ("eagerness", "shortage_until", "unplaced")

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources)
        self.unplaced: deque[Flow] = deque()  # flows that wait for a socket for their next attempt
        self.eagerness = Eagerness()
        self.shortage_until = 0.0  # a resource is exhausted: request and accept nothing before then

    def _begin_shortage(self) -> None:
        self.shortage_until = self.kernel.now() + SHORTAGE_SECONDS
        self.restless = True

    def _try_connect(self, flow: Flow, refusal: int = 0) -> None:
        """Connect to the next target of the plan, and the one after it when that is refused at
        once. ``refusal`` is the errno of those before.
        """
        while flow.attempt < len(flow.route):
            target = flow.route[flow.attempt]
            ready = self.pools[target.family].ready
            if not ready:
                self.unplaced.append(flow)
                self.restless = True
                self._sync(flow)
                self._request_sockets()
                return
            fd = ready.popleft()
            self.flows[fd] = flow
            flow.fd[TARGET] = fd
            code = self.kernel.connect(fd, target)
            if code == -errno.EINPROGRESS:
                code = self.kernel.connected(fd)
            if code in (0, -errno.ECONNRESET):
                self._connected(flow, code)
                return
            if code == -errno.EINPROGRESS:
                step(flow, CLIENT, CONNECT)
                flow.deadline = self.kernel.now() + self.limits.connect_seconds
                self.connecting[flow] = None
                self.restless = True
                self._sync(flow)
                return
            self._drop_target(flow)
            refusal = telling(refusal, -code)
        self._refused(flow, refusal)

    def _connected(self, flow: Flow, code: int) -> None:
        """The target was reached; ``code`` says whether it has reset the connection already (what
        it sent remains).
        """
        self.counters[count.CONNECTED] += 1
        if self.trace:
            self.monitor.trace(Note.OPENED, flow.port_id)
        if self.flow_writer is not None:
            self.flow_writer.connected(flow)
        if flow.route[flow.attempt].may_vanish:
            self.kernel.keep_alive(flow.fd[TARGET])
        flow.route = ()
        if self.warm is None or self.warm.slots < self.limits.edge_slots:
            flow.edge = NEITHER
        step(flow, CLIENT, RESUME)
        step(flow, TARGET, RESUME)
        if code == 0:
            if self.eagerness.expects():
                before = self.counters[flow.tally]
                self._move(flow, CLIENT, False)
                self.eagerness.learn(right=self.counters[flow.tally] != before)
            if flow.fd[CLIENT] >= 0:
                self._sync(flow)
        else:
            self._fail(flow, TARGET)

    def _drop_target(self, flow: Flow) -> None:
        """Give up one attempt: the socket is used up."""
        fd = flow.fd[TARGET]
        flow.attempt += 1
        flow.fd[TARGET] = -1
        flow.watched[TARGET] = UNWATCHED  # closing takes it out of epoll
        del self.flows[fd]
        self.kernel.close(fd)

    def _refused(self, flow: Flow, code: int) -> None:
        self.counters[count.REFUSED] += 1
        self.monitor.note(Note.REFUSED, code, flow.port_id)
        self._end(flow, abort=SIDES, end=end_of_attempt(code))

    def _on_connecting(self, flow: Flow, side: int, events: int) -> None:
        if side == CLIENT:
            if events & (EPOLLERR | EPOLLHUP):
                self.wary = True
                self.counters[count.RESET] += 1
                self._end(flow, abort=SIDES, end=End.CLIENT_RESET)
            return
        code = self.kernel.connected(flow.fd[TARGET])
        if code == -errno.EINPROGRESS:
            return
        self.connecting.pop(flow, None)
        if code in (0, -errno.ECONNRESET):
            self._connected(flow, code)
        elif flow.attempt + 1 < len(flow.route):
            self._drop_target(flow)
            self._try_connect(flow, -code)
        else:
            self._refused(flow, -code)

    # --- pools -----------------------------------------------------------------------------------

    def _request_sockets(self) -> None:
        """Request sockets for each pool that is half used, as far as there are descriptors for
        them.
        """
        if self.shortage_until:
            return
        for family in self.families:
            pool = self.pools[family]
            free = self._free()
            room = free - self.limits.reserve
            if not pool.ready and (self.unplaced or not self.flows):
                # Otherwise no flow would ever end: the reserve is for this, too.
                room = max(room, min(1, free))
            number = min(pool.want(), room)
            if number > 0 and self.monitor.request_sockets(family, number):
                pool.requested = number
