# SPDX-License-Identifier: GPL-2.0-or-later
"""The relays of a direction: what one of them says reaches the others, or whoever is above."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hardsplice.channel import Note
from hardsplice.crew import LOOK_SECONDS, Crew
from hardsplice.keeper import Keeper
from hardsplice.relay.engine import Listener
from hardsplice.relay.main import PIPES_MIN, SOCKETS_MIN, pool_sizes
from hardsplice.relay.pipes import POOL_SIZE as PIPES
from hardsplice.relay.sockets import POOL_SIZE as SOCKETS
from tests.support.fake_upward import Above, Timers


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Keeper]:
    """The keepers whose relays were told to look."""
    told: list[Keeper] = []

    def look(keeper: Keeper) -> None:
        told.append(keeper)

    monkeypatch.setattr(Keeper, "look", look)
    return told


def crew(number: int) -> tuple[Crew, Above, Timers]:
    above, timers = Above(), Timers()
    plans = [cast(Any, SimpleNamespace(listeners=(), families=(0, 1)))] * number
    return Crew(plans, cast(Any, timers), above), above, timers


def test_ready_is_said_once_all_are() -> None:
    three, above, _ = crew(3)
    for said in ([], [], ["ready"]):
        three.relay_ready()
        assert above.said == said


def test_they_are_alive_once_each_has_said_so() -> None:
    three, above, _ = crew(3)
    three.ask_alive()
    for keeper, said in zip(three.keepers, ([], [], ["alive"]), strict=True):
        keeper.is_asked = False
        three.relay_alive()
        assert above.said == said


def test_when_one_stops_accepting_all_others_look_once(looked: list[Keeper]) -> None:
    """However often it says so: otherwise it could keep the others busy."""
    three, _, timers = crew(3)
    for _ in range(100):
        three.relay_yields()
    assert looked == []
    ((seconds, look),) = timers.due
    assert seconds == LOOK_SECONDS
    look()
    assert looked == three.keepers
    three.relay_yields()
    assert len(timers.due) == 2


def test_a_relay_by_itself_has_nobody_to_look_in_its_place(looked: list[Keeper]) -> None:
    one, _, timers = crew(1)
    one.relay_yields()
    assert timers.due == looked == []


def test_what_relays_have_to_say_is_passed_on() -> None:
    two, above, _ = crew(2)
    two.note(Note.REFUSED, 111, 5, b"text")
    two.relay_lost("why")
    assert above.said == [(Note.REFUSED, 111, 5, b"text"), "why"]


def test_a_listener_goes_to_every_keeper_and_ends_at_once_when_it_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever relays do with theirs: one that is busy has it open for a while."""
    told: list[tuple[str, int]] = []
    monkeypatch.setattr(Keeper, "add", lambda _, one: told.append(("add", one.index)))

    def remove(_: Keeper, index: int, *, reset_flows: bool) -> None:
        told.append(("reset" if reset_flows else "remove", index))

    monkeypatch.setattr(Keeper, "remove", remove)
    two, _, _ = crew(2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        fd = os.dup(server.fileno())
        two.add(Listener(fd, (), (), 5))
        assert set(two.listeners) == {5}
        socket.create_connection(address, timeout=5).close()
        two.remove(5, reset_flows=True)
        two.remove(5, reset_flows=True)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
    assert told == [("add", 5)] * 2 + [("reset", 5)] * 2
    assert two.listeners == {}


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
