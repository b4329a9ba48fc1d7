# SPDX-License-Identifier: GPL-2.0-or-later
"""Accepting: how many connections at once, when none, and how several relays share listeners.

*Room.* The relay accepts while there is a socket in each pool and a descriptor to spare; else it
stops watching its listeners, and clients wait in the kernel's backlog.

*Loops.* If a target leads back to one of our own listeners, each connection causes another one.
Until the descriptors are used up this can't be distinguished from clients; then two rules end it.
When its client disconnects, half-closed flows remain, which wait for each other: if there are many,
those in which nothing has happened since the descriptors ran out are reset (engine.py). And so that
a reset doesn't chase the loop around forever, always one connection behind, the next connection
after one that was reset is checked before its target is connected.

*Sharing listeners.* With several relays a listener is watched with EPOLLEXCLUSIVE: a new connection
wakes the first sleeping relay in the listener's wait queue, and is also reported to those that are
awake (ep_poll_callback, fs/eventpoll.c). Three things follow. The event is level-triggered, so it
is reported again to a relay that accepts one connection a turn, until the backlog is empty: no
waiting connection is forgotten. The queue does not rotate by itself, and one relay would get all
connections that arrive while it sleeps; so a relay that has accepted moves to the end, by removing
the listener from its epoll and adding it again. And the relay that was woken may be the only one
that was; so if it stops accepting it reports that, and the others remove and add the listener,
since epoll checks the state of what is added.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from hardsplice.ipc.messages import Note
from hardsplice.net.listener import Listener
from hardsplice.relay.tcp.connecting import Connector
from hardsplice.relay.tcp.flows import Resources
from hardsplice.relay.tcp.heuristics import Burst
from hardsplice.relay.tcp.rules import EPOLLIN, SIDES, Flow
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.flow_table import End

EVENTS_A_WAIT = 128
JAM_SECONDS = 10.0  # without a free descriptor, until half-closed flows are reset to get some
EPOLLEXCLUSIVE = 1 << 28  # linux/eventpoll.h

# The client went away before it was accepted, or none was there.
_NOT_OURS = (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPROTO)


class Acceptor(Connector):
    """The layer that accepts."""

    __slots__ = (
        "accepting",
        "burst",
        "comfortable",
        "jam_began",
        "listen_mask",
        "listeners",
        "moment",
        "shared",
        "to_drain",
        "turns",
        "unfinished",
    )

    def __init__(
        self, resources: Resources, listeners: Sequence[Listener], *, shared: bool = False
    ) -> None:
        """``shared``: other relays watch the same listeners."""
        super().__init__(resources)
        self.shared = shared
        self.listen_mask = EPOLLIN | EPOLLEXCLUSIVE if shared else EPOLLIN
        self.listeners = {listener.fd: listener for listener in listeners}
        self.accepting = False
        self.to_drain: int | None = None  # the number of flows when draining began
        self.turns = 0
        self.unfinished = 0  # turns after which ready descriptors were left (heuristics.Burst)
        self.burst = Burst()
        self.moment = 0.0  # of the last events, if it is needed (CLOCK_MONOTONIC)
        self.jam_began = 0.0  # since then nothing could be accepted; 0: not so
        # With at most so many descriptors in use there is room, whatever the pools hold.
        promised = sum(self.pools[family].size for family in self.families)
        spare = self.limits.descriptors - self.limits.reserve
        self.comfortable = spare - promised - 1

    def _accept_some(self, listener: Listener) -> None:
        rounds = self.turns - self.unfinished
        limit = self.burst.begin(self.turns, rounds, 1 + len(self.flows) // EVENTS_A_WAIT)
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
        route, route_ipv4 = listener.route_ipv6, listener.route_ipv4
        if route is route_ipv4 and self.flow_writer is None:  # the client's address isn't needed
            fd = self.kernel.accept(listener.fd)
        else:
            fd = self.kernel.accept_from(listener.fd)
        if fd < 0:
            self._cannot_accept(listener, -fd)
            return False
        self.counters[count.ACCEPTED] += 1
        if self.wary and self._is_gone(fd):
            return True
        if route is not route_ipv4 and self.kernel.from_ipv4():
            route = route_ipv4
        flow = Flow(fd, route, listener.port_id)
        flow.seen = self.moment
        self.flows[fd] = flow
        if self.flow_writer is not None:
            self.flow_writer.opened(flow, self.kernel.accepted_from())
        self._guarded(flow, self._try_connect)
        used = self.other_descriptors + len(self.flows) + 2 * self.pipes.open
        if used > self.comfortable or self._is_low():
            self._request_sockets()
            self._reconsider_accepting()
        return True

    def _is_gone(self, fd: int) -> bool:
        """Whether a client has reset before it was accepted; then that was all of it."""
        self.wary = self.kernel.connected(fd) != 0
        if self.wary:
            self.counters[count.RESET] += 1
            self.kernel.close(fd)
        return self.wary

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

    def remove_listener(self, port_id: int, place: int, *, reset_flows: bool) -> None:
        """Accept no more on the listener of the forward ``port_id``, whose descriptor is
        ``place``; its flows go on, or are reset.
        """
        listener = self.listeners.get(place)
        if listener is not None and listener.port_id == port_id:
            self._forget_listener(listener)
        self.kernel.take_listener(place)  # which also closes it here: /dev/null replaces it
        if reset_flows:
            for flow in dict.fromkeys(self.flows.values()):
                if flow.port_id == port_id:
                    self.counters[count.RESET] += 1
                    self._end(flow, abort=SIDES, end=End.REMOVED)

    def _forget_listener(self, listener: Listener) -> None:
        del self.listeners[listener.fd]
        if self.accepting:
            self.epoll.unregister(listener.fd)

    # --- sharing listeners -----------------------------------------------------------------------

    def poll_listeners(self) -> None:
        """Another relay has stopped accepting: clients may wait that only it was woken for."""
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
        if code == errno.EINVAL:  # it was shut down, and the record about that comes next
            self._forget_listener(listener)
            return
        self.monitor.note(Note.ACCEPT, code)
        self._begin_shortage()
        self._reconsider_accepting()

    def _is_short_of_descriptors(self, slack: int) -> bool:
        return self.to_drain is None and self._free() <= self.limits.reserve + slack

    def _reconsider_accepting(self) -> None:
        """Watch the listeners while there is a pooled socket of each family and a descriptor to
        spare.
        """
        possible = (
            self.to_drain is None
            and not self.shortage_until
            and all(self.pools[family].ready for family in self.families)
        )
        slack = 0 if self.accepting else max(4, self.limits.reserve // 4)
        if possible:
            possible = self._free() > self.limits.reserve + slack or (
                not self.flows and self._free() > 0  # with a very low limit, one flow at a time
            )
            if not possible and self.accepting:
                self.monitor.note(Note.DESCRIPTORS, self.limits.descriptors)
        if possible:
            self.jam_began = 0.0
        elif self._is_short_of_descriptors(slack) and not self.jam_began and self.flows:
            self.jam_began = self.moment = self.kernel.now()
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
        if self.shared and not possible and self.to_drain is None:
            self.monitor.report_accept_paused()
