# SPDX-License-Identifier: GPL-2.0-or-later
"""`-t auto` and `-T auto`: forward ports that are listened on in the other namespace, as long as
they are.

The host monitor lists the listeners of both namespaces (net/sockdiag.py), and has the registry add
ports that are missing and remove those whose server has gone. Listeners of hardsplice itself are
left out: otherwise a port of one direction would come back as one of the other.

*How often.* Ports change in bursts, when something starts or is restarted; and a listing costs
little, but not nothing. So for BRISK_FOR seconds after a change, and after the start, there is one
every BRISK_SECONDS, otherwise every IDLE_SECONDS. However many listeners there are, listing them
takes at most one part in SHARE of the time.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

from hardsplice.ipc.loop import Loop
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Auto, Forward, overlap
from hardsplice.model.protocol import Protocol
from hardsplice.monitor.registry import Registry
from hardsplice.net import sockdiag
from hardsplice.net.sockdiag import FoundListener

BRISK_SECONDS = 0.1
BRISK_FOR = 5.0
IDLE_SECONDS = 1.0
SHARE = 20
RETRY_SECONDS = 5.0  # until a port that could not be bound is tried again

_ANYWHERE = (IPv4Address("0.0.0.0"), IPv6Address("::"))


class Pace:
    """When the next listing is due."""

    def __init__(self, now: float) -> None:
        self._brisk_until = now + BRISK_FOR

    def pause(self, now: float, *, changed: bool, took: float) -> float:
        """Seconds to the next listing, after one that ended ``now`` and ``took`` so long."""
        if changed:
            self._brisk_until = now + BRISK_FOR
        return max(BRISK_SECONDS if now < self._brisk_until else IDLE_SECONDS, SHARE * took)


class Watched(NamedTuple):
    """What a direction watches, and what it does about it."""

    autos: Sequence[Auto]
    diag_socket: socket.socket  # of the namespace where the targets are

    @property
    def protocols(self) -> list[Protocol]:
        """Those whose listeners are to be looked at."""
        return [one for one in Protocol if any(auto.protocol is one for auto in self.autos)]


def wanted(
    listening: Iterable[FoundListener],
    autos: Sequence[Auto],
    versions: frozenset[int],
    ours: Iterable[Forward],
) -> list[Forward]:
    """What is to be forwarded while this is listened on there. ``versions`` are the versions of IP
    in use; ``ours`` is what hardsplice itself has there.
    """
    own = {
        (forward.protocol, address, forward.port)
        for forward in ours
        for address in ((forward.address,) if forward.address else _ANYWHERE)
    }
    targets = {
        (one.protocol, one.port)
        for one in listening
        if one.reached_by & versions and (one.protocol, one.address, one.port) not in own
    }
    return [
        forward
        for protocol, port in sorted(targets)
        for auto in autos
        if auto.protocol is protocol
        for forward in auto.forwards(port)
    ]


class Follower:
    """One direction: has the registry follow what is wanted."""

    def __init__(
        self,
        direction: Direction,
        ports: Registry,
        report: Callable[[HardspliceError], None],
        on_outcome: Callable[[], None],
    ) -> None:
        """``report`` is for people: a port that can't be had, once. ``on_outcome`` is called after
        each outcome.
        """
        self.direction = direction
        self.ports = ports
        self.report = report
        self.on_outcome = on_outcome
        self.pending = 0  # outcomes that aren't known yet
        self.asked: dict[Forward, Forward | None] = {}  # None while its outcome isn't known
        self.failed: dict[Forward, float] = {}  # when to try again

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to try again, whatever is listened on."""
        return bool(self.failed)

    @property
    def is_settled(self) -> bool:
        """Whether all that was asked for has its outcome."""
        return not self.pending

    def follow(self, forwards: Sequence[Forward], now: float) -> bool:
        """Add what is missing, and remove what is too much. Whether anything changed."""
        there = set(forwards)
        before = {*self.asked, *self.failed}
        for forward in [one for one in self.failed if one not in there]:
            del self.failed[forward]
        for forward, port in list(self.asked.items()):
            if forward not in there and port is not None:
                self._remove(forward, port)
        missing = [
            one for one in forwards if one not in self.asked and now >= self.failed.get(one, 0.0)
        ]
        for forward in self._free(missing):
            self._add(forward, now)
        return before != {*self.asked, *self.failed}

    def _free(self, forwards: Sequence[Forward]) -> list[Forward]:
        """Those that no option, nobody at the control socket, and no other of them has."""
        if not forwards:
            return []
        held: dict[int, list[Forward]] = {}
        for other in self.ports.held(self.direction):
            held.setdefault(other.port, []).append(other)
        free = []
        for one in forwards:
            there = held.setdefault(one.port, [])
            if not any(overlap(one, other) for other in there):
                there.append(one)
                free.append(one)
        return free

    def _add(self, forward: Forward, now: float) -> None:
        self.asked[forward] = None
        self.pending += 1

        def done(outcome: Forward | HardspliceError) -> None:
            self.pending -= 1
            self._settle(forward, outcome, now)
            self.on_outcome()

        self.ports.add(forward, done)

    def _remove(self, forward: Forward, port: Forward) -> None:
        del self.asked[forward]

        def done(failure: HardspliceError | None) -> None:
            # It is there as before, or somebody else has removed it.
            if failure is not None and self.ports.find(port.id) is not None:
                self.asked[forward] = port

        self.ports.remove(port.id, reset_flows=False, done=done)

    def _settle(self, forward: Forward, outcome: Forward | HardspliceError, now: float) -> None:
        if isinstance(outcome, Forward):
            self.asked[forward] = outcome
            self.failed.pop(forward, None)
            return
        del self.asked[forward]
        if forward not in self.failed:
            self.report(outcome)
        self.failed[forward] = now + RETRY_SECONDS


class Watch:
    """Looks, and follows, for as long as the loop runs."""

    def __init__(
        self,
        watched: Mapping[Direction, Watched],
        versions: Sequence[int],
        ports: Registry,
        loop: Loop,
        report: Callable[[HardspliceError], None],
    ) -> None:
        """``versions`` are the versions of IP in use."""
        self.watched = watched
        self.versions = frozenset(versions)
        self.ports = ports
        self.loop = loop
        self.followers = {
            one: Follower(one, ports, report, self._perhaps_settled) for one in watched
        }
        self.on_first: Callable[[], None] | None = None  # to be called still
        # What the last look at each direction was at: the answers, and the registry's changes.
        self.seen: dict[Direction, tuple[dict[Protocol, bytes], int]] = {}
        self.pace = Pace(time.monotonic())
        self.scans = 0

    def start(self, on_first: Callable[[], None]) -> None:
        """Look from now on; ``on_first`` is called once what is there already is forwarded."""
        self._scan()
        self.on_first = on_first
        self._perhaps_settled()

    def _perhaps_settled(self) -> None:
        """Call ``on_first`` if it is time; not from within what brought the outcome, whose business
        it is not.
        """
        if self.on_first and all(follower.is_settled for follower in self.followers.values()):
            self.loop.after(0, self.on_first)
            self.on_first = None

    def _scan(self) -> None:
        if self.ports.is_closed:
            return
        began = time.monotonic()
        self.scans += 1
        changed = False
        for direction, watched in self.watched.items():
            with contextlib.suppress(OSError):  # the kernel is short of memory: the next one tells
                changed |= self._scan_one(direction, watched, began)
        now = time.monotonic()
        self.loop.after(self.pace.pause(now, changed=changed, took=now - began), self._scan)

    def _scan_one(self, direction: Direction, watched: Watched, now: float) -> bool:
        answers = {one: sockdiag.request(watched.diag_socket, one) for one in watched.protocols}
        seen = answers, self.ports.changes
        follower = self.followers[direction]
        if seen == self.seen.get(direction) and not follower.is_waiting:
            return False
        self.seen[direction] = seen
        # Listeners of the other direction are those that we have where this one's targets are.
        ours = self.ports.held(direction.opposite)
        listening = [
            found for one, answer in answers.items() for found in sockdiag.parse(answer, one)
        ]
        return follower.follow(wanted(listening, watched.autos, self.versions, ours), now)
