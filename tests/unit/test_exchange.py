# SPDX-License-Identifier: GPL-2.0-or-later
"""What the two monitors say to each other about listeners, and what neither believes."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.channel import Channel, Kind, Malformed, Record, close_all, discard
from hardsplice.errors import Failure
from hardsplice.exchange import HostSide, TargetSide, decode, encode
from hardsplice.forwarding import Direction
from hardsplice.ports import Forward
from hardsplice.relay.engine import Listener
from hardsplice.relay.sockets import IPV4, IPV6
from tests.support.descriptors import open_descriptors

BOTH = (IPV4, IPV6)

addresses = st.none() | st.ip_addresses(v=4) | st.ip_addresses(v=6)
ports = st.integers(1, 65535)
interfaces = st.none() | st.binary(min_size=1, max_size=15).filter(lambda name: 0 not in name)


def forward(port: int, target: str | None = None) -> Forward:
    address = ip_address("127.0.0.1")
    return Forward(address, None, port, ip_address(target) if target else None, 80, True)


# --- forwards in records ---


@given(addresses, interfaces, ports, addresses, ports)
def test_a_forward_arrives_as_it_was_sent(
    address: Any, interface: bytes | None, port: int, target: Any, target_port: int
) -> None:
    sent = Forward(
        address, os.fsdecode(interface) if interface else None, port, target, target_port, True
    )
    if isinstance(address, IPv6Address):
        assert address.scope_id is None
    assert decode(encode(sent)) == sent


@given(st.binary(max_size=80))
def test_any_bytes_are_a_forward_or_malformed(text: bytes) -> None:
    with contextlib.suppress(Malformed):
        made = decode(text)
        assert made.address is None or isinstance(made.address, IPv4Address | IPv6Address)
        assert 0 < made.port < 65536
        assert 0 < made.target_port < 65536


@pytest.mark.parametrize("where", [0, 17])
def test_an_address_of_no_version_is_malformed(where: int) -> None:
    text = bytearray(encode(forward(80)))
    text[where] = 5
    with pytest.raises(Malformed):
        decode(bytes(text))


# --- the two sides ---


@dataclass
class Crew:
    """Keeps listeners, without relays."""

    families: tuple[int, ...] = BOTH
    listeners: dict[int, Listener] = field(default_factory=dict)
    removed: list[tuple[int, bool]] = field(default_factory=list)

    def add(self, listener: Listener) -> None:
        self.listeners[listener.index] = listener

    def remove(self, index: int, *, reset_flows: bool) -> None:
        self.removed.append((index, reset_flows))
        if index in self.listeners:
            os.close(self.listeners.pop(index).fd)


class Sides:
    """A host side and a target side, and the channel between them."""

    def __init__(self) -> None:
        self.host_end, self.target_end = Channel.pair()
        self.inbound, self.outbound = Crew(), Crew()
        self.host = HostSide(self.host_end, cast(Any, self.outbound), BOTH)
        self.target = TargetSide(self.target_end, cast(Any, self.inbound), BOTH)
        self.told: list[object] = []

    def add(self, index: int, direction: Direction, forward: Forward) -> None:
        self.host.add(index, direction, forward, self.told.append)

    def remove(self, index: int, direction: Direction) -> None:
        def done() -> None:
            self.told.append(index)

        self.host.remove(index, direction, reset_flows=True, done=done)

    def pass_on(self) -> None:
        """Deliver all records, in turn, until there are none."""
        moved = True
        while moved:
            moved = False
            for end, side in ((self.target_end, self.target), (self.host_end, self.host)):
                with contextlib.suppress(BlockingIOError):
                    record = end.receive(wait=False)
                    assert record is not None
                    side.take(record)
                    moved = True

    def close(self) -> None:
        for crew in (self.inbound, self.outbound):
            close_all([one.fd for one in crew.listeners.values()])
        for end in (self.host_end, self.target_end):
            end.drain()
            end.close()


@pytest.fixture
def sides() -> Iterator[Sides]:
    before = open_descriptors()
    made = Sides()
    yield made
    made.close()
    assert open_descriptors() == before


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number: int = probe.getsockname()[1]
        return number


directions = pytest.mark.parametrize("direction", ["inbound", "outbound"])


def crew_of(sides: Sides, direction: str) -> Crew:
    return sides.inbound if direction == "inbound" else sides.outbound


@directions
def test_a_listener_gets_to_the_crew_that_accepts_on_it(
    sides: Sides, direction: Direction, port: int
) -> None:
    sides.add(7, direction, forward(port))
    sides.pass_on()
    assert sides.told == [None]
    (listener,) = crew_of(sides, direction).listeners.values()
    assert listener.index == 7
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    sides.remove(7, direction)
    sides.pass_on()
    assert sides.told == [None, 7]
    assert crew_of(sides, direction).removed == [(7, True)]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@directions
def test_what_can_not_be_bound_is_told_with_its_reason(
    sides: Sides, direction: Direction, port: int
) -> None:
    with socket.create_server(("127.0.0.1", port)):
        sides.add(1, direction, forward(port))
        sides.pass_on()
    (failure,) = sides.told
    assert isinstance(failure, Failure)
    assert failure.reason == os.strerror(errno.EADDRINUSE)
    assert failure.hint is not None
    assert "ss -ltnp" in failure.hint


@directions
def test_a_target_of_a_family_that_is_not_there_is_told(
    sides: Sides, direction: Direction, port: int
) -> None:
    crew_of(sides, direction).families = (IPV4,)
    sides.add(1, direction, forward(port, "::1"))
    sides.pass_on()
    (failure,) = sides.told
    assert isinstance(failure, Failure)
    assert "there is no IPv6" in failure.reason
    assert crew_of(sides, direction).listeners == {}


def test_requests_wait_for_each_other(sides: Sides, port: int) -> None:
    sides.add(1, "outbound", forward(port))
    sides.remove(1, "inbound")
    sides.add(2, "inbound", forward(port))  # taken by then
    record = sides.target_end.receive(wait=False)
    assert record is not None
    assert record.kind == Kind.OPEN
    with pytest.raises(BlockingIOError):
        sides.target_end.receive(wait=False)
    sides.target.take(record)
    sides.pass_on()
    assert [type(told) for told in sides.told] == [type(None), int, Failure]


def test_a_target_monitor_that_is_gone_is_no_end_of_the_host_monitor(
    sides: Sides, port: int
) -> None:
    sides.target_end.close()
    for direction in ("inbound", "outbound"):
        sides.add(1, direction, forward(port))
    assert [type(told) for told in sides.told] == [Failure, Failure]


# --- what is not believed ---


@pytest.mark.parametrize(
    "answer",
    [
        Record(Kind.OPENED, index=1),
        Record(Kind.SERVED, index=1),
        Record(Kind.CLOSED, index=1),
        Record(Kind.OPEN, index=1),
        Record(0),
    ],
    ids=str,
)
def test_an_answer_that_nobody_waits_for_is_malformed(sides: Sides, answer: Record) -> None:
    with pytest.raises(Malformed):
        sides.host.take(answer)


@pytest.mark.parametrize(
    "answer",
    [
        Record(Kind.OPENED, index=2),
        Record(Kind.SERVED, index=1),
        Record(Kind.CLOSED, index=1),
    ],
    ids=str,
)
def test_the_answer_to_another_question_is_malformed(
    sides: Sides, answer: Record, port: int
) -> None:
    sides.add(1, "outbound", forward(port))
    with pytest.raises(Malformed):
        sides.host.take(answer)
    assert sides.told == []


def _not_listening() -> socket.socket:
    return socket.socket()


def _elsewhere() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def _local() -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind("\0hardsplice-test-" + str(os.getpid()))
    made.listen()
    return made


def _datagram() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


FAKES = [_not_listening, _elsewhere, _local, _datagram]


@pytest.mark.parametrize("fake", [*FAKES, None])
@directions
def test_a_descriptor_that_is_not_the_listener_is_malformed(
    sides: Sides, direction: str, fake: Any, port: int
) -> None:
    """Its descriptors stay the caller's, who discards them."""
    if fake is None:
        fds = list(os.pipe())
    else:
        with fake() as made:
            fds = [made.detach()]
    if direction == "outbound":
        sides.add(1, "outbound", forward(port))
        record = Record(Kind.OPENED, index=1, fds=(fds[0],))
        with pytest.raises(Malformed):
            sides.host.take(record)
    else:
        record = Record(Kind.SERVE, index=1, text=encode(forward(port)), fds=(fds[0],))
        with pytest.raises(Malformed):
            sides.target.take(record)
    discard(fds)
    assert sides.told == []


@pytest.mark.parametrize(
    "request_",
    [
        Record(Kind.SERVE, index=1, text=encode(forward(80))),
        Record(Kind.OPEN, index=1, text=b"nonsense"),
        Record(Kind.OPEN, index=1),
        Record(Kind.OPENED, index=1),
        Record(Kind.READY),
        Record(99),
    ],
    ids=str,
)
def test_a_request_that_is_none_is_malformed(sides: Sides, request_: Record) -> None:
    with pytest.raises(Malformed):
        sides.target.take(request_)


def test_descriptors_beside_a_request_that_has_none_are_malformed(sides: Sides) -> None:
    for kind in (Kind.OPEN, Kind.CLOSE):
        record = Record(kind, index=1, text=encode(forward(80)), fds=(0,))
        with pytest.raises(Malformed):
            sides.target.take(record)


def test_a_number_that_is_in_use_is_malformed(sides: Sides, port: int) -> None:
    sides.add(1, "inbound", forward(port))
    sides.pass_on()
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = encode(forward(other.getsockname()[1]))
        with pytest.raises(Malformed):
            sides.target.take(Record(Kind.SERVE, index=1, text=text, fds=(other.fileno(),)))


@pytest.mark.parametrize("code", [-1, 1, 2**31 - 1, -(2**31)])
def test_any_number_for_an_error_has_words(sides: Sides, code: int, port: int) -> None:
    sides.add(1, "outbound", forward(port))
    sides.host.take(Record(Kind.OPENED, index=1, detail=code))
    (failure,) = sides.told
    assert isinstance(failure, Failure)
    assert str(failure)
