# SPDX-License-Identifier: GPL-2.0-or-later
"""A host monitor for the control socket's routes to play with: ports in a table, and whatever a
test wants told.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address

from hardsplice.control.http import Request, Response
from hardsplice.control.routes import dispatch
from hardsplice.control.world import RelayView, Snapshot
from hardsplice.model.direction import Direction
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.monitor import loops
from hardsplice.monitor.registry import Registry
from hardsplice.telemetry.counters import COUNTERS, GAUGES, KEPT, LATENCY_BOUNDS, Latency
from hardsplice.telemetry.flow_table import FlowRow, State
from tests.unit.monitor.fake_worker import FakeWorker


def flow(client: int, *, state: State = State.ESTABLISHED) -> FlowRow:
    """A flow of the client with this port."""
    return FlowRow(
        port_id=1,
        protocol=Protocol.TCP,
        client=(IPv4Address("127.0.0.1"), client),
        target=(IPv6Address("::1"), 80),
        started=0.0,
        bytes_to_target=10,
        bytes_to_client=20,
        state=state,
    )


def relay(
    direction: Direction,
    number: int = 0,
    protocol: Protocol = Protocol.TCP,
    *,
    is_started: bool = True,
) -> RelayView:
    """A relay whose counters are all different."""
    return RelayView(
        direction=direction,
        protocol=protocol,
        number=number,
        is_started=is_started,
        counters={name: 100 + at for at, name in enumerate((*COUNTERS, *KEPT))},
        gauges={**dict.fromkeys(GAUGES, 7), "pipes_open": 5, "pipes_free": 3},
        states={"connecting": 1, "established": 2, "half_closed": 0},
        latency=Latency(tuple(range(len(LATENCY_BOUNDS) + 1)), 1.5),
    )


class FakeRegistry(Registry):
    """The registry as it is, empty at first, with a worker that makes no listeners."""

    def __init__(self) -> None:
        self.worker = FakeWorker()
        groups = frozenset(itertools.product(Direction, Protocol))
        super().__init__([], 1, groups, self.worker, lambda _: None, loops.check)

    @property
    def table(self) -> dict[int, Forward]:
        """What it holds, for a test to change behind its back."""
        return self._ports


class FakeWorld:
    """A world of three relays of TCP, and no flows."""

    def __init__(self, versions: Sequence[int] = (4, 6)) -> None:
        self.ports = FakeRegistry()
        self.versions = versions
        self.spelled: dict[int, str] = {}
        self.relays = [
            relay(Direction.INBOUND),
            relay(Direction.OUTBOUND),
            relay(Direction.OUTBOUND, 1),
        ]
        self.present: list[tuple[Direction, FlowRow]] = []
        self.lacking: list[str] = []

    def snapshot(self) -> Snapshot:
        return Snapshot(
            version="1.2.3",
            pid=42,
            served="process 7",
            served_pid=7,
            label="7",
            uptime=12.5,
            lacking=self.lacking,
            relays=self.relays,
            connections=1,
            denied_peers=2,
        )

    def flows(self) -> Iterator[tuple[Direction, FlowRow]]:
        yield from self.present

    def handle(self, request: Request, respond: Callable[[Response], None]) -> None:
        dispatch(request, self, respond)
