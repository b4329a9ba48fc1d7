# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics, read by Prometheus' own client."""

from __future__ import annotations

import dataclasses

from prometheus_client.parser import text_string_to_metric_families

from hardsplice.control.http import Request, Response
from hardsplice.control.metrics import LABEL, METRICS, PREFIX
from hardsplice.control.routes import dispatch
from hardsplice.model.direction import Direction
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.telemetry.counters import BY_RELAY, COUNTERS, KEPT, LATENCY_BOUNDS
from tests.unit.control.fake_world import FakeWorld
from tests.unit.control.fake_world import relay as a_relay

NAMES = (*COUNTERS, *KEPT)

Key = tuple[str, tuple[tuple[str, str], ...]]


def read(text: str) -> dict[Key, float]:
    """Every sample by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def fetch(world: FakeWorld) -> Response:
    answers: list[Response] = []
    dispatch(Request("GET", "/metrics", "", b"", True), world, answers.append)
    return answers[0]


def with_udp() -> FakeWorld:
    """With a relay of UDP, its last."""
    world = FakeWorld()
    world.relays.append(a_relay(Direction.INBOUND, protocol=Protocol.UDP))
    return world


def with_a_port() -> FakeWorld:
    """A world of which every family has a sample."""
    world = with_udp()
    forward = Forward(Direction.INBOUND, None, None, 80, None, 80, True)
    world.ports.add(forward, lambda _: None)
    return world


def test_prometheus_reads_every_family_with_its_type_and_help() -> None:
    answer = fetch(with_a_port())
    assert answer.kind.startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.body.decode()))
    types = {family.name.removeprefix("hardsplice_"): family.type for family in families}
    assert types == {one.name.removesuffix("_total"): one.kind for one in METRICS}
    assert {family.documentation for family in families} == {one.help for one in METRICS}


def test_samples_have_the_labels_that_are_declared() -> None:
    found = {
        family.name.removeprefix(PREFIX): {
            label for sample in family.samples for label in sample.labels
        }
        for family in text_string_to_metric_families(fetch(with_a_port()).body.decode())
    }
    declared = {one.name.removesuffix("_total"): {LABEL, *one.labels} for one in METRICS}
    assert found == declared


def test_the_names_of_counters_end_in_total_and_each_metric_is_declared_once() -> None:
    assert all(one.name.endswith("_total") == (one.kind == "counter") for one in METRICS)
    assert len({one.name for one in METRICS}) == len(METRICS)


def test_everything_that_is_counted_is_in_a_metric() -> None:
    world = with_udp()
    before = read(fetch(world).body.decode())
    of_datagrams = {one.name for one in BY_RELAY if one.protocol is Protocol.UDP}
    for name in NAMES:
        at = 3 if name in of_datagrams else 0
        inbound = world.relays[at]
        more = {**inbound.counters, name: inbound.counters[name] + 1}
        world.relays[at] = dataclasses.replace(inbound, counters=more)
        after = read(fetch(world).body.decode())
        assert sum(after.values()) == sum(before.values()) + 1, name
        before = after


def test_every_relay_has_its_own_samples_with_the_right_values() -> None:
    found = read(fetch(FakeWorld()).body.decode())

    def of(name: str, relay: int = 0, **labels: str) -> float:
        of_relay = {"direction": "outbound", "protocol": "tcp", "relay": str(relay)}
        labels = {"namespace": "7", **of_relay, **labels}
        return found["hardsplice_" + name, tuple(sorted(labels.items()))]

    for relay in (0, 1):
        assert of("flows", relay, state="established") == 2
        assert of("bytes_total", relay, to="target") == 100 + COUNTERS.index("bytes_to_target")
        assert of("bytes_total", relay, to="client") == 100 + COUNTERS.index("bytes_to_client")
        for name in ("unlogged", "unpassed"):
            assert of(f"{name}_flows_total", relay) == 100 + NAMES.index(name)
        assert of("resets_total", relay) == 100 + COUNTERS.index("reset")
        assert of("relay_restarts_total", relay) == 100 + NAMES.index("restarts")
        assert of("refused_total", relay) == 100 + COUNTERS.index("refused")
        assert of("pipes", relay, state="used") == 2
        assert of("pipes", relay, state="free") == 3
        assert of("pool_sockets", relay, family="ipv6") == 7
        assert of("connect_seconds_count", relay) == len(LATENCY_BOUNDS)
        assert of("connect_seconds_sum", relay) == 1.5
        assert of("connect_seconds_bucket", relay, le="+Inf") == len(LATENCY_BOUNDS)
        assert of("connect_seconds_bucket", relay, le="0.0001") == 0
    assert found["hardsplice_denied_total", (("namespace", "7"), ("what", "peer"))] == 2


def test_what_only_relays_of_datagrams_count_is_theirs_alone() -> None:
    found = read(fetch(with_udp()).body.decode())
    protocols = {
        dict(labels)["protocol"] for name, labels in found if name == "hardsplice_datagrams_total"
    }
    assert protocols == {"udp"}


def test_every_sample_says_whose_namespace_it_is() -> None:
    """One scrape configuration has many instances."""
    found = read(fetch(FakeWorld()).body.decode())
    assert all(("namespace", "7") in labels for _, labels in found)


def test_head_is_answered_as_get_is() -> None:
    answers: list[Response] = []
    dispatch(Request("HEAD", "/metrics", "", b"", True), FakeWorld(), answers.append)
    assert (answers[0].status, answers[0].kind) == (200, fetch(FakeWorld()).kind)
