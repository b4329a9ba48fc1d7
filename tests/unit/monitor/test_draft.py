# SPDX-License-Identifier: GPL-2.0-or-later
"""What relays are told depends on the families of the namespace in which they connect."""

from __future__ import annotations

from ipaddress import IPv6Address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hardsplice.model.direction import Direction
from hardsplice.model.families import ALL_FAMILIES, IPV4, IPV6
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.monitor.draft import Draft
from hardsplice.net.listeners import Bound
from hardsplice.relay.main import Plan
from hardsplice.sandbox.address_book import USUAL
from hardsplice.telemetry.counters import Stats

BOOK = cast(Any, SimpleNamespace(area=USUAL, slot=lambda _sockaddr: 0))
ANYWHERE = Forward(Direction.INBOUND, None, None, 8080, None, 80, True, id=7)
IPV6_ONLY = Forward(Direction.INBOUND, None, None, 8081, IPv6Address("::1"), 80, True, id=8)


def draft(*forwards: Forward, workers: int = 1, is_dynamic: bool = False) -> Draft:
    stats = [Stats(0) for _ in range(workers)]
    common = Plan(
        direction=Direction.INBOUND,
        protocol=Protocol.TCP,
        datagrams=None,
        workers=workers,
        listeners=(),
        families=(),
        pipe_size=4096,
        first_flow=64,
        filter=b"",
        is_dynamic=is_dynamic,
        stored=frozenset(),
        book=USUAL,
        stats=stats[0],
        idle_seconds=0,
        trace=False,
        log_flows=False,
        has_ruleset=False,
        strict=False,
    )
    return Draft(common, [Bound(one, 10 + n) for n, one in enumerate(forwards)], BOOK, stats)


def test_without_ports_there_is_no_relay_unless_some_may_come() -> None:
    assert draft().plans(ALL_FAMILIES) == ()
    (plan,) = draft(is_dynamic=True).plans((IPV4,))
    assert (plan.listeners, plan.families) == ((), (IPV4,))


def test_relays_differ_in_their_counters_only() -> None:
    made = draft(ANYWHERE, IPV6_ONLY, workers=2)
    plans = made.plans(ALL_FAMILIES)
    assert [plan.stats for plan in plans] == made.stats
    assert plans[0]._replace(stats=plans[1].stats) == plans[1]
    assert [(one.fd, one.port_id) for one in plans[0].listeners] == [(10, 7), (11, 8)]


@pytest.mark.parametrize("families", [(IPV4,), (IPV6,), (IPV4, IPV6)])
def test_sockets_are_asked_for_of_the_families_of_targets(families: tuple[int, ...]) -> None:
    """Without an address the target is where the namespace has one; else it is as it was named."""
    (plan,) = draft(ANYWHERE).plans(families)
    assert plan.families == families
    assert {one.family for one in plan.listeners[0].route_ipv4} == {*families}
    (plan,) = draft(IPV6_ONLY).plans(families)
    assert plan.families == (IPV6,)
