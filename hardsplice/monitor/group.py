# SPDX-License-Identifier: GPL-2.0-or-later
"""The relays of one direction and protocol: each with its supervisor, its pools and its counters.
Those of TCP all have the same listeners. Of UDP each listener belongs to one relay, since the
datagrams of a client must not be split among several; and a relay without a listener isn't started
before it gets one.

When a relay dies, only its own flows are lost, and only it is replaced. A relay that stops
accepting, or has died, may have been the only one that was woken for a client
(relay/tcp/accepting.py, *Sharing listeners*): then the others are told to check their listeners, at
most once in POLL_SECONDS, so that a relay that was taken over can't keep the others busy with that.

When the relays drain, they accept no more connections, and each ends once it has no
flow. A listener that no other process holds is shut down for that, so that clients are refused; one
that the service manager holds stays open, and clients wait for the next start. One of UDP stays
open, too, since answers leave by it.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from hardsplice.ipc import descriptors
from hardsplice.ipc.loop import Loop
from hardsplice.ipc.messages import Note
from hardsplice.kernel import hints, socketcalls
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.monitor.draft import has_part
from hardsplice.monitor.owner import RelaysOwner
from hardsplice.monitor.supervisor import Supervisor
from hardsplice.monitor.unreachable import Doubt
from hardsplice.net.listeners import Bound, Routing
from hardsplice.relay import main as relay
from hardsplice.telemetry.flow_table import End

POLL_SECONDS = 0.01


class GroupOwner(RelaysOwner, hints.Protocol):
    """What the relays of a group report to."""

    def places_of_others(self, protocol: Protocol) -> Iterable[int]:
        """The places of listeners that groups of other protocols have."""


class RelayGroup:
    """The relays of one direction and protocol."""

    def __init__(
        self, plans: Sequence[relay.Plan], places: deque[int], loop: Loop, owner: GroupOwner
    ) -> None:
        """``places`` are those that are free for listeners which come at run time; other groups of
        this monitor take theirs from the same ones.
        """
        self.protocol = plans[0].protocol
        self.loop = loop
        self.owner = owner
        self.supervisors = [Supervisor(plan, loop, self) for plan in plans]
        self.listeners = {one.port_id: one for plan in plans for one in plan.listeners}
        self.families = plans[0].families
        self.routing = Routing(plans[0].book, self.families) if plans[0].is_dynamic else None
        self.places = places
        self.awaited = sum(not one.is_idle for one in self.supervisors)
        self.will_poll = False
        self.stored = plans[0].stored
        self.doubt = Doubt()

    def start(self) -> None:
        """Fork all relays that have something to do."""
        for supervisor in self.supervisors:
            if not supervisor.is_idle:
                supervisor.start()

    def mark_stored(self, port_ids: Iterable[int]) -> None:
        """The service manager also has the listeners of those ports: they are left open when
        hardsplice drains, and clients wait in them for the next start.
        """
        self.stored |= frozenset(port_ids)

    def drain(self) -> None:
        """Stop accepting, and have every relay end once it has no flow left. TCP listeners that
        nobody else has are shut down, which resets the connections that wait in them.
        """
        for supervisor in self.supervisors:
            supervisor.drain()
        for port_id, listener in self.listeners.items():
            if port_id not in self.stored and self.protocol is Protocol.TCP:
                socketcalls.shutdown(listener.fd, socket.SHUT_RDWR)
        self.relay_drained()

    def relay_drained(self) -> None:
        """One more has ended, as told."""
        if self.is_drained:
            self.owner.relays_drained()

    @property
    def is_drained(self) -> bool:
        """Whether there is no relay, and none will be started again."""
        return all(supervisor.is_drained for supervisor in self.supervisors)

    def add(self, forward: Forward, fd: int, slots: Mapping[int, int]) -> None:
        """Keep one more listener, a copy of ``fd``, and have relays serve it; ``slots`` are those
        of its targets in the address book. HardspliceError where that can't be.
        """
        assert self.routing is not None
        if not self.places:
            reason = "there is no place left for one more listener"
            raise HardspliceError("listen on", f"port {forward.port}", reason)
        listener = self.routing.listener(Bound(forward, self.places[0]), slots)
        descriptors.copy(fd, self.places.popleft())
        self.listeners[forward.id] = listener
        for number, supervisor in enumerate(self.supervisors):
            if has_part(supervisor.plan, number, forward.id):
                supervisor.add(listener)

    def remove(self, port_id: int, *, reset_flows: bool, done: Callable[[], None]) -> None:
        """Give up a listener, which the host monitor has ended. Its flows go on, or are reset; of
        UDP they end. ``done`` is called once its port is free: at once, or of UDP when the relay
        has let go of it.
        """
        listener = self.listeners.pop(port_id)
        descriptors.clear((listener.fd,))
        is_udp = self.protocol is Protocol.UDP
        for number, supervisor in enumerate(self.supervisors):
            if has_part(supervisor.plan, number, port_id):
                let_go = done if is_udp else None
                supervisor.remove(listener, reset_flows=reset_flows, let_go=let_go)
        self.places.append(listener.fd)
        if not is_udp:
            done()

    def foreign_places(self, plan: relay.Plan) -> tuple[int, ...]:
        """The places of other groups' listeners, and of those of UDP that other relays serve."""
        foreign = set(self.owner.places_of_others(self.protocol))
        if self.protocol is Protocol.UDP:
            foreign.update(one.fd for one in self.listeners.values())
            foreign.difference_update(one.fd for one in plan.listeners)
        return tuple(foreign)

    def relay_ready(self) -> None:
        """One more serves."""
        self.awaited -= 1
        if self.awaited == 0:
            self.owner.relays_ready()

    def relay_lost(self, reason: str, hint: str | None = None) -> None:
        """Fewer relays than requested is an error."""
        self.owner.relay_lost(self.protocol, reason, hint)

    def relay_alive(self) -> None:
        """One more has answered."""
        if not any(supervisor.is_pinged for supervisor in self.supervisors):
            self.owner.relays_alive()

    def accept_paused(self) -> None:
        """Clients may wait that no other relay was woken for."""
        shares = len(self.supervisors) > 1 and self.protocol is Protocol.TCP
        if shares and not self.will_poll:
            self.will_poll = True
            self.loop.after(POLL_SECONDS, self._poll)

    def note(self, kind: int, detail: int, port_id: int, text: bytes) -> None:
        """Pass it on."""
        listener = self.listeners.get(port_id)
        if listener is not None and self.doubt.explains_note(kind, detail, listener):
            kind = Note.LOOPBACK
        self.owner.note(self.protocol, kind, detail, port_id, text)

    def flow_ended(self, end: int, row: bytes) -> None:
        """Pass it on."""
        self.owner.flow_ended(End.LOOPBACK if self.doubt.explains_end(end, row) else end, row)

    def _poll(self) -> None:
        self.will_poll = False
        for supervisor in self.supervisors:
            supervisor.poll()
