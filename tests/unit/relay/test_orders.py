# SPDX-License-Identifier: GPL-2.0-or-later
"""What a monitor tells its relays: listeners in records, and what an engine does with them."""

from __future__ import annotations

import contextlib
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.ipc.messages import Kind, MalformedError, Record, decode, encode
from hardsplice.net.listener import Listener
from hardsplice.relay.orders import add, listener_of, remove
from hardsplice.sandbox.address_book import LARGE, SLOT, USUAL, Area, Pointer
from tests.unit.relay.fake_kernel import FakeKernel
from tests.unit.relay.fake_relay import ONE, SINGLE, Relay
from tests.unit.relay.fake_tcp import Listening

PLACES = (USUAL, LARGE)
LENGTHS = (16, 28)  # of sockaddrs, by family


@st.composite
def listeners(draw: st.DrawFn) -> tuple[Listener, Area]:
    place = draw(st.sampled_from(PLACES))

    def target() -> Pointer:
        family = draw(st.integers(0, 1))
        slot = draw(st.integers(0, place.size // SLOT - 1))
        sockaddr = draw(st.binary(min_size=LENGTHS[family], max_size=LENGTHS[family]))
        return Pointer(place, slot, family, sockaddr)

    plans = [tuple(target() for _ in range(draw(st.integers(0, 2)))) for _ in range(2)]
    if draw(st.booleans()):
        plans[1] = plans[0]
    index, fd = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**31 - 1))
    return Listener(fd, plans[0], plans[1], index, draw(st.integers(0, 65535))), place


@given(listeners())
def test_a_listener_arrives_as_it_was_sent(one: tuple[Listener, Area]) -> None:
    sent, place = one
    got = listener_of(decode(encode(add(sent, place))))
    assert got == sent
    for ours, theirs in zip(
        (*got.route_ipv4, *got.route_ipv6), (*sent.route_ipv4, *sent.route_ipv6), strict=True
    ):
        assert (ours.family, ours.slot, ours.length) == (theirs.family, theirs.slot, theirs.length)
        assert ours.where.value == theirs.where.value
    assert (got.route_ipv4 is got.route_ipv6) == (sent.route_ipv4 == sent.route_ipv6)


HEAD, TARGET = struct.Struct("=BBHI"), struct.Struct("=BBI28s")


def text_of(counts: tuple[int, int], address: int, *targets: tuple[int, int, int]) -> bytes:
    """A record's text: targets are family, length and slot."""
    return HEAD.pack(*counts, 53, address) + b"".join(
        TARGET.pack(*one, bytes(28)) for one in targets
    )


@given(
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.sampled_from([one.address for one in PLACES]) | st.integers(0, 2**32 - 1),
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(LENGTHS) | st.integers(0, 255),
            st.integers(0, 2 * LARGE.size // SLOT) | st.integers(0, 2**32 - 1),
        ),
        max_size=4,
    ),
    st.binary(max_size=3),
)
def test_whatever_a_record_says_its_pointers_lie_in_a_book_at_a_slot_s_beginning(
    counts: tuple[int, int], address: int, targets: list[tuple[int, int, int]], more: bytes
) -> None:
    with contextlib.suppress(MalformedError):
        made = listener_of(
            Record(Kind.ADD_LISTENER, text=text_of(counts, address, *targets) + more)
        )
        for one in (*made.route_ipv4, *made.route_ipv6):
            where = one.where.value
            assert where is not None
            assert any(0 <= where - place.address < place.size for place in PLACES)
            assert where % SLOT == 0
            assert one.length == len(one.sockaddr) == LENGTHS[one.family]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        HEAD.pack(0, 0, 53, USUAL.address)[:-1],
        text_of((0, 0), USUAL.address + SLOT),
        text_of((1, 0), USUAL.address),
        text_of((0, 0), USUAL.address, (0, 16, 0)),
        text_of((3, 0), USUAL.address, *[(0, 16, 0)] * 3),
        text_of((1, 0), USUAL.address, (2, 16, 0)),
        text_of((1, 0), USUAL.address, (0, 28, 0)),
        text_of((1, 0), USUAL.address, (1, 16, 0)),
        text_of((1, 0), USUAL.address, (0, 16, USUAL.size // SLOT)),
        text_of((1, 0), LARGE.address, (0, 16, LARGE.size // SLOT)),
    ],
)
def test_a_record_that_is_no_listener_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedError):
        listener_of(Record(Kind.ADD_LISTENER, text=text))


def test_the_last_slot_of_a_book_is_in_it() -> None:
    for place in PLACES:
        text = text_of((1, 0), place.address, (0, 16, place.size // SLOT - 1))
        (one,) = listener_of(Record(Kind.ADD_LISTENER, text=text)).route_ipv4
        assert one.where.value == place.address + place.size - SLOT


def test_the_order_to_close_says_where_and_whether_to_reset() -> None:
    listener = Listener(12, (), (), 5)
    assert remove(listener, reset_flows=True) == Record(Kind.REMOVE_LISTENER, 1, 5, 12)
    assert remove(listener, reset_flows=False) == Record(Kind.REMOVE_LISTENER, 0, 5, 12)


# --- the engine ---


def with_listener(relay: Relay, index: int = 9) -> int:
    """A listener that comes at run time: its place."""
    place = relay.places[0]
    relay.kernel.give(place)
    relay.engine.add_listener(Listener(place, SINGLE, SINGLE, index))
    relay.settle()
    return place


@pytest.mark.parametrize("generous", [True, False])
def test_a_listener_that_comes_is_accepted_on_once_there_are_sockets(generous: bool) -> None:
    relay = Relay(generous=generous, late=1)
    place = with_listener(relay)
    assert isinstance(relay.kernel.table[place], Listening)
    relay.kernel.behaviour[ONE] = "at once"
    relay.kernel.dial(place)
    if not generous:
        relay.settle()
        assert relay.counted("accepted") == 0
        relay.generous = True
    relay.settle()
    assert relay.counted("connected") == 1


def test_a_listener_that_was_removed_before_the_relay_asked_for_it_is_not_accepted_on() -> None:
    """Which gets it /dev/null; that it is removed it is told after that."""
    relay = Relay(late=1)
    place = relay.places[0]
    relay.engine.add_listener(Listener(place, SINGLE, SINGLE, 9))
    relay.settle()
    assert place not in relay.engine.listeners
    relay.engine.remove_listener(9, place, reset_flows=True)
    relay.settle()
    assert not isinstance(relay.kernel.table[place], Listening)


def test_a_place_is_used_again() -> None:
    relay = Relay(pool=8, late=1)
    for index in (9, 10, 11):
        place = with_listener(relay, index)
        relay.kernel.dial(place)
        relay.settle()
        relay.engine.remove_listener(index, place, reset_flows=False)
        relay.settle()
    assert relay.counted("connected") == 3


@pytest.mark.parametrize("reset", [True, False])
def test_flows_of_a_listener_that_goes_go_on_or_are_reset(reset: bool) -> None:
    relay = Relay(pool=8)
    client, server = relay.connect(single=True)
    other, other_server = relay.connect()
    relay.engine.remove_listener(8, relay.single, reset_flows=reset)
    relay.settle()
    assert not isinstance(relay.kernel.table[relay.single], Listening)
    assert client.saw == server.saw == ("reset" if reset else "open")
    assert relay.counted("reset") == (1 if reset else 0)
    other.send(b"goes on")
    relay.settle()
    assert other_server.got == b"goes on"


def test_a_flow_that_is_still_connecting_is_reset_too() -> None:
    relay = Relay(pool=8)
    relay.kernel.behaviour[ONE] = "pend"
    client = relay.kernel.dial(relay.single)
    relay.settle()
    relay.engine.remove_listener(8, relay.single, reset_flows=True)
    relay.settle()
    assert client.saw == "reset"
    assert relay.engine.connecting == {}


def test_a_listener_that_is_not_there_is_nothing_to_remove() -> None:
    """But it is asked for, as often as a record says so: the monitor waits for that."""
    relay = Relay(late=1)
    relay.kernel.calls.clear()
    relay.engine.remove_listener(77, relay.places[0], reset_flows=True)
    relay.settle()
    assert relay.kernel.calls == ["take_listener"]
    assert relay.kernel.count(Listening) == 2


def test_places_are_counted_whether_there_is_a_listener_or_not() -> None:
    assert Relay(late=1).engine._free() == Relay().engine._free() - 1
    relay = Relay(late=1)
    before = relay.engine._free()
    place = with_listener(relay)
    assert relay.engine._free() == before
    relay.engine.remove_listener(9, place, reset_flows=False)
    assert relay.engine._free() == before


def test_a_listener_that_was_shut_down_is_let_go_and_the_others_serve_on() -> None:
    """Its monitor ends it at once, and says so after that."""
    for shared in (True, False):
        relay = Relay(FakeKernel(), shared=shared, pool=8)
        relay.kernel.dial(relay.single)
        relay.kernel.inject("accept", errno.EINVAL)
        relay.settle()
        assert relay.single not in relay.engine.listeners
        assert relay.engine.accepting
        client, server = relay.connect()
        client.send(b"served")
        relay.settle()
        assert server.got == b"served"
        relay.engine.remove_listener(8, relay.single, reset_flows=False)
        relay.settle()
