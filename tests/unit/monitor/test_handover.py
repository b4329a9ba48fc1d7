# SPDX-License-Identifier: GPL-2.0-or-later
"""What the two monitors say to each other about listeners, and what neither believes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.control import portapi
from hardsplice.ipc.channel import Channel, Sent, close_all
from hardsplice.ipc.messages import Kind, MalformedError, Record
from hardsplice.kernel import pinned, socketcalls
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.families import IPV4, IPV6
from hardsplice.model.forward import Forward, Origin, Source
from hardsplice.model.protocol import Protocol
from hardsplice.model.roles import HOST, NAMESPACE
from hardsplice.model.spec import SpecError, is_interface_name
from hardsplice.monitor import handover
from hardsplice.monitor.effects import Effects
from hardsplice.monitor.handover import ANSWER_SECONDS, WAITING_MAX, HostSide, NamespaceSide
from hardsplice.monitor.requests import decode, encode
from hardsplice.net.listeners import namespace_here, no_family, targets
from hardsplice.net.retiring import Sink
from hardsplice.sandbox.address_book import LARGE, SLOT, USUAL, Book
from tests.support.descriptors import open_descriptors
from tests.unit.monitor.fake_owner import Timers

BOTH = (IPV4, IPV6)
NOWHERE = pinned.NOWHERE[socket.AF_INET]
LATE = 8  # addresses that there is room for, at the least

addresses = st.none() | st.ip_addresses(v=4) | st.ip_addresses(v=6)
ports = st.integers(1, 65535)
slot_maps = st.dictionaries(st.sampled_from(BOTH), st.integers(0, LARGE.size // SLOT - 1))
interfaces = st.none() | st.text("eth0.-@é", min_size=1, max_size=15).filter(is_interface_name)


def forward(port: int, target: str | None = None, interface: str | None = None) -> Forward:
    address, where = ip_address("127.0.0.1"), ip_address(target) if target else None
    return Forward(Direction.INBOUND, address, interface, port, where, 80, True)


def sent_as(text: bytes, number: int = 0) -> tuple[Forward, dict[int, int]]:
    return decode(Record(Kind.SERVE, index=number, text=text), Direction.INBOUND)


# --- forwards in records ---


@given(addresses, interfaces, ports, addresses, ports, slot_maps, st.sampled_from(Protocol))
def test_a_forward_arrives_as_it_was_sent(
    address: Any,
    interface: str | None,
    port: int,
    target: Any,
    target_port: int,
    slots: dict[int, int],
    protocol: Protocol,
) -> None:
    sent = Forward(Direction.INBOUND, address, interface, port, target, target_port, True, protocol)
    if isinstance(address, IPv6Address):
        assert address.scope_id is None
    assert sent_as(encode(sent, slots)) == (sent, slots)
    numbered = sent._replace(id=7)
    assert sent_as(encode(numbered, slots), 7) == (numbered, slots)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_slot_that_no_book_has_is_malformed(first: int, second: int) -> None:
    text = encode(forward(80), {})[:-8] + struct.pack("=II", first, second)
    expected = {family: slot for family, slot in enumerate((first, second)) if slot != 2**32 - 1}
    if all(slot * SLOT < LARGE.size for slot in expected.values()):
        assert sent_as(text)[1] == expected
    else:
        with pytest.raises(MalformedError):
            sent_as(text)


@given(st.binary(max_size=80) | st.binary(min_size=62, max_size=62))
def test_any_bytes_are_a_forward_or_malformed(text: bytes) -> None:
    with contextlib.suppress(MalformedError):
        made, _ = sent_as(text)
        assert made.address is None or isinstance(made.address, IPv4Address | IPv6Address)
        assert made.interface is None or is_interface_name(made.interface)
        assert 0 <= made.port < 65536  # 0: one that is free
        assert 0 < made.target_port < 65536


@pytest.mark.parametrize("where", [1, 18])
def test_an_address_of_no_version_is_malformed(where: int) -> None:
    text = bytearray(encode(forward(80), {}))
    text[where] = 5
    with pytest.raises(MalformedError):
        sent_as(bytes(text))


def test_a_protocol_that_nobody_knows_is_malformed() -> None:
    text = encode(forward(80), {})
    for number in range(256):
        if number in {one.number for one in Protocol}:
            sent_as(bytes((number,)) + text[1:])
            continue
        with pytest.raises(MalformedError):
            sent_as(bytes((number,)) + text[1:])


# --- the two sides ---


@dataclass
class RelayGroup:
    """Keeps listeners, without relays."""

    families: tuple[int, ...] = BOTH
    listeners: dict[int, int] = field(default_factory=dict)  # descriptors, by port
    slots: dict[int, Mapping[int, int]] = field(default_factory=dict)
    removed: list[tuple[int, bool]] = field(default_factory=list)

    def add(self, forward: Forward, fd: int, slots: Mapping[int, int]) -> None:
        if forward.target is not None and (IPV6 if forward.target.version == 6 else IPV4) not in (
            self.families
        ):
            raise no_family(forward, "there")
        self.listeners[forward.id] = os.dup(fd)
        self.slots[forward.id] = slots

    def has(self, index: int) -> bool:
        return index in self.listeners

    def remove(self, index: int, *, reset_flows: bool, done: Callable[[], None]) -> None:
        self.removed.append((index, reset_flows))
        if index in self.listeners:
            os.close(self.listeners.pop(index))
        done()


class SharedBook(Book):
    """One whose place for listeners is that from which this process takes it."""

    @property
    def written(self) -> pinned.Written | None:
        return pinned.values.written


class Sides:
    """A host side and a target side, and the channel between them, with books of a few slots. This
    process is both: what the host side writes down for the target side, that finds in the same
    memory.
    """

    def __init__(self) -> None:
        kinds: dict[Direction, type[Book]] = {
            Direction.INBOUND: SharedBook,
            Direction.OUTBOUND: Book,
        }
        self.books = {one: kinds[one](USUAL, [], LATE, is_written=True) for one in Direction}
        families = dict.fromkeys(Direction, BOTH)
        self.effects = Effects(self.books, families, [], {}, namespace_here(), Sink(0, {}))
        self.host_end, self.namespace_end = Channel.pair(HOST.name, NAMESPACE.name)
        self.inbound, self.outbound = RelayGroup(), RelayGroup()
        self.timers, self.trouble = Timers(), list[HardspliceError]()
        self.host = HostSide(
            self.host_end,
            cast(Any, self.outbound),
            self.effects,
            cast(Any, self.timers),
            self.trouble.append,
        )
        self.inside = Timers()
        loop = cast(Any, self.inside)
        self.namespace = NamespaceSide(self.namespace_end, cast(Any, self.inbound), BOTH, loop)
        self.told: list[object] = []
        self.listening: list[Forward] = []

    def add(self, index: int, direction: Direction, forward: Forward) -> None:
        def done(outcome: HardspliceError | Forward) -> None:
            self.told.append(outcome if isinstance(outcome, HardspliceError) else None)
            if isinstance(outcome, Forward):
                self.listening.append(outcome)

        self.host.add(forward._replace(id=index, direction=direction), done)

    def remove(self, index: int, direction: Direction) -> None:
        def done(failure: HardspliceError | None) -> None:
            self.told.append(failure or index)

        forward_ = forward(80)._replace(id=index, direction=direction)
        self.host.remove(forward_, reset_flows=True, done=done)

    def pass_on(self) -> None:
        """Deliver all records, in turn, until there are none."""
        moved = True
        while moved:
            moved = False
            for end, side in ((self.namespace_end, self.namespace), (self.host_end, self.host)):
                with contextlib.suppress(BlockingIOError):
                    record = end.receive(wait=False)
                    assert record is not None
                    side.take(record)
                    moved = True
        if self.host.current is None:
            self.check()

    def check(self) -> None:
        """What holds while nothing is under way: what is listened on is written down, and kept, and
        nothing else; and there is nowhere to listen next.
        """
        served = {*self.inbound.listeners, *self.outbound.listeners}
        assert served == set(self.effects._written) == set(self.effects._listeners)
        for direction, group in (
            (Direction.INBOUND, self.inbound),
            (Direction.OUTBOUND, self.outbound),
        ):
            written = self.books[direction]._uses
            assert bool(written) == bool(group.listeners)
        assert self.place() == NOWHERE

    def place(self) -> bytes:
        """Where the target side would listen next."""
        written = pinned.values.written
        assert written is not None
        return ctypes.string_at(written.ipv4, len(NOWHERE))

    def close(self) -> None:
        for index in list(self.effects._listeners):
            self.effects.end(index)
        close_all(one.fd for one in self.effects.retiring._late)
        for group in (self.inbound, self.outbound):
            close_all(group.listeners.values())
        for book in self.books.values():
            book.close()
        for end in (self.host_end, self.namespace_end):
            end.discard_rest()
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


directions = pytest.mark.parametrize("direction", Direction)


def crew_of(sides: Sides, direction: str) -> RelayGroup:
    return sides.inbound if direction is Direction.INBOUND else sides.outbound


@directions
def test_a_listener_gets_to_the_group_that_accepts_on_it(
    sides: Sides, direction: Direction, port: int
) -> None:
    sides.add(7, direction, forward(port))
    sides.pass_on()
    assert sides.told == [None]
    group, book = crew_of(sides, direction), sides.books[direction]
    assert list(group.listeners) == [7]
    assert group.slots[7] == {
        family: book.slot(sockaddr) for family, sockaddr in targets(forward(port), BOTH).items()
    }
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    sides.remove(7, direction)
    sides.pass_on()
    assert sides.told == [None, 7]
    assert crew_of(sides, direction).removed == [(7, True)]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@directions
def test_a_free_port_is_told_and_is_that_of_the_listener(
    sides: Sides, direction: Direction
) -> None:
    for index in (7, 8):
        sides.add(index, direction, forward(0))
        sides.pass_on()
    assert sides.told == [None, None]
    listeners = crew_of(sides, direction).listeners
    ports = [socketcalls.local_port(listeners[index]) for index in (7, 8)]
    assert [one.port for one in sides.listening] == ports
    assert len({0, *ports}) == 3
    for one in ports:
        socket.create_connection(("127.0.0.1", one), timeout=5).close()
    sides.remove(7, direction)
    sides.pass_on()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]), timeout=5)


@directions
def test_what_can_not_be_bound_is_told_with_its_reason(
    sides: Sides, direction: Direction, port: int
) -> None:
    with socket.create_server(("127.0.0.1", port)):
        sides.add(1, direction, forward(port))
        sides.pass_on()
    (failure,) = sides.told
    assert isinstance(failure, HardspliceError)
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
    assert isinstance(failure, HardspliceError)
    assert "there is no IPv6" in failure.reason
    assert crew_of(sides, direction).listeners == {}


def test_requests_wait_for_each_other(sides: Sides, port: int) -> None:
    sides.add(1, Direction.OUTBOUND, forward(port))
    sides.remove(7, Direction.INBOUND)
    sides.add(2, Direction.INBOUND, forward(port))  # taken by then
    record = sides.namespace_end.receive(wait=False)
    assert record is not None
    assert record.kind == Kind.OPEN
    with pytest.raises(BlockingIOError):
        sides.namespace_end.receive(wait=False)
    sides.namespace.take(record)
    sides.pass_on()
    assert [type(told) for told in sides.told] == [type(None), int, HardspliceError]


def test_a_namespace_monitor_that_is_gone_is_no_end_of_the_host_monitor(
    sides: Sides, port: int
) -> None:
    sides.namespace_end.close()
    for direction in Direction:
        sides.add(1, direction, forward(port))
    assert [type(told) for told in sides.told] == [HardspliceError, HardspliceError]


@directions
def test_two_ports_may_have_one_target(sides: Sides, direction: Direction, port: int) -> None:
    """It stays in the book until the last one is gone."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        other: int = probe.getsockname()[1]
    book, (sockaddr, *_) = sides.books[direction], targets(forward(port), BOTH).values()
    for index, number in ((1, port), (2, other)):
        sides.add(index, direction, forward(number))
        sides.pass_on()
    slot = book.slot(sockaddr)
    sides.remove(1, direction)
    sides.pass_on()
    assert book.slot(sockaddr) == slot
    sides.remove(2, direction)
    sides.pass_on()
    with pytest.raises(KeyError):
        book.slot(sockaddr)


@directions
def test_a_full_book_is_told_and_nothing_is_left_of_the_attempt(
    sides: Sides, direction: Direction, port: int
) -> None:
    book = sides.books[direction]
    room = len(book._free)
    for number in range(1, room):
        book.add(socketcalls.sockaddr(IPv4Address("192.0.2.1"), number))
    uses = dict(book._uses)
    # both loopback addresses: one too many
    both = Forward(Direction.INBOUND, None, None, port, None, 80, True)
    sides.add(1, direction, both)
    assert [reason is not None and "full" in reason for reason in reasons(sides)] == [True]
    assert book._uses == uses
    sides.add(2, direction, forward(port, "192.0.2.1"))
    sides.pass_on()
    assert sides.told[1] is None


@directions
def test_where_to_listen_is_written_down_for_the_request_that_is_under_way_only(
    sides: Sides, direction: Direction, port: int
) -> None:
    assert sides.place() == NOWHERE
    sides.add(1, direction, forward(port))
    address = socketcalls.sockaddr(IPv4Address("127.0.0.1"), port)[2:]
    # An inbound listener is made here, at once.
    expected = address if direction is Direction.OUTBOUND else NOWHERE
    assert sides.place() == expected
    sides.pass_on()
    assert sides.place() == NOWHERE


@directions
def test_who_has_a_listener_still_has_nothing_once_it_is_removed(
    sides: Sides, direction: Direction, port: int
) -> None:
    """As a relay may, or a namespace monitor that says CLOSED and keeps it."""
    sides.add(1, direction, forward(port))
    sides.pass_on()
    kept = socket.socket(fileno=os.dup(crew_of(sides, direction).listeners[1]))
    with kept:
        sides.remove(1, direction)
        sides.pass_on()
        with contextlib.suppress(OSError):
            kept.listen()
        kept.setblocking(False)
        with socket.socket() as client:
            client.settimeout(0.1)
            with pytest.raises(OSError, match=r"timed out|refused"):
                client.connect(("127.0.0.1", port))


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
    with pytest.raises(MalformedError):
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
    sides.add(1, Direction.OUTBOUND, forward(port))
    with pytest.raises(MalformedError):
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
    if direction is Direction.OUTBOUND:
        sides.add(1, Direction.OUTBOUND, forward(port))
        record = Record(Kind.OPENED, index=1, fds=(fds[0],))
        with pytest.raises(MalformedError):
            sides.host.take(record)
    else:
        record = Record(Kind.SERVE, index=1, text=encode(forward(port), {}), fds=(fds[0],))
        with pytest.raises(MalformedError):
            sides.namespace.take(record)
    close_all(fds)
    assert sides.told == []


@pytest.mark.parametrize(
    "request_",
    [
        Record(Kind.OPEN, index=1, text=b"nonsense"),
        Record(Kind.OPEN, index=1),
        Record(Kind.OPENED, index=1),
        Record(Kind.READY),
        Record(99),
    ],
    ids=str,
)
def test_a_request_that_is_none_is_malformed(sides: Sides, request_: Record) -> None:
    with pytest.raises(MalformedError):
        sides.namespace.take(request_)


def test_descriptors_beside_a_request_that_has_none_are_malformed(sides: Sides) -> None:
    for kind, fds in (
        (Kind.OPEN, (0,)),
        (Kind.CLOSE, (0,)),
        (Kind.SERVE, ()),
        (Kind.SERVE, (0, 0)),
    ):
        text = b"" if kind == Kind.CLOSE else encode(forward(80), {})
        sides.host_end.send(Record(kind, index=1, text=text, fds=fds))
        with pytest.raises(MalformedError, match="descriptors beside"):
            sides.namespace_end.receive()


def test_a_number_that_is_in_use_is_malformed(sides: Sides, port: int) -> None:
    sides.add(1, Direction.INBOUND, forward(port))
    sides.pass_on()
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = encode(forward(other.getsockname()[1]), {})
        with pytest.raises(MalformedError):
            sides.namespace.take(Record(Kind.SERVE, index=1, text=text, fds=(other.fileno(),)))


@pytest.mark.parametrize("code", [-1, 1, 2**31 - 1, -(2**31)])
def test_any_number_for_an_error_has_words(sides: Sides, code: int, port: int) -> None:
    sides.add(1, Direction.OUTBOUND, forward(port))
    sides.host.take(Record(Kind.OPENED, index=1, detail=code))
    (failure,) = sides.told
    assert isinstance(failure, HardspliceError)
    assert str(failure)


# --- nothing lasts for ever ---


def reasons(sides: Sides) -> list[str | None]:
    """What those who asked were told."""
    return [one.reason if isinstance(one, HardspliceError) else None for one in sides.told]


def let_time_pass(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    """The namespace monitor's time to answer is over."""
    later = time.monotonic() + ANSWER_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    while sides.timers.due:
        sides.timers.due.pop()[1]()


BAD_NAMES = ["\ud800", "a\0b", "a b", "a/b", "a:b", "\u00e9th0", "x" * 16, ".", "..", ""]


@pytest.mark.parametrize("name", BAD_NAMES)
@directions
def test_a_name_that_can_not_be_an_interfaces_ends_its_own_request_only(
    sides: Sides, direction: Direction, name: str, port: int
) -> None:
    """Were it ever to come so far."""
    sides.add(1, direction, forward(port, interface=name))
    sides.add(2, direction, forward(port))
    sides.pass_on()
    (first, second) = sides.told
    assert isinstance(first, HardspliceError)
    assert "ValueError" in first.reason
    assert second is None, "the next one is served"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_such_a_name_in_a_record_is_malformed(name: str) -> None:
    text = encode(forward(80, interface="e"), {})
    at = text.index(b"e" + bytes(15))
    raw = name.encode("utf-8", "surrogatepass")[:16]
    if raw:
        with pytest.raises(MalformedError):
            sent_as(text[:at] + raw.ljust(16, b"\0" if 0 not in raw else b"x") + text[at + 16 :])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["proto", "parentIP", "parentPort", "childIP", "childPort", "direction", "x"]
        ),
        json_values | st.sampled_from(["tcp", "outbound", "inbound", "%eth0", "127.0.0.1", 80]),
    ),
    st.text(max_size=20),
)
def test_whatever_json_can_carry_is_refused_or_can_be_sent(given_: Any, name: str) -> None:
    """As far as it gets is the record; nothing else than a refusal stops it before."""
    for body in (given_, {"proto": "tcp", "parentPort": 8, "childPort": 8, "parentIP": f"%{name}"}):
        try:
            _, made = portapi.read_spec(json.dumps(body).encode(), Source.OPTION, (4, 6))
        except (portapi._WrongError, SpecError) as error:
            json.dumps(str(error)).encode()
            continue
        known = made._replace(direction=Direction.INBOUND, origin=Origin.NAMED)
        assert sent_as(encode(made, {})) == (known, {})


class _Unforeseen(Exception):
    pass


def _raises(*_: object, **__: object) -> Any:
    raise _Unforeseen("nobody foresaw this")


@pytest.mark.parametrize(
    "where",
    [
        "monitor.effects.Effects.write_down",
        "sandbox.address_book.Book.add",
        "monitor.requests.encode",
        "monitor.effects.listeners.open_listener",
        "ipc.channel.Channel.send",
    ],
)
def test_whatever_goes_wrong_before_a_request_is_sent_ends_that_request_only(
    sides: Sides, where: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(f"hardsplice.{where}", _raises)
        sides.add(1, Direction.INBOUND, forward(port))
    close_all(one.fd for one in sides.effects.retiring._late)
    sides.effects.retiring._late.clear()
    assert open_descriptors() == before
    sides.check()
    sides.add(2, Direction.INBOUND, forward(port))
    sides.pass_on()
    assert reasons(sides) == ["_Unforeseen: nobody foresaw this", None]


@pytest.mark.parametrize("sent", [Sent.FULL, Sent.GONE, None])
def test_a_port_whose_removal_can_not_be_sent_is_served_as_before(
    sides: Sides, sent: Sent | None, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides.add(1, Direction.INBOUND, forward(port))
    sides.pass_on()
    uses = dict(sides.books[Direction.INBOUND]._uses)
    with monkeypatch.context() as patch:
        patch.setattr(Channel, "send", (lambda *_, **__: sent) if sent else _raises)
        sides.remove(1, Direction.INBOUND)
    (_, failure) = sides.told
    assert isinstance(failure, HardspliceError)
    assert str(failure).startswith("cannot remove port 1: ")
    assert (sides.books[Direction.INBOUND]._uses, sides.inbound.removed) == (uses, [])
    sides.check()
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    sides.remove(1, Direction.INBOUND)
    sides.pass_on()
    assert sides.told[2:] == [1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_what_goes_wrong_once_a_removal_is_sent_is_told_and_it_has_its_answer(
    sides: Sides, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides.add(1, Direction.INBOUND, forward(port))
    sides.pass_on()
    with monkeypatch.context() as patch:
        patch.setattr(Effects, "end", _raises)
        sides.remove(1, Direction.INBOUND)
    assert ["_Unforeseen" in one.reason for one in sides.trouble] == [True]
    sides.pass_on()
    assert sides.told == [None, 1]


@directions
def test_whatever_goes_wrong_in_the_namespace_monitor_is_answered(
    sides: Sides, direction: Direction, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides.add(1, direction, forward(port))
    sides.add(2, direction, forward(port))
    record = sides.namespace_end.receive(wait=False)
    assert record is not None
    with monkeypatch.context() as patch:
        patch.setattr("hardsplice.monitor.handover.open_listener", _raises)
        patch.setattr(RelayGroup, "add", _raises)
        sides.namespace.take(record)
    sides.pass_on()
    assert reasons(sides) == [os.strerror(errno.EINVAL), None]


def test_whatever_goes_wrong_with_an_answer_ends_that_request_only(
    sides: Sides, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides.add(1, Direction.OUTBOUND, forward(port))
    record = sides.namespace_end.receive(wait=False)
    assert record is not None
    sides.namespace.take(record)
    answer = sides.host_end.receive(wait=False)
    assert answer is not None
    with monkeypatch.context() as patch:
        patch.setattr(RelayGroup, "add", _raises)
        sides.host.take(answer)
    sides.add(2, Direction.OUTBOUND, forward(port))
    sides.pass_on()
    assert reasons(sides) == ["_Unforeseen: nobody foresaw this", None]


def test_an_asker_that_stumbles_over_the_outcome_keeps_nobody_else_from_theirs(
    sides: Sides, port: int
) -> None:
    sides.host.add(forward(port)._replace(id=1, direction=Direction.INBOUND), _raises)
    sides.remove(1, Direction.INBOUND)
    sides.pass_on()
    assert sides.told == [1]
    assert ["_Unforeseen" in one.reason for one in sides.trouble] == [True]


def test_an_asker_that_asks_again_at_once_does_not_recurse(sides: Sides, port: int) -> None:
    """Each of its requests fails at once."""
    asked = 0
    sides.namespace_end.close()

    def again(_: object) -> None:
        nonlocal asked
        asked += 1
        if asked < 2 * sys.getrecursionlimit():
            sides.host.add(forward(port)._replace(id=asked, direction=Direction.OUTBOUND), again)

    sides.host.add(forward(port)._replace(id=0, direction=Direction.OUTBOUND), again)
    assert asked == 2 * sys.getrecursionlimit()
    assert sides.trouble == []


def test_a_namespace_monitor_that_does_not_answer_keeps_nobody_waiting(
    sides: Sides, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(open_descriptors())
    for index in range(3):
        sides.add(index, Direction.OUTBOUND, forward(port))
    assert len(sides.timers.due) == 1
    let_time_pass(sides, monkeypatch)
    assert reasons(sides) == ["the namespace monitor does not answer"] * 3
    for direction in Direction:
        sides.add(9, direction, forward(port))
    assert reasons(sides)[3:] == ["the namespace monitor does not answer"] * 2
    assert sides.timers.due == []
    assert not sides.host.waiting
    assert len(open_descriptors()) == before
    assert len(sides.trouble) == 1
    # ... but once it answers all is well again.
    sides.pass_on()
    sides.add(10, Direction.INBOUND, forward(port))
    sides.pass_on()
    assert sides.told[-1] is None
    assert list(sides.outbound.listeners) == [], "what came too late was wanted by nobody"


def test_an_answer_that_is_late_is_not_the_next_one_s(
    sides: Sides, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was served too late is ended before anything else is done."""
    sides.add(1, Direction.INBOUND, forward(port))
    let_time_pass(sides, monkeypatch)
    sides.remove(7, Direction.INBOUND)
    record = sides.namespace_end.receive(wait=False)
    assert record is not None
    with pytest.raises(BlockingIOError):
        sides.namespace_end.receive(wait=False)
    sides.namespace.take(record)
    assert list(sides.inbound.listeners) == [1]
    sides.pass_on()
    assert sides.inbound.removed == [(1, True), (7, True)]
    assert sides.inbound.listeners == {}
    assert sides.told[1:] == [7]


def test_to_end_a_port_can_wait(sides: Sides, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is ended it is held, whatever was said."""
    sides.remove(1, Direction.INBOUND)
    sides.add(2, Direction.INBOUND, forward(port))
    sides.remove(3, Direction.INBOUND)
    let_time_pass(sides, monkeypatch)
    assert reasons(sides) == ["the namespace monitor does not answer"]
    sides.pass_on()
    assert sides.told[1:] == [1, 3]


def test_an_answer_in_time_stops_the_clock(sides: Sides, port: int) -> None:
    sides.add(1, Direction.INBOUND, forward(port))
    assert len(sides.timers.due) == 1
    sides.pass_on()
    assert sides.timers.due == [], "an idle monitor sleeps"
    assert not sides.host.is_late


def test_no_more_requests_wait_than_there_are_ports(
    sides: Sides, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(Direction) * 65535 <= WAITING_MAX
    few = 100
    monkeypatch.setattr(handover, "WAITING_MAX", few)
    sides.add(0, Direction.OUTBOUND, forward(port))
    done: Any = sides.told.append
    for index in range(1, few + 1):
        sides.host.add(forward(port)._replace(id=index, direction=Direction.OUTBOUND), done)
    assert sides.told == []
    sides.add(few + 1, Direction.OUTBOUND, forward(port))
    assert reasons(sides) == ["the namespace monitor does not answer"]


@directions
def test_too_many_descriptors_under_way_are_told_of(
    sides: Sides, direction: Direction, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To whoever asked, and in the log."""
    sides.add(1, direction, forward(port)) if direction is Direction.OUTBOUND else None
    record = sides.namespace_end.receive(wait=False) if direction is Direction.OUTBOUND else None
    send = Channel.send

    def crowded(channel: Channel, record: Record, *, wait: bool = True) -> Sent:
        return Sent.CROWDED if record.fds else send(channel, record, wait=wait)

    monkeypatch.setattr(Channel, "send", crowded)
    if record is None:
        sides.add(1, direction, forward(port))
    else:
        sides.namespace.take(record)
        sides.pass_on()
    (failure,) = sides.told
    for one in (failure, *sides.trouble):
        assert isinstance(one, HardspliceError)
        assert one.reason == os.strerror(errno.ETOOMANYREFS)
        assert one.hint is not None
        assert "a user of its own" in one.hint
    assert len(sides.trouble) == 1


@directions
def test_an_answer_for_which_there_is_no_memory_is_sent_again(
    sides: Sides, direction: Direction, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else no other request would ever be sent."""
    sides.add(1, direction, forward(port))
    record = sides.namespace_end.receive(wait=False)
    assert record is not None
    with monkeypatch.context() as patch:
        patch.setattr(Channel, "send", lambda *_, **__: Sent.FULL)
        sides.namespace.take(record)
    sides.pass_on()
    assert sides.told == []
    ((_, again),) = sides.inside.due
    again()
    sides.pass_on()
    # A listener that could not be handed over is closed; one that is kept already is served.
    lost = os.strerror(errno.ENOBUFS) if direction is Direction.OUTBOUND else None
    assert reasons(sides) == [lost]
    sides.add(2, Direction.OUTBOUND, forward(0))
    sides.pass_on()
    assert reasons(sides) == [lost, None]


def test_an_error_that_no_kernel_knows_is_not_repeated(sides: Sides, port: int) -> None:
    """Each would be a kind of line of its own, without end."""
    for index, code in enumerate(range(10**6, 10**6 + 5)):
        sides.add(index, Direction.OUTBOUND, forward(port))
        sides.host.take(Record(Kind.OPENED, index=index, detail=code))
    assert set(reasons(sides)) == {os.strerror(errno.EPROTO)}
