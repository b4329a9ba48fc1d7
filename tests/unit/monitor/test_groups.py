# SPDX-License-Identifier: GPL-2.0-or-later
"""All relays of a monitor: one report for all protocols, places that they share, and relays of UDP
that aren't there before they have something to do.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hardsplice.ipc.descriptors import FIRST_LISTENER
from hardsplice.model.protocol import Protocol
from hardsplice.monitor.draft import has_part
from hardsplice.monitor.groups import RelayGroups
from hardsplice.monitor.supervisor import Supervisor
from hardsplice.net.listener import Listener
from hardsplice.sandbox.address_book import USUAL
from tests.unit.monitor.fake_owner import Above, Timers


def plan(protocol: Protocol, *listeners: Listener, late: int = 0, workers: int = 1) -> Any:
    return SimpleNamespace(
        protocol=protocol, listeners=listeners, families=(0, 1), is_dynamic=late > 0, book=USUAL,
        stored=frozenset(), first_flow=FIRST_LISTENER + 2 + late, workers=workers,
    )  # fmt: skip


def listener(place: int) -> Listener:
    return Listener(FIRST_LISTENER + place, (), (), 1 + place)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Protocol]:
    """Of which protocol each relay is that was started."""
    found: list[Protocol] = []
    monkeypatch.setattr(Supervisor, "start", lambda one: found.append(one.plan.protocol))
    return found


def groups(*plans: list[Any]) -> tuple[RelayGroups, Above]:
    above = Above()
    return RelayGroups(plans, cast(Any, Timers()), cast(Any, above)), above


def test_ready_is_said_once_both_groups_are(started: list[Protocol]) -> None:
    both, above = groups([plan(Protocol.TCP, listener(0))], [plan(Protocol.UDP, listener(1))])
    both.start()
    assert started == [Protocol.TCP, Protocol.UDP]
    both.by_protocol[Protocol.UDP].relay_ready()
    assert above.said == []
    both.by_protocol[Protocol.TCP].relay_ready()
    assert above.said == ["ready"]


def test_without_relays_ready_is_said_at_once() -> None:
    none, above = groups([])
    none.start()
    assert above.said == ["ready"]
    assert none.is_drained


def test_a_relay_of_udp_without_a_port_is_started_with_its_first(started: list[Protocol]) -> None:
    both, above = groups([plan(Protocol.TCP, late=4)], [plan(Protocol.UDP, late=4)])
    both.start()
    assert started == [Protocol.TCP]
    both.by_protocol[Protocol.TCP].relay_ready()
    assert above.said == ["ready"], "nobody waits for it"
    (of_udp,) = both.by_protocol[Protocol.UDP].supervisors
    assert of_udp.is_drained
    before: Any = SimpleNamespace(protocol=Protocol.UDP, listeners=())
    before._replace = lambda **new: SimpleNamespace(protocol=Protocol.UDP, **new)
    of_udp.plan = before
    of_udp.add(listener(0))
    assert started == [Protocol.TCP, Protocol.UDP]
    assert of_udp.plan.listeners == (listener(0),)
    assert not of_udp.is_idle


def test_both_groups_take_places_from_the_same_ones() -> None:
    both, _ = groups(
        [plan(Protocol.TCP, listener(0), late=2)], [plan(Protocol.UDP, listener(1), late=2)]
    )
    of_tcp, of_udp = both.by_protocol.values()
    assert of_tcp.places is of_udp.places
    assert list(of_tcp.places) == [FIRST_LISTENER + 2, FIRST_LISTENER + 3]


@pytest.mark.parametrize("number", range(3))
def test_a_port_of_udp_is_one_worker_s_and_one_of_tcp_all_workers(number: int) -> None:
    for protocol in Protocol:
        common = plan(protocol, workers=3)
        mine = [port_id for port_id in range(1, 10) if has_part(common, number, port_id)]
        everyone = [one for one in range(1, 10) if one % 3 == number]
        assert mine == (list(range(1, 10)) if protocol is Protocol.TCP else everyone)


def test_drained_is_said_once_nobody_is_left() -> None:
    """Relays that were never started don't keep it waiting."""
    both, above = groups([plan(Protocol.TCP)], [plan(Protocol.UDP)])
    both.drain()
    assert above.said == ["drained"]
