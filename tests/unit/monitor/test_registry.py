# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry of ports: what may be asked for, and who is told what."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward, Source
from hardsplice.model.protocol import Protocol
from hardsplice.monitor import loops
from hardsplice.monitor.registry import ConflictError, Registry

BOTH: frozenset[Direction] = frozenset((Direction.INBOUND, Direction.OUTBOUND))


def forward(port: int, address: str | None = None, *, interface: str | None = None) -> Forward:
    return Forward(
        Direction.INBOUND, ip_address(address) if address else None, interface, port, None, 80, True
    )


def numbered(
    number: int, direction: Direction, forward: Forward, source: Source = Source.OPTION
) -> Forward:
    """The same as a port that has a number."""
    return forward._replace(id=number, direction=direction, source=source)


FREE = 40_000  # the port that this worker finds where any will do


@dataclass
class Worker:
    """Writes down what it is to do; `answer` makes it done."""

    asked: list[tuple[object, ...]] = field(default_factory=list)
    pending: list[Callable[..., None]] = field(default_factory=list)

    def add(
        self,
        forward: Forward,
        done: Callable[[HardspliceError | Forward], None],
        opened: Callable[[], int] | None = None,
    ) -> None:
        del opened
        self.asked.append(("add", forward.id, forward.direction, forward.port))
        found = forward if forward.port else forward._replace(port=FREE)
        self.pending.append(lambda failure: done(failure or found))

    def remove(
        self, forward: Forward, *, reset_flows: bool, done: Callable[[HardspliceError | None], None]
    ) -> None:
        self.asked.append(("remove", forward.id, forward.direction, reset_flows))
        self.pending.append(done)

    def answer(self, *outcome: HardspliceError | None) -> None:
        self.pending.pop(0)(*outcome)


class Stand:
    """A registry, its worker, and what was answered."""

    def __init__(
        self, ports: list[Forward] | None = None, directions: frozenset[Direction] = BOTH
    ) -> None:
        self.worker = Worker()
        self.room = 100
        first_free = 1 + max((port.id for port in ports or []), default=0)
        self.ports = Registry(
            ports or [],
            first_free,
            frozenset(itertools.product(directions, Protocol)),
            self.worker,
            self.check_room,
            loops.check,
        )
        self.told: list[object] = []

    def check_room(self, listening: int) -> None:
        if listening > self.room:
            raise HardspliceError("run", "a relay", "descriptors are too few")

    def add(
        self, port: int, direction: Direction = Direction.INBOUND, address: str | None = None
    ) -> None:
        asked = forward(port, address)._replace(direction=direction, source=Source.CONTROL)
        self.ports.add(asked, self.told.append)

    def remove(self, port_id: int, *, reset: bool = False) -> None:
        self.ports.remove(port_id, reset_flows=reset, done=self.told.append)

    def reason(self) -> str:
        """Of the last answer, which is a HardspliceError."""
        failure = self.told[-1]
        assert isinstance(failure, HardspliceError)
        return failure.reason


def test_a_port_is_listed_once_it_is_listened_on() -> None:
    stand = Stand()
    stand.add(8080)
    assert stand.told == list(stand.ports.list()) == []
    stand.worker.answer(None)
    port = numbered(1, Direction.INBOUND, forward(8080), Source.CONTROL)
    assert stand.told == list(stand.ports.list()) == [port]
    assert stand.ports.find(1) == port


def test_one_that_can_not_be_listened_on_is_not_and_may_be_asked_for_again() -> None:
    stand = Stand()
    failure = HardspliceError("listen on", "port 8080", "Address already in use")
    for number in (1, 2):
        stand.add(8080)
        stand.worker.answer(failure)
        assert stand.told == [failure] * number
    assert list(stand.ports.list()) == []


def test_the_same_port_again_is_a_conflict_even_before_it_is_listened_on() -> None:
    stand = Stand()
    stand.add(8080)
    stand.add(8080)
    assert isinstance(stand.told[0], ConflictError)
    assert stand.told[0].conflict == 1
    assert "id 1" in stand.reason()
    stand.worker.answer(None)
    stand.add(8080)
    assert isinstance(stand.told[-1], ConflictError)


def test_another_direction_address_or_interface_is_another_port() -> None:
    stand = Stand()
    stand.add(8080)
    stand.add(8080, Direction.OUTBOUND)
    stand.add(8080, address="127.0.0.1")
    stand.ports.add(forward(8080, interface="lo"), stand.told.append)
    assert stand.told == []
    assert [row[1] for row in stand.worker.asked] == [1, 2, 3, 4]


def test_ports_of_options_are_there_from_the_start_and_numbers_go_on_after_them() -> None:
    first = numbered(3, Direction.OUTBOUND, forward(80), Source.OPTION)
    stand = Stand([first])
    assert list(stand.ports.list()) == [first]
    stand.add(80, Direction.OUTBOUND)
    assert isinstance(stand.told[0], ConflictError)
    stand.add(81, Direction.OUTBOUND)
    stand.worker.answer(None)
    assert [port.id for port in stand.ports.list()] == [3, 4]


def test_a_number_is_never_used_again() -> None:
    stand = Stand()
    seen = []
    for _ in range(5):
        stand.add(8080)
        stand.worker.answer(None)
        (port,) = stand.ports.list()
        seen.append(port.id)
        stand.remove(port.id)
        stand.worker.answer(None)
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("reset", [True, False])
def test_removing_is_told_once_it_is_done_and_hides_the_port_at_once(reset: bool) -> None:
    stand = Stand([numbered(1, Direction.INBOUND, forward(80), Source.OPTION)])
    stand.remove(1, reset=reset)
    assert list(stand.ports.list()) == stand.told == []
    assert stand.worker.asked == [("remove", 1, "inbound", reset)]
    stand.remove(1)
    assert "no port with that id" in stand.reason()
    stand.told.clear()
    stand.worker.answer(None)
    assert stand.told == [None]


def test_a_port_that_is_being_removed_may_be_asked_for_again() -> None:
    stand = Stand([numbered(1, Direction.INBOUND, forward(80), Source.OPTION)])
    stand.remove(1)
    stand.add(80)
    assert stand.worker.asked[1:] == [("add", 2, "inbound", 80)]


@pytest.mark.parametrize("asked_again", [True, False])
def test_a_port_that_can_not_be_removed_is_there_as_before(asked_again: bool) -> None:
    there = numbered(1, Direction.INBOUND, forward(80), Source.OPTION)
    stand = Stand([there])
    removed: list[int] = []
    stand.ports.on_removed = removed.append
    failure = HardspliceError("remove", "port 1", "the namespace monitor does not answer")
    stand.remove(1)
    if asked_again:
        stand.add(80)
    stand.worker.answer(failure)
    if asked_again:
        stand.worker.answer(HardspliceError("listen on", "port 80", "Address already in use"))
    assert stand.told[0] is failure
    assert (list(stand.ports.list()), stand.ports.find(1), removed) == ([there], there, [])
    stand.add(80)
    assert isinstance(stand.told[-1], ConflictError)
    stand.room = 1
    stand.add(81)
    assert stand.reason() == "descriptors are too few"
    stand.remove(1)
    stand.worker.answer(None)
    assert stand.told[-1:] == [None]
    assert (list(stand.ports.list()), removed) == ([], [1])


def test_directions_that_were_not_to_change_do_not() -> None:
    ports = [numbered(1, Direction.OUTBOUND, forward(80), Source.OPTION)]
    stand = Stand(ports, frozenset((Direction.INBOUND,)))
    stand.add(81, Direction.OUTBOUND)
    assert "were not to change" in stand.reason()
    stand.remove(1)
    assert "were not to change" in stand.reason()
    assert stand.worker.asked == []
    assert list(stand.ports.list()) == ports


def test_there_are_no_more_ports_a_direction_than_relays_have_descriptors_for() -> None:
    stand = Stand()
    stand.room = 2
    for port in (1, 2, 3):
        stand.add(port)
    assert stand.reason() == "descriptors are too few"
    assert len(stand.worker.asked) == 2
    stand.add(3, Direction.OUTBOUND)
    stand.worker.answer(HardspliceError("listen on", "port 1", "no"))
    stand.add(3)
    assert len(stand.worker.asked) == 4


def test_one_number_is_a_port_of_each_protocol() -> None:
    stand = Stand()
    both = [forward(53)._replace(protocol=protocol) for protocol in Protocol]
    for number, one in enumerate((*both, *both), 1):
        stand.ports.add(one, stand.told.append)
        if number <= len(both):
            stand.worker.answer(None)
    assert [port._replace(id=0) for port in stand.ports.list()] == both
    assert [type(told) for told in stand.told] == [Forward, Forward, ConflictError, ConflictError]
    conflicts = [told.conflict for told in stand.told if isinstance(told, ConflictError)]
    assert conflicts == [1, 2], "each is in the way of its own"
    stand.remove(1)
    stand.worker.answer(None)
    stand.ports.add(both[0], stand.told.append)
    stand.worker.answer(None)
    assert {port.protocol for port in stand.ports.list()} == {*Protocol}
