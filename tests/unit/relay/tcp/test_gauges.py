# SPDX-License-Identifier: GPL-2.0-or-later
"""What a relay uses, as it tells its monitors in shared memory."""

from __future__ import annotations

from hardsplice.telemetry.counters import GAUGES, Stats
from tests.unit.relay.fake_relay import Relay


def test_without_a_relay_they_are_nothing() -> None:
    assert Stats(8).in_use() == dict.fromkeys(GAUGES, 0)


def test_they_follow_flows_and_pools() -> None:
    relay = Relay(rows=8)
    relay.settle()
    idle = relay.stats.in_use()
    assert idle["descriptors_limit"] == relay.kernel.limit
    for family, name in enumerate(("sockets_ipv4", "sockets_ipv6")):
        assert idle[name] == len(relay.pools[family].ready) > 0
    assert idle["pipes_open"] == relay.pipes.open
    assert idle["pipes_free"] == len(relay.pipes.spare)
    pairs = [relay.connect() for _ in range(3)]
    busy = relay.stats.in_use()
    taken = sum(idle[name] - busy[name] for name in ("sockets_ipv4", "sockets_ipv6"))
    pools = sum(pool.requested for pool in relay.pools)
    assert busy["descriptors"] == idle["descriptors"] + 3 * 2 - taken + pools
    for pair in pairs:
        for peer in pair:
            peer.finish()
    relay.settle()
    assert relay.stats.in_use()["pipes_open"] == relay.pipes.open


def test_a_relay_whose_flows_nobody_looks_at_tells_nothing() -> None:
    relay = Relay()
    relay.connect()
    assert relay.stats.in_use() == dict.fromkeys(GAUGES, 0)
