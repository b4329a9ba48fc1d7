# SPDX-License-Identifier: GPL-2.0-or-later
"""All relays that one monitor has: a group for each protocol of its direction, in one shared set of
places for listeners.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from hardsplice.ipc.descriptors import FIRST_LISTENER
from hardsplice.ipc.loop import Loop
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.monitor.group import RelayGroup
from hardsplice.monitor.owner import RelaysOwner
from hardsplice.monitor.supervisor import STOP_SECONDS, Supervisor
from hardsplice.relay import main as relay


class RelayGroups:
    """The groups, by their protocols."""

    def __init__(
        self, plans: Sequence[Sequence[relay.Plan]], loop: Loop, owner: RelaysOwner
    ) -> None:
        """``plans`` are those of the relays of each group; of some there may be none."""
        self._owner = owner
        places = deque(_free_places(plans))
        self.by_protocol = {
            some[0].protocol: RelayGroup(some, places, loop, self) for some in plans if some
        }
        self._awaits_ready = self._awaits_drained = False

    @property
    def supervisors(self) -> list[Supervisor]:
        """Those of all relays."""
        return [one for group in self.by_protocol.values() for one in group.supervisors]

    def start(self) -> None:
        """Fork all relays that have something to do."""
        for group in self.by_protocol.values():
            group.start()
        self._awaits_ready = True
        self.relays_ready()

    def stop(self) -> None:
        """End all relays, and wait until they have ended."""
        supervisors = self.supervisors
        for supervisor in supervisors:
            supervisor.hang_up()
        deadline = time.monotonic() + STOP_SECONDS
        for supervisor in supervisors:
            supervisor.stop(deadline)

    def mark_stored(self, port_ids: Iterable[int]) -> None:
        """As RelayGroup.mark_stored, of both protocols."""
        stored = frozenset(port_ids)
        for group in self.by_protocol.values():
            group.mark_stored(stored)

    def drain(self) -> None:
        """As RelayGroup.drain, of both protocols."""
        for group in self.by_protocol.values():
            group.drain()
        self._awaits_drained = True
        self.relays_drained()

    @property
    def is_drained(self) -> bool:
        """Whether no relay is there."""
        return all(group.is_drained for group in self.by_protocol.values())

    def ping(self) -> None:
        """Ping every relay."""
        for supervisor in self.supervisors:
            supervisor.ping()
        if self.is_drained:
            self._owner.relays_alive()

    def has(self, port_id: int) -> bool:
        """Whether a port's listener is here."""
        return any(port_id in group.listeners for group in self.by_protocol.values())

    def add(self, forward: Forward, fd: int, slots: Mapping[int, int]) -> None:
        """As RelayGroup.add, of the forward's protocol. KeyError where that can't have any."""
        self.by_protocol[forward.protocol].add(forward, fd, slots)

    def remove(self, port_id: int, *, reset_flows: bool, done: Callable[[], None]) -> None:
        """As RelayGroup.remove, of the protocol that has it."""
        for group in self.by_protocol.values():
            if port_id in group.listeners:
                group.remove(port_id, reset_flows=reset_flows, done=done)
                return
        done()

    # --- what the groups report -------------------------------------------------------------------

    def relays_ready(self) -> None:
        """Those of one more group serve."""
        if self._awaits_ready and not any(group.awaited for group in self.by_protocol.values()):
            self._awaits_ready = False
            self._owner.relays_ready()

    def relay_lost(self, protocol: Protocol, reason: str, hint: str | None = None) -> None:
        """Pass it on."""
        self._owner.relay_lost(protocol, reason, hint)

    def relays_alive(self) -> None:
        """Those of one more group have answered."""
        if not any(supervisor.is_pinged for supervisor in self.supervisors):
            self._owner.relays_alive()

    def note(self, protocol: Protocol, kind: int, detail: int, port_id: int, text: bytes) -> None:
        """Pass it on."""
        self._owner.note(protocol, kind, detail, port_id, text)

    def flow_ended(self, end: int, row: bytes) -> None:
        """Pass it on."""
        self._owner.flow_ended(end, row)

    def places_of_others(self, protocol: Protocol) -> Iterable[int]:
        """The places of listeners that other groups have."""
        return [
            listener.fd
            for group in self.by_protocol.values()
            if group.protocol is not protocol
            for listener in group.listeners.values()
        ]

    def relays_drained(self) -> None:
        """Those of one more group have ended."""
        if self._awaits_drained and self.is_drained:
            self._awaits_drained = False
            self._owner.relays_drained()


def _free_places(plans: Sequence[Sequence[relay.Plan]]) -> Sequence[int]:
    """The places for listeners that may come at run time."""
    every = [one for some in plans for one in some]
    if not any(one.is_dynamic for one in every):
        return ()
    taken = {listener.fd for one in every for listener in one.listeners}
    return [fd for fd in range(FIRST_LISTENER, every[0].first_flow) if fd not in taken]
