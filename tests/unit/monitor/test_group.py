# SPDX-License-Identifier: GPL-2.0-or-later
"""The relays of a direction: what one of them says reaches the others, or whoever is above."""

from __future__ import annotations

import fcntl
import os
import socket
from collections import deque
from collections.abc import Iterator
from ipaddress import IPv6Address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hardsplice.ipc.descriptors import FIRST_LISTENER, NULL_FD, is_open
from hardsplice.ipc.messages import Note
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.monitor.group import POLL_SECONDS, RelayGroup
from hardsplice.monitor.supervisor import Supervisor
from hardsplice.net.listener import Listener
from hardsplice.relay.main import PIPES_MIN, SOCKETS_MIN, pool_sizes
from hardsplice.relay.pools import POOL_SIZE as SOCKETS
from hardsplice.relay.tcp.pipes import POOL_SIZE as PIPES
from hardsplice.sandbox.address_book import USUAL
from tests.unit.monitor.fake_owner import Above, Timers


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Supervisor]:
    """The supervisors whose relays were told to look."""
    told: list[Supervisor] = []

    def poll(supervisor: Supervisor) -> None:
        told.append(supervisor)

    monkeypatch.setattr(Supervisor, "poll", poll)
    return told


def group(number: int, *, late: int = 0) -> tuple[RelayGroup, Above, Timers]:
    above, timers = Above(), Timers()
    plan = SimpleNamespace(
        listeners=(), families=(0, 1), is_dynamic=late > 0, book=USUAL, stored=frozenset(),
        protocol=Protocol.TCP,
    )  # fmt: skip
    places = deque(range(FIRST_LISTENER, FIRST_LISTENER + late))
    return (
        RelayGroup([cast(Any, plan)] * number, places, cast(Any, timers), cast(Any, above)),
        above,
        timers,
    )


def test_ready_is_said_once_all_are() -> None:
    three, above, _ = group(3)
    for said in ([], [], ["ready"]):
        three.relay_ready()
        assert above.said == said


def test_they_are_alive_once_each_has_said_so() -> None:
    three, above, _ = group(3)
    for supervisor in three.supervisors:
        supervisor.ping()
    for supervisor, said in zip(three.supervisors, ([], [], ["alive"]), strict=True):
        supervisor.is_pinged = False
        three.relay_alive()
        assert above.said == said


def test_when_one_stops_accepting_all_others_look_once(looked: list[Supervisor]) -> None:
    """However often it says so: otherwise it could keep the others busy."""
    three, _, timers = group(3)
    for _ in range(100):
        three.accept_paused()
    assert looked == []
    ((seconds, look),) = timers.due
    assert seconds == POLL_SECONDS
    look()
    assert looked == three.supervisors
    three.accept_paused()
    assert len(timers.due) == 2


def test_a_relay_by_itself_has_nobody_to_look_in_its_place(looked: list[Supervisor]) -> None:
    one, _, timers = group(1)
    one.accept_paused()
    assert timers.due == looked == []


def test_what_relays_have_to_say_is_passed_on() -> None:
    two, above, _ = group(2)
    two.note(Note.REFUSED, 111, 5, b"text")
    two.relay_lost("why")
    assert above.said == [(two.protocol, Note.REFUSED, 111, 5, b"text"), "why"]


def of_protocol(protocol: Protocol, *served: tuple[int, ...]) -> RelayGroup:
    """A group whose relays have listeners at these places; another one has some at 90 and 91."""
    plans = [
        SimpleNamespace(
            listeners=tuple(SimpleNamespace(fd=fd, port_id=fd) for fd in fds), families=(0, 1),
            is_dynamic=False, book=USUAL, stored=frozenset(), protocol=protocol,
        )
        for fds in served
    ]  # fmt: skip
    above = Above(others=(90, 91))
    return RelayGroup([cast(Any, plan) for plan in plans], deque(), cast(Any, Timers()), above)


def test_a_relay_has_the_listeners_of_its_own_group_alone() -> None:
    tcp = of_protocol(Protocol.TCP, (10, 11), (10, 11))
    for supervisor in tcp.supervisors:
        assert sorted(tcp.foreign_places(supervisor.plan)) == [90, 91]


def test_of_udp_it_has_those_alone_that_it_serves() -> None:
    udp = of_protocol(Protocol.UDP, (10, 12), (11,))
    first, second = (sorted(udp.foreign_places(one.plan)) for one in udp.supervisors)
    assert (first, second) == ([11, 90, 91], [10, 12, 90, 91])


@pytest.fixture
def places() -> Iterator[range]:
    """Where a group puts late listeners, ours to use: what is open there is put aside."""
    late = range(FIRST_LISTENER, FIRST_LISTENER + 2)
    aside = {fd: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in late if is_open(fd)}
    for fd in late:
        null = os.open(os.devnull, os.O_RDWR)
        if null != fd:  # dup3(2) refuses that
            os.dup2(null, fd, inheritable=False)
            os.close(null)
    yield late
    for fd in late:
        if fd in aside:
            os.dup2(aside[fd], fd, inheritable=False)
            os.close(aside[fd])
        else:
            os.close(fd)


def same(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


def told_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Listener]]:
    """What each supervisor is told."""
    told: list[tuple[str, Listener]] = []
    monkeypatch.setattr(Supervisor, "add", lambda _, one: told.append(("add", one)))

    def remove(_: Supervisor, one: Listener, *, reset_flows: bool, let_go: object) -> None:
        assert let_go is None
        told.append(("reset" if reset_flows else "remove", one))

    monkeypatch.setattr(Supervisor, "remove", remove)
    return told


FORWARD = Forward(Direction.INBOUND, None, None, 80, None, 80, True)


def test_a_listener_gets_a_place_and_goes_to_every_supervisor(
    places: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = told_of(monkeypatch)
    two, _, _ = group(2, late=len(places))
    with socket.create_server(("127.0.0.1", 0)) as server:
        two.add(FORWARD._replace(id=5), server.fileno(), {0: 7, 1: 8})
        (listener,) = two.listeners.values()
        assert (listener.fd, listener.port_id) == (places[0], 5)
        assert [one.slot for one in listener.route_ipv6] == [8, 7]
        assert same(listener.fd, server.fileno())
        assert not os.get_inheritable(listener.fd)
        two.remove(5, reset_flows=True, done=lambda: None)
        assert same(places[0], NULL_FD)
    assert told == [("add", listener)] * 2 + [("reset", listener)] * 2
    assert two.listeners == {}


def test_a_place_is_used_again_as_late_as_possible_and_there_are_no_more(
    places: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_of(monkeypatch)
    one, _, _ = group(1, late=len(places))
    with socket.create_server(("127.0.0.1", 0)) as server:
        for index in range(2):
            one.add(FORWARD._replace(id=index), server.fileno(), {0: 0})
        with pytest.raises(HardspliceError, match="no place left"):
            one.add(FORWARD._replace(id=2), server.fileno(), {0: 0})
        one.remove(1, reset_flows=False, done=lambda: None)
        one.remove(0, reset_flows=False, done=lambda: None)
        one.add(FORWARD._replace(id=3), server.fileno(), {0: 0})
        assert one.listeners[3].fd == places[1]
        one.remove(3, reset_flows=False, done=lambda: None)


def test_a_listener_that_can_not_be_served_takes_no_place(
    places: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose target is of a family that the namespace lacks."""
    told = told_of(monkeypatch)
    one, _, _ = group(1, late=len(places))
    assert one.routing is not None
    one.routing.families = (0,)
    far = Forward(Direction.INBOUND, None, None, 80, IPv6Address("::1"), 80, True)
    with pytest.raises(HardspliceError, match="there is no IPv6"):
        one.add(far._replace(id=1), 0, {1: 0})
    assert (told, list(one.places), one.listeners) == ([], list(places), {})


# --- what they share ---


def test_one_relay_has_the_whole_pools() -> None:
    assert pool_sizes(10_000, 8, 1) == (SOCKETS, PIPES)


@pytest.mark.parametrize("workers", [2, 4, 16, 64])
def test_many_relays_share_them_down_to_what_is_of_use(workers: int) -> None:
    sockets, pipes = pool_sizes(10_000, 8, workers)
    assert sockets == max(SOCKETS // workers, SOCKETS_MIN)
    assert pipes == max(PIPES // workers, PIPES_MIN)


def test_few_descriptors_make_small_pools_whatever_the_number_of_relays() -> None:
    """Descriptors are counted for each process by itself."""
    for workers in (1, 2):
        assert max(pool_sizes(64, 8, workers)) == 4
