# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host monitor alone does: it writes targets down, as often as there are ports for them,
and keeps listeners so that it can end them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from hardsplice import socketcalls
from hardsplice.book import USUAL, Book
from hardsplice.desk import Desk
from hardsplice.errors import Failure
from hardsplice.forwarding import DIRECTIONS, Direction, Port, Source
from hardsplice.listeners import namespace_here, targets
from hardsplice.ports import Forward
from hardsplice.relay.sockets import ALL_FAMILIES
from tests.support.descriptors import open_descriptors

directions = pytest.mark.parametrize("direction", DIRECTIONS)


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def forward(target: str | None = None, target_port: int = 80, port: int = 0) -> Forward:
    where = ip_address(target) if target else None
    return Forward(ip_address("127.0.0.1"), None, port, where, target_port, True)


class Stand:
    """A desk, its books, and what was written down and kept at the start."""

    def __init__(self, first: Forward) -> None:
        sockaddrs = list(targets(first, ALL_FAMILIES).values())
        self.books = {one: Book(USUAL, sockaddrs, 4, is_written=True) for one in DIRECTIONS}
        ports = [
            Port(index, direction, first, Source.OPTION)
            for index, direction in enumerate(DIRECTIONS, 1)
        ]
        self.listener = socket.create_server(("127.0.0.1", 0))
        kept = {1: os.dup(self.listener.fileno())}
        self.desk = Desk(
            self.books, dict.fromkeys(DIRECTIONS, ALL_FAMILIES), ports, kept, namespace_here()
        )

    def uses(self, direction: Direction) -> dict[bytes, int]:
        return dict(self.books[direction]._uses)

    def place(self, direction: Direction) -> bytes:
        view = self.books[direction].view
        assert view is not None
        return ctypes.string_at(view + socketcalls.BIND, 32)


FIRST = forward()


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand(FIRST)
    yield made
    for index in list(made.desk._kept):
        made.desk.end(index)
    made.listener.close()
    for book in made.books.values():
        book.close()


@directions
def test_what_is_written_down_is_crossed_out_once(stand: Stand, direction: Direction) -> None:
    before = {one: stand.uses(one) for one in DIRECTIONS}
    slots = stand.desk.write_down(9, direction, forward("10.0.0.5"))
    sockaddr = socketcalls.sockaddr(ip_address("10.0.0.5"), 80)
    assert slots == {0: stand.books[direction].slot(sockaddr)}
    for _ in range(2):
        stand.desk.cross_out(9)
        assert {one: stand.uses(one) for one in DIRECTIONS} == before
    stand.desk.cross_out(77)


@directions
def test_a_target_of_two_ports_stays_until_both_are_gone(
    stand: Stand, direction: Direction
) -> None:
    """One of them was there from the start."""
    slots = stand.desk.write_down(9, direction, FIRST)
    assert set(stand.uses(direction).values()) == {2}
    stand.desk.cross_out(DIRECTIONS.index(direction) + 1)
    assert set(stand.uses(direction).values()) == {1}
    assert {
        family: stand.books[direction].slot(one)
        for family, one in targets(FIRST, ALL_FAMILIES).items()
    } == slots
    stand.desk.cross_out(9)
    assert stand.uses(direction) == {}


@directions
def test_an_attempt_that_does_not_fit_leaves_nothing(stand: Stand, direction: Direction) -> None:
    book = stand.books[direction]
    while len(book._free) > 1:
        book.add(socketcalls.sockaddr(ip_address("192.0.2.1"), len(book._free)))
    before = stand.uses(direction)
    with pytest.raises(Failure, match="full"):
        stand.desk.write_down(9, direction, forward(target_port=81))  # two loopback addresses
    assert stand.uses(direction) == before
    stand.desk.cross_out(9)
    assert stand.uses(direction) == before
    stand.desk.write_down(9, direction, forward("10.0.0.5"))


def test_the_place_of_an_outbound_listener_is_in_the_target_monitor_s_book(stand: Stand) -> None:
    stand.desk.offer_place(forward(port=8080))
    address = socketcalls.sockaddr(ip_address("127.0.0.1"), 8080)
    assert stand.place("inbound") == address.ljust(32, b"\0")
    assert stand.place("outbound") == socketcalls.NO_ADDRESS
    stand.desk.withdraw_place()
    assert stand.place("inbound") == socketcalls.NO_ADDRESS


def test_a_listener_that_is_made_here_is_kept_and_its_place_is_forgotten(stand: Stand) -> None:
    fd = stand.desk.open(9, forward())
    with socket.socket(fileno=os.dup(fd)) as one:
        socket.create_connection(one.getsockname(), timeout=5).close()
        view = socketcalls._values.bind.value
        assert view is not None
        assert ctypes.string_at(view, 32) == socketcalls.NO_ADDRESS
        stand.desk.end(9)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(one.getsockname(), timeout=5)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_place_is_forgotten_where_it_could_not_be_had(stand: Stand) -> None:
    port = stand.listener.getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        stand.desk.open(9, forward(port=port))
    view = socketcalls._values.bind.value
    assert view is not None
    assert ctypes.string_at(view, 32) == socketcalls.NO_ADDRESS
    stand.desk.end(9)


def test_a_listener_of_the_start_is_ended_whoever_has_it(stand: Stand) -> None:
    address = stand.listener.getsockname()
    socket.create_connection(address, timeout=5).close()
    stand.desk.end(1)
    stand.desk.end(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)


def test_a_listener_is_ended_also_where_no_other_socket_can_be_had(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socketcalls, "stream_socket", none)
    assert stand.desk._written[1][0] == "inbound"
    stand.desk.end(1)
    code = stand.listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert code == 0
    assert 1 not in stand.desk._kept
