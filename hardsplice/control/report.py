# SPDX-License-Identifier: GPL-2.0-or-later
"""What hardsplice tells of itself: its state, its flows, where an audit begins, its metrics."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from hardsplice.control.http import Response
from hardsplice.control.prometheus import CONTENT_TYPE, Family, Sample, histogram, render
from hardsplice.control.world import Call, RelayView, Snapshot
from hardsplice.model.direction import DIRECTIONS, Direction
from hardsplice.monitor.registry import Port
from hardsplice.telemetry.counters import LATENCY_BOUNDS
from hardsplice.telemetry.flow_table import FlowRow, in_words

FLOWS_SHOWN = 1000  # in one answer


def status(call: Call) -> None:
    """How it is: for people and scripts that ask now and then."""
    now = call.world.snapshot()
    present = call.world.ports.list()
    call.answer(
        {
            "version": now.version,
            "pid": now.pid,
            "uptimeSeconds": round(now.uptime, 3),
            "namespace": now.served,
            "lacking": list(now.lacking),
            "denied": denied(now),
            "directions": {
                direction: _direction(now, direction, present) for direction in DIRECTIONS
            },
        }
    )


def _direction(now: Snapshot, direction: Direction, present: Sequence[Port]) -> dict[str, object]:
    relays = [relay for relay in now.relays if relay.direction == direction]
    return {
        "ports": sum(port.direction == direction for port in present),
        "relays": len(relays),
        "flows": _sum(relay.states for relay in relays),
        "counters": _sum(relay.counters for relay in relays),
        "gauges": _sum(relay.gauges for relay in relays),
    }


def denied(now: Snapshot) -> dict[str, int]:
    """Attempts at what is not allowed: calls and records of relays, peers of the control socket."""
    counters = _sum(relay.counters for relay in now.relays)
    return {
        "call": counters.get("denied_calls", 0),
        "record": counters.get("denied_records", 0),
        "peer": now.refused,
    }


def _sum(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for table in tables:
        for name, value in table.items():
            total[name] = total.get(name, 0) + value
    return total


def flows(call: Call) -> None:
    """The flows that there are, up to FLOWS_SHOWN of them."""
    now = time.monotonic()
    shown = list(itertools.islice(call.world.flows(), FLOWS_SHOWN))
    total = sum(sum(relay.states.values()) for relay in call.world.snapshot().relays)
    call.answer(
        {
            "flows": [_flow(direction, row, now) for direction, row in shown],
            "total": max(total, len(shown)),
        }
    )


def _flow(direction: str, row: FlowRow, now: float) -> dict[str, object]:
    return {
        "direction": direction,
        "port": row.listener,
        "state": row.state.name.lower(),
        "client": in_words(row.client),
        "target": in_words(row.target),
        "seconds": round(max(0.0, now - row.started), 3),
        "bytesToTarget": row.bytes_to_target,
        "bytesToClient": row.bytes_to_client,
    }


def audit(call: Call) -> None:
    """Where an auditor begins. The monitor can't look at /proc any more, so whoever asks does
    (hardsplice/telemetry/audit.py); what it lacks of lock-down it knows itself.
    """
    now = call.world.snapshot()
    call.answer({"pid": now.pid, "lacking": list(now.lacking)})


def metrics(call: Call) -> None:
    """Everything that is counted, for Prometheus."""
    now = call.world.snapshot()
    text = render(families(now, call.world.ports.list()), {"namespace": now.label})
    call.respond(Response(200, text.encode(), CONTENT_TYPE))


# What is counted once for each relay: the counter's name, the metric's, its help.
_COUNTERS = (
    ("accepted", "accepted_total", "Connections taken from a listener."),
    ("connected", "connected_total", "Connections whose target was reached."),
    ("closed", "closed_total", "Flows that ended with FIN both ways."),
    ("reset", "resets_total", "Flows that ended by a reset of either side, passed on."),
    ("refused", "refused_total", "Flows whose target refused."),
    ("timed_out", "timed_out_total", "Flows whose target did not answer in time."),
    ("errors", "errors_total", "Flows ended by an error of hardsplice's own."),
    ("urgent", "urgent_bytes_total", "Urgent bytes passed on."),
    ("blocked", "blocked_total", "Times that a receiver took less than was read."),
    ("starved", "starved_total", "Times that a flow waited for a pipe."),
    ("paused", "accept_pauses_total", "Times that accepting was suspended."),
    ("restarts", "relay_restarts_total", "Relays that died and were started again."),
    ("stopped", "stopped_flows_total", "Flows that were reset because hardsplice ended."),
    ("drained", "drained_flows_total", "Flows that came to their end while it waited for that."),
    ("idle", "idle_flows_total", "Flows that were reset since nothing had moved for too long."),
    ("jammed", "jammed_flows_total", "Half-closed flows that were reset for want of descriptors."),
    ("unlisted", "unlisted_flows_total", "Flows for which the flow table had no row."),
)
_BYTES = (("bytes_to_target", "target"), ("bytes_to_client", "client"))


def families(now: Snapshot, present: Sequence[Port]) -> list[Family]:
    """All metrics."""
    info = Sample({"version": now.version}, 1)
    ports_now = [
        Sample({"direction": direction, "source": source}, number)
        for (direction, source), number in _count(present).items()
    ]
    return [
        Family("hardsplice_info", "gauge", "What runs.", [info]),
        Family("hardsplice_uptime_seconds", "gauge", "How long.", [Sample({}, now.uptime)]),
        Family("hardsplice_ports", "gauge", "Ports that are forwarded.", ports_now),
        Family(
            "hardsplice_denied_total",
            "counter",
            "Attempts at what is not allowed: a system call, a record, a peer of this socket.",
            [Sample({"what": what}, count) for what, count in denied(now).items()],
        ),
        Family(
            "hardsplice_control_connections",
            "gauge",
            "Connections to the control socket.",
            [Sample({}, now.connections)],
        ),
        *_relay_families(now.relays),
    ]


def _count(present: Sequence[Port]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for port in present:
        key = port.direction, port.source.value
        counts[key] = counts.get(key, 0) + 1
    return counts


def _relay_families(relays: Sequence[RelayView]) -> list[Family]:
    def each(label: str, value: Callable[[RelayView], Mapping[str, int]]) -> list[Sample]:
        return [
            Sample({**_labels(relay), label: name}, number)
            for relay in relays
            for name, number in value(relay).items()
        ]

    def gauge(name: str) -> list[Sample]:
        return [Sample(_labels(relay), relay.gauges[name]) for relay in relays]

    latencies = [
        sample
        for relay in relays
        for sample in histogram(
            _labels(relay), LATENCY_BOUNDS, relay.latency.counts, relay.latency.seconds
        )
    ]
    return [
        Family(
            "hardsplice_flows",
            "gauge",
            "Flows by what they are doing.",
            each("state", lambda relay: relay.states),
        ),
        Family(
            "hardsplice_bytes_total",
            "counter",
            "Bytes moved, by where they went.",
            each("to", lambda relay: {to: relay.counters[name] for name, to in _BYTES}),
        ),
        *(
            Family(
                f"hardsplice_{name}",
                "counter",
                text,
                [Sample(_labels(relay), relay.counters[key]) for relay in relays],
            )
            for key, name, text in _COUNTERS
        ),
        Family(
            "hardsplice_pipes",
            "gauge",
            "Pipes: lent to a flow that waits, or free.",
            each("state", _pipes),
        ),
        Family(
            "hardsplice_pool_sockets",
            "gauge",
            "Sockets that are ready to be connected, by family.",
            each("family", _sockets),
        ),
        Family("hardsplice_descriptors", "gauge", "Descriptors in use.", gauge("descriptors")),
        Family(
            "hardsplice_descriptors_limit",
            "gauge",
            "Descriptors that there may be.",
            gauge("descriptors_limit"),
        ),
        Family(
            "hardsplice_connect_seconds",
            "histogram",
            "From a client's connection to its target's.",
            latencies,
        ),
    ]


def _labels(relay: RelayView) -> dict[str, str]:
    return {"direction": relay.direction, "relay": str(relay.number)}


def _pipes(relay: RelayView) -> dict[str, int]:
    free = relay.gauges["pipes_free"]
    return {"used": relay.gauges["pipes_open"] - free, "free": free}


def _sockets(relay: RelayView) -> dict[str, int]:
    return {"ipv4": relay.gauges["sockets_ipv4"], "ipv6": relay.gauges["sockets_ipv6"]}
