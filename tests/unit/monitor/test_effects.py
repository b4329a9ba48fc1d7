# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host monitor alone does: it writes targets down, as often as there are ports for them,
and keeps listeners so that it can end them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any, cast

import pytest

from hardsplice.ipc.channel import close_all
from hardsplice.kernel import pinned, socketcalls
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.families import ALL_FAMILIES
from hardsplice.model.forward import Forward
from hardsplice.monitor.effects import CHECK_SECONDS, CHECKED_AT_ONCE, Effects
from hardsplice.net import listeners
from hardsplice.net.listeners import namespace_here, targets
from hardsplice.net.retiring import Sink
from hardsplice.sandbox.address_book import USUAL, Book
from tests.unit.monitor.fake_owner import Timers

pytestmark = pytest.mark.usefixtures("nothing_left_open")

directions = pytest.mark.parametrize("direction", Direction)


def forward(target: str | None = None, target_port: int = 80, port: int = 0) -> Forward:
    where = ip_address(target) if target else None
    return Forward(Direction.INBOUND, ip_address("127.0.0.1"), None, port, where, target_port, True)


def numbered(number: int, forward: Forward, direction: Direction = Direction.INBOUND) -> Forward:
    return forward._replace(id=number, direction=direction)


NOWHERE = pinned.NOWHERE[socket.AF_INET]


def here() -> bytes:
    """Where this process would listen next."""
    written = pinned.values.written
    assert written is not None
    return ctypes.string_at(written.ipv4, len(NOWHERE))


class Stand:
    """Effects, its books, and what was written down and kept at the start."""

    def __init__(self, first: Forward) -> None:
        sockaddrs = list(targets(first, ALL_FAMILIES).values())
        self.books = {one: Book(USUAL, sockaddrs, 4, is_written=True) for one in Direction}
        ports = [numbered(index, first, one) for index, one in enumerate(Direction, 1)]
        self.listener = socket.create_server(("127.0.0.1", 0))
        kept = {1: os.dup(self.listener.fileno())}
        self.effects = Effects(
            self.books, dict.fromkeys(Direction, ALL_FAMILIES), ports, kept, namespace_here(),
            Sink(0, {}),
        )  # fmt: skip

    def uses(self, direction: Direction) -> dict[bytes, int]:
        return dict(self.books[direction]._uses)

    def place(self, direction: Direction) -> bytes:
        written = self.books[direction].written
        assert written is not None
        return ctypes.string_at(written.ipv4, len(NOWHERE))


FIRST = forward()


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand(FIRST)
    yield made
    for index in list(made.effects._listeners):
        made.effects.end(index)
    close_all(one.fd for one in made.effects.retiring._late)
    made.listener.close()
    for book in made.books.values():
        book.close()


@directions
def test_what_is_written_down_is_crossed_out_once(stand: Stand, direction: Direction) -> None:
    before = {one: stand.uses(one) for one in Direction}
    slots = stand.effects.write_down(numbered(9, forward("10.0.0.5"), direction))
    sockaddr = socketcalls.sockaddr(ip_address("10.0.0.5"), 80)
    assert slots == {0: stand.books[direction].slot(sockaddr)}
    for _ in range(2):
        stand.effects.cross_out(9)
        assert {one: stand.uses(one) for one in Direction} == before
    stand.effects.cross_out(77)


@directions
def test_a_target_of_two_ports_stays_until_both_are_gone(
    stand: Stand, direction: Direction
) -> None:
    """One of them was there from the start."""
    slots = stand.effects.write_down(numbered(9, FIRST, direction))
    assert set(stand.uses(direction).values()) == {2}
    stand.effects.cross_out(list(Direction).index(direction) + 1)
    assert set(stand.uses(direction).values()) == {1}
    assert {
        family: stand.books[direction].slot(one)
        for family, one in targets(FIRST, ALL_FAMILIES).items()
    } == slots
    stand.effects.cross_out(9)
    assert stand.uses(direction) == {}


@directions
def test_an_attempt_that_does_not_fit_leaves_nothing(stand: Stand, direction: Direction) -> None:
    book = stand.books[direction]
    while len(book._free) > 1:
        book.add(socketcalls.sockaddr(ip_address("192.0.2.1"), len(book._free)))
    before = stand.uses(direction)
    with pytest.raises(HardspliceError, match="full"):
        stand.effects.write_down(
            numbered(9, forward(target_port=81), direction)
        )  # two loopback addresses
    assert stand.uses(direction) == before
    stand.effects.cross_out(9)
    assert stand.uses(direction) == before
    stand.effects.write_down(numbered(9, forward("10.0.0.5"), direction))


def test_the_place_of_an_outbound_listener_is_in_the_namespace_monitor_s_book(stand: Stand) -> None:
    stand.effects.offer_bind_address(forward(port=8080))
    address = socketcalls.sockaddr(ip_address("127.0.0.1"), 8080)
    assert stand.place(Direction.INBOUND) == address[2:]
    assert stand.place(Direction.OUTBOUND) == NOWHERE
    stand.effects.withdraw_bind_address()
    assert stand.place(Direction.INBOUND) == NOWHERE


def test_a_listener_that_is_made_here_is_kept_and_its_place_is_forgotten(stand: Stand) -> None:
    stand.effects.write_down(numbered(9, forward()))
    fd = stand.effects.open(numbered(9, forward()))
    with socket.socket(fileno=os.dup(fd)) as one:
        socket.create_connection(one.getsockname(), timeout=5).close()
        assert here() == NOWHERE
        stand.effects.end(9)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(one.getsockname(), timeout=5)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_place_is_forgotten_where_it_could_not_be_had(stand: Stand) -> None:
    port = stand.listener.getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        stand.effects.open(numbered(9, forward(port=port)))
    assert here() == NOWHERE
    stand.effects.end(9)


def test_a_listener_of_the_start_is_ended_whoever_has_it(stand: Stand) -> None:
    address = stand.listener.getsockname()
    socket.create_connection(address, timeout=5).close()
    stand.effects.end(1)
    stand.effects.end(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)


def test_a_listener_is_ended_also_where_there_is_nothing_to_connect_it_to(stand: Stand) -> None:
    said: list[HardspliceError] = []
    stand.effects.retiring._report = said.append
    assert stand.effects._written[1].direction is Direction.INBOUND
    stand.effects.end(1)
    code = stand.listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert code == 0
    assert 1 not in stand.effects._listeners
    assert [failure.verb for failure in said] == ["free"]


# --- are they as they were? -----------------------------------------------------------------------


@pytest.fixture
def looking(stand: Stand) -> tuple[Stand, Timers, list[str]]:
    timers, said = Timers(), list[str]()
    stand.effects.begin(cast(Any, timers), lambda _: None)
    stand.effects.retiring.on_misuse = said.append
    stand.effects.on_loss = lambda failure: said.append(str(failure))
    return stand, timers, said


def cut_off(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Looking = tuple[Stand, Timers, list[str]]


def test_what_the_namespace_monitor_made_is_looked_at_again_and_again(looking: Looking) -> None:
    stand, timers, said = looking
    forwarded = forward(port=8080)
    stand.effects.write_down(numbered(9, forwarded, Direction.OUTBOUND))
    with socket.create_server(("127.0.0.1", 0)) as made:
        listeners.make_sound(made)
        os.close(stand.effects._listeners.pop(1))
        stand.effects.keep(9, os.dup(made.fileno()))
        for _ in range(3):
            ((seconds, look),) = timers.due
            assert seconds == CHECK_SECONDS
            timers.due.clear()
            look()
        assert said == []
        cut_off(made)
        timers.due.pop()[1]()
        assert said == ["it changes a listener that it has handed over"]
        stand.effects.end(9)


@pytest.mark.parametrize("spoil", [cut_off, lambda one: one.shutdown(socket.SHUT_RDWR)])
def test_all_are_looked_at_once_when_a_relay_was_replaced(
    looking: Looking, spoil: Callable[[socket.socket], None]
) -> None:
    stand, timers, said = looking
    listeners.make_sound(stand.listener)
    stand.effects.check_soon()
    stand.effects.check_soon()
    timers.due.pop()[1]()
    assert (timers.due, said) == ([], [])
    spoil(stand.listener)
    stand.effects.check_soon()
    timers.due.pop()[1]()
    what = "a free port of 127.0.0.1 on the host"
    assert said == [f"cannot serve {what}: {listeners.UNSOUND}"]


def test_many_are_looked_at_a_piece_at_a_time(looking: Looking) -> None:
    stand, timers, said = looking
    listeners.make_sound(stand.listener)
    for index in range(2, 2 + 2 * CHECKED_AT_ONCE):
        stand.effects._listeners[index] = os.dup(stand.listener.fileno())
        stand.effects._written[index] = stand.effects._written[1]
    stand.effects.check_soon()
    for _ in range(3):
        timers.due.pop()[1]()
    assert (timers.due, said) == ([], [])
