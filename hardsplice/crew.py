# SPDX-License-Identifier: GPL-2.0-or-later
"""The relays of one direction: each with its keeper, its pools and its counters, all with the same
listeners.

A relay that dies costs its own flows and is replaced by itself. A relay that stops accepting, or
has died, may have been the only one that was told of a client (relay/engine.py, *Sharing
listeners*): then the others are made to look. They are told at most once in LOOK_SECONDS, so that a
relay which was taken over can't keep the others busy with that.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Protocol

from hardsplice import linux
from hardsplice.keeper import STOP_SECONDS, Keeper
from hardsplice.loop import Loop
from hardsplice.relay import main as relay
from hardsplice.relay.engine import Listener

LOOK_SECONDS = 0.01


class Upward(Protocol):
    """Whom a crew tells."""

    def relays_ready(self) -> None:
        """Every relay is locked down and serves, for the first time."""

    def relay_lost(self, reason: str) -> None:
        """One of the relays can't be kept running."""

    def relays_alive(self) -> None:
        """Every relay has answered."""

    def note(self, kind: int, detail: int, index: int, text: bytes) -> None:
        """A relay, or its keeper, has something for the log."""

    def flow_ended(self, end: int, row: bytes) -> None:
        """A flow ended; what is said of it was checked."""


class Crew:
    """Keeps the relays of one direction."""

    def __init__(self, plans: Sequence[relay.Plan], loop: Loop, upward: Upward) -> None:
        self.loop = loop
        self.upward = upward
        self.keepers = [Keeper(plan, loop, self) for plan in plans]
        self.listeners = {one.index: one for one in plans[0].listeners} if plans else {}
        self.families = plans[0].families if plans else ()
        self.awaited = len(self.keepers)
        self.will_look = False

    def start(self) -> None:
        """Fork all relays."""
        for keeper in self.keepers:
            keeper.start()

    def stop(self) -> None:
        """Make all relays leave, and wait until they have."""
        for keeper in self.keepers:
            keeper.hang_up()
        deadline = time.monotonic() + STOP_SECONDS
        for keeper in self.keepers:
            keeper.stop(deadline)

    def ask_alive(self) -> None:
        """Ask every relay whether it goes on."""
        for keeper in self.keepers:
            keeper.ask_alive()

    def add(self, listener: Listener) -> None:
        """Keep one more listener, and have every relay accept on it."""
        self.listeners[listener.index] = listener
        for keeper in self.keepers:
            keeper.add(listener)

    def remove(self, index: int, *, reset_flows: bool) -> None:
        """End a listener, if it is there. Its flows go on, or are reset."""
        listener = self.listeners.pop(index, None)
        if listener is None:
            return
        for keeper in self.keepers:
            keeper.remove(index, reset_flows=reset_flows)
        # At once, whenever the relays get to close theirs (inet_shutdown, net/ipv4/af_inet.c).
        linux.shutdown(listener.fd, socket.SHUT_RDWR)
        os.close(listener.fd)

    def relay_ready(self) -> None:
        """One more serves."""
        self.awaited -= 1
        if self.awaited == 0:
            self.upward.relays_ready()

    def relay_lost(self, reason: str) -> None:
        """Fewer relays than were asked for is an error."""
        self.upward.relay_lost(reason)

    def relay_alive(self) -> None:
        """One more has answered."""
        if not any(keeper.is_asked for keeper in self.keepers):
            self.upward.relays_alive()

    def relay_yields(self) -> None:
        """Clients may wait of whom no other relay knows."""
        if len(self.keepers) > 1 and not self.will_look:
            self.will_look = True
            self.loop.after(LOOK_SECONDS, self._look)

    def note(self, kind: int, detail: int, index: int, text: bytes) -> None:
        """Pass it on."""
        self.upward.note(kind, detail, index, text)

    def flow_ended(self, end: int, row: bytes) -> None:
        """Pass it on."""
        self.upward.flow_ended(end, row)

    def _look(self) -> None:
        self.will_look = False
        for keeper in self.keepers:
            keeper.look()
