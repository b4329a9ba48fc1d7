# SPDX-License-Identifier: GPL-2.0-or-later
"""Every metric, declared once: its name, its kind, its help, its labels, and where its value comes
from. What a relay counts is declared in telemetry/counters.py, and is a metric by that.

hardsplicectl(1) lists them; that list is made from this table (tools/generate.py). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hardsplice.control.prometheus import Family, Kind, Sample, histogram
from hardsplice.control.world import RelayView, Snapshot
from hardsplice.model.forward import Forward, Source
from hardsplice.telemetry.counters import BY_MONITOR, BY_RELAY, LATENCY_BOUNDS, Counter
from hardsplice.telemetry.flow_table import State

PREFIX = "hardsplice_"
LABEL = "namespace"  # that every metric has: whose it is, as short as the options name it
# The labels that a relay's metrics have, and what their values are.
Samples = Sequence[Sample]
EACH_RELAY = {
    "direction": "inbound or outbound",
    "protocol": "tcp or udp",
    "relay": "its number among those of the direction and the protocol, from 0",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of samples."""

    name: str  # without PREFIX; that of a counter ends in _total
    kind: Kind
    help: str
    labels: Mapping[str, str]  # and what their values are; of each relay or not
    samples: Callable[[Snapshot, Sequence[Forward]], list[Sample]]

    def family(self, now: Snapshot, present: Sequence[Forward]) -> Family:
        """It, as it is at this moment."""
        return Family(PREFIX + self.name, self.kind, self.help, self.samples(now, present))


def families(now: Snapshot, present: Sequence[Forward]) -> list[Family]:
    """All metrics, at one moment."""
    return [metric.family(now, present) for metric in METRICS]


def denied(now: Snapshot) -> dict[str, int]:
    """Attempts at what is not allowed: calls and records of relays, peers of the control socket."""
    return {
        "call": sum(relay.counters.get("denied_calls", 0) for relay in now.relays),
        "record": sum(relay.counters.get("denied_records", 0) for relay in now.relays),
        "peer": now.denied_peers,
    }


def _denied(now: Snapshot, _: Sequence[Forward]) -> list[Sample]:
    return [Sample({"what": what}, count) for what, count in denied(now).items()]


def _ports(_: Snapshot, present: Sequence[Forward]) -> list[Sample]:
    counts: dict[tuple[str, str, str], int] = {}
    for port in present:
        key = port.direction, port.protocol, port.source.value
        counts[key] = counts.get(key, 0) + 1
    return [
        Sample({"direction": direction, "protocol": protocol, "source": source}, number)
        for (direction, protocol, source), number in counts.items()
    ]


def _relays(
    name: str, kind: Kind, help_: str, labels: Mapping[str, str], of: Callable[[RelayView], Samples]
) -> Metric:
    """A metric of each relay: ``of`` gives its samples without the relay's labels."""

    def samples(now: Snapshot, _: Sequence[Forward]) -> list[Sample]:
        return [
            Sample(
                {
                    "direction": relay.direction,
                    "protocol": relay.protocol,
                    "relay": str(relay.number),
                    **one.labels,
                },
                one.value,
                one.suffix,
            )
            for relay in now.relays
            if relay.is_started
            for one in of(relay)
        ]

    return Metric(name, kind, help_, {**EACH_RELAY, **labels}, samples)


def _gauge(name: str) -> Callable[[RelayView], Samples]:
    return lambda relay: [Sample({}, relay.gauges[name])]


def _states(relay: RelayView) -> Samples:
    return [Sample({"state": state}, number) for state, number in relay.states.items()]


def _pipes(relay: RelayView) -> Samples:
    free = relay.gauges["pipes_free"]
    used = relay.gauges["pipes_open"] - free
    return [Sample({"state": "used"}, used), Sample({"state": "free"}, free)]


def _sockets(relay: RelayView) -> Samples:
    return [
        Sample({"family": family}, relay.gauges[f"sockets_{family}"]) for family in ("ipv4", "ipv6")
    ]


def _latency(relay: RelayView) -> Samples:
    return histogram({}, LATENCY_BOUNDS, relay.latency.counts, relay.latency.seconds)


def _counted() -> Iterator[Metric]:
    """A metric for each counter, or for several that differ in a label."""
    by_metric: dict[str, list[Counter]] = {}
    for counter in (*BY_RELAY, *BY_MONITOR):
        if counter.metric is not None:
            by_metric.setdefault(counter.metric, []).append(counter)
    for name, counters in by_metric.items():
        values: dict[str, list[str]] = {}
        for one in counters:
            for label, value in one.labels.items():
                values.setdefault(label, []).append(value)
        labels = {label: " or ".join(some) for label, some in values.items()}
        yield _relays(name, "counter", counters[0].help, labels, _words(counters))


def _words(counters: Sequence[Counter]) -> Callable[[RelayView], Samples]:
    return lambda relay: [
        Sample(one.labels, relay.counters[one.name])
        for one in counters
        if one.protocol in (None, relay.protocol)
    ]


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


METRICS: tuple[Metric, ...] = (
    Metric(
        "info",
        "gauge",
        "The running version: always 1.",
        {"version": "hardsplice's"},
        lambda now, _: [Sample({"version": now.version}, 1)],
    ),
    Metric(
        "uptime_seconds",
        "gauge",
        "Seconds since hardsplice was started.",
        {},
        lambda now, _: [Sample({}, now.uptime)],
    ),
    Metric(
        "ports",
        "gauge",
        "Forwarded ports.",
        {
            "direction": EACH_RELAY["direction"],
            "protocol": EACH_RELAY["protocol"],
            "source": f"who added it: {_either([one.value for one in Source])}",
        },
        _ports,
    ),
    Metric(
        "denied_total",
        "counter",
        "Forbidden attempts of relays and of clients of the control socket.",
        {"what": "call, record or peer"},
        _denied,
    ),
    Metric(
        "control_connections",
        "gauge",
        "Connections to the control socket.",
        {},
        lambda now, _: [Sample({}, now.connections)],
    ),
    _relays(
        "flows",
        "gauge",
        "Flows by state.",
        {"state": _either([one.name.lower() for one in State if one is not State.FREE])},
        _states,
    ),
    *_counted(),
    _relays(
        "pipes",
        "gauge",
        "Pipes: used by a flow that is blocked, or free.",
        {"state": "used or free"},
        _pipes,
    ),
    _relays(
        "pool_sockets",
        "gauge",
        "Sockets that are ready to be connected, by family.",
        {"family": "ipv4 or ipv6"},
        _sockets,
    ),
    _relays("descriptors", "gauge", "Descriptors in use or reserved.", {}, _gauge("descriptors")),
    _relays(
        "descriptors_limit",
        "gauge",
        "The limit of descriptors.",
        {},
        _gauge("descriptors_limit"),
    ),
    _relays(
        "connect_seconds",
        "histogram",
        "Seconds from accepting a client to being connected to its target.",
        {"le": "the upper bound of a bucket"},
        _latency,
    ),
)
