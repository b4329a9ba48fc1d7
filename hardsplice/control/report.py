# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of hardsplice: its state, its flows, the start of an audit, its metrics."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hardsplice.control.fields import Field, build
from hardsplice.control.http import Response
from hardsplice.control.metrics import LABEL, denied, families
from hardsplice.control.prometheus import CONTENT_TYPE, render
from hardsplice.control.world import Call, RelayView, Snapshot
from hardsplice.model.direction import Direction
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.telemetry.flow_table import FlowRow, endpoint_text

FLOWS_SHOWN = 1000  # in one answer


@dataclass(frozen=True, slots=True)
class _Side:
    """One direction at one moment."""

    relays: Sequence[RelayView]
    ports: Sequence[Forward]

    def of(self, protocol: Protocol) -> _Side:
        """What of it is of one protocol."""
        return _Side(
            [relay for relay in self.relays if relay.protocol is protocol],
            [port for port in self.ports if port.protocol is protocol],
        )


PROTOCOL: tuple[Field[_Side], ...] = (
    Field("ports", "The number of forwarded ports.", lambda side: len(side.ports)),
    Field(
        "relays",
        "The number of relays; one of UDP is started once it has a port.",
        lambda side: sum(relay.is_started for relay in side.relays),
    ),
    Field(
        "flows",
        "The number of flows by state, as in the metric hardsplice_flows.",
        lambda side: _sum(relay.states for relay in side.relays),
    ),
    Field(
        "counters",
        "The counters of all relays together; see below.",
        lambda side: _sum(relay.counters for relay in side.relays),
    ),
    Field(
        "gauges",
        "The gauges of all relays together; see below.",
        lambda side: _sum(relay.gauges for relay in side.relays),
    ),
)
DIRECTION: tuple[Field[_Side], ...] = (
    *PROTOCOL,
    Field(
        "protocols",
        "An object for each protocol, tcp and udp, with the same of it alone.",
        lambda side: {one: build(PROTOCOL, side.of(one)) for one in Protocol},
    ),
)
STATUS: tuple[Field[tuple[Snapshot, Sequence[Forward]]], ...] = (
    Field("version", "The version of hardsplice.", lambda of: of[0].version),
    Field("pid", "The process ID of the host monitor.", lambda of: of[0].pid),
    Field(
        "uptimeSeconds",
        "Seconds since it was started.",
        lambda of: round(of[0].uptime, 3),
    ),
    Field("namespace", "The namespace that it serves.", lambda of: of[0].served),
    Field(
        "lacking",
        "Additional layers of the sandbox that are not in force, each with the reason.",
        lambda of: list(of[0].lacking),
    ),
    Field(
        "denied",
        "Forbidden attempts, as in the metric hardsplice_denied_total.",
        lambda of: denied(of[0]),
    ),
    Field(
        "directions",
        "An object for each direction, inbound and outbound.",
        lambda of: {direction: build(DIRECTION, _side(*of, direction)) for direction in Direction},
    ),
)


def status(call: Call) -> None:
    """How it is: for people and scripts that ask now and then."""
    call.answer(build(STATUS, (call.world.snapshot(), call.world.ports.list())))


def _side(now: Snapshot, present: Sequence[Forward], direction: Direction) -> _Side:
    relays = [relay for relay in now.relays if relay.direction == direction]
    return _Side(relays, [port for port in present if port.direction == direction])


def _sum(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for table in tables:
        for name, value in table.items():
            total[name] = total.get(name, 0) + value
    return total


ShownFlow = tuple[Direction, FlowRow, float]  # and what time it is, in CLOCK_MONOTONIC seconds
FLOW: tuple[Field[ShownFlow], ...] = (
    Field("direction", "inbound or outbound.", lambda shown: shown[0]),
    Field("protocol", "tcp or udp.", lambda shown: shown[1].protocol),
    Field(
        "port", "The ID of the port that the client connected to.", lambda shown: shown[1].port_id
    ),
    Field(
        "state",
        "connecting, established or half_closed.",
        lambda shown: shown[1].state.name.lower(),
    ),
    Field("client", "The client's address and port.", lambda shown: endpoint_text(shown[1].client)),
    Field(
        "target",
        "The target's address and port; while connecting, those of the first target.",
        lambda shown: endpoint_text(shown[1].target),
    ),
    Field(
        "seconds",
        "Seconds since the client was accepted.",
        lambda shown: round(max(0.0, shown[2] - shown[1].started), 3),
    ),
    Field("bytesToTarget", "Bytes moved to the target.", lambda shown: shown[1].bytes_to_target),
    Field("bytesToClient", "Bytes moved to the client.", lambda shown: shown[1].bytes_to_client),
)
FLOWS: tuple[Field[tuple[Sequence[ShownFlow], int]], ...] = (
    Field(
        "flows",
        f"An object for each flow, up to {FLOWS_SHOWN} of them.",
        lambda of: [build(FLOW, shown) for shown in of[0]],
    ),
    Field("total", "The number of flows.", lambda of: of[1]),
)


def flows(call: Call) -> None:
    """The flows that there are, up to FLOWS_SHOWN of them."""
    now = time.monotonic()
    shown = [(*one, now) for one in itertools.islice(call.world.flows(), FLOWS_SHOWN)]
    total = sum(sum(relay.states.values()) for relay in call.world.snapshot().relays)
    call.answer(build(FLOWS, (shown, max(total, len(shown)))))


AUDIT: tuple[Field[Snapshot], ...] = (
    Field("pid", "The process ID of the host monitor.", lambda now: now.pid),
    Field("lacking", "As in the status.", lambda now: list(now.lacking)),
)


def audit(call: Call) -> None:
    """Where an auditor begins. The monitor can't look at /proc any more, so whoever asks does
    (hardsplice/telemetry/audit.py); what it lacks of lock-down it knows itself.
    """
    call.answer(build(AUDIT, call.world.snapshot()))


def metrics(call: Call) -> None:
    """Everything that is counted, for Prometheus."""
    now = call.world.snapshot()
    text = render(families(now, call.world.ports.list()), {LABEL: now.label})
    call.respond(Response(200, text.encode(), CONTENT_TYPE))
