# SPDX-License-Identifier: GPL-2.0-or-later
"""What a monitor tells its relays: listeners in records, and what an engine does with them."""

from __future__ import annotations

import contextlib
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.channel import Kind, Malformed, Record, decode, encode
from hardsplice.relay.engine import Listener
from hardsplice.relay.orders import close, listener_of, serve
from tests.support.fake_kernel import FakeKernel
from tests.support.fake_relay import ONE, SINGLE, Relay
from tests.support.fake_tcp import Listening

targets = st.tuples(st.just(0), st.binary(min_size=16, max_size=16)) | st.tuples(
    st.just(1), st.binary(min_size=28, max_size=28)
)
plans = st.lists(targets, max_size=2).map(tuple)


@given(plans, plans, st.integers(0, 2**32 - 1))
def test_a_listener_arrives_as_it_was_sent(
    of_ipv4: tuple[tuple[int, bytes], ...], of_ipv6: tuple[tuple[int, bytes], ...], index: int
) -> None:
    sent = Listener(9, of_ipv4, of_ipv6, index)
    record = serve(sent)
    got = listener_of(decode(encode(record), (9,)))
    assert got == sent
    assert (got.plan_ipv4 is got.plan_ipv6) == (of_ipv4 == of_ipv6)


@given(st.binary(max_size=130), st.integers(0, 3))
def test_any_bytes_are_a_listener_or_malformed(text: bytes, descriptors: int) -> None:
    record = Record(Kind.SERVE, text=text, fds=tuple(range(descriptors)))
    with contextlib.suppress(Malformed):
        made = listener_of(record)
        assert descriptors == 1
        for plan in (made.plan_ipv4, made.plan_ipv6):
            assert all(len(sockaddr) == (16, 28)[family] for family, sockaddr in plan)


def test_the_order_to_close_says_whether_to_reset() -> None:
    assert close(5, reset_flows=True) == Record(Kind.CLOSE, 1, 5)
    assert close(5, reset_flows=False) == Record(Kind.CLOSE, 0, 5)


# --- the engine ---


def with_listener(relay: Relay, index: int = 9) -> int:
    fd = relay.kernel.listen()
    relay.engine.add_listener(Listener(fd, SINGLE, SINGLE, index))
    relay.settle()
    return fd


@pytest.mark.parametrize("generous", [True, False])
def test_a_listener_that_comes_is_accepted_on_once_there_are_sockets(generous: bool) -> None:
    relay = Relay(generous=generous)
    fd = with_listener(relay)
    relay.kernel.behaviour[ONE] = "at once"
    relay.kernel.dial(fd)
    if not generous:
        relay.settle()
        assert relay.counted("accepted") == 0
        relay.generous = True
    relay.settle()
    assert relay.counted("connected") == 1


@pytest.mark.parametrize("reset", [True, False])
def test_flows_of_a_listener_that_goes_go_on_or_are_reset(reset: bool) -> None:
    relay = Relay(pool=8)
    client, server = relay.connect(single=True)
    other, other_server = relay.connect()
    relay.engine.remove_listener(8, reset_flows=reset)
    relay.settle()
    assert relay.single not in relay.kernel.table
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
    relay.engine.remove_listener(8, reset_flows=True)
    relay.settle()
    assert client.saw == "reset"
    assert relay.engine.connecting == {}


def test_a_listener_that_is_not_there_is_nothing_to_remove() -> None:
    relay = Relay()
    relay.engine.remove_listener(77, reset_flows=True)
    relay.settle()
    assert relay.kernel.count(Listening) == 2


def test_descriptors_of_listeners_are_counted() -> None:
    relay = Relay()
    before = relay.engine._free()
    with_listener(relay)
    assert relay.engine._free() == before - 1
    relay.engine.remove_listener(9, reset_flows=False)
    assert relay.engine._free() == before


def test_a_listener_that_was_shut_down_is_let_go_and_the_others_serve_on() -> None:
    """Its monitor ends it at once, and says so after that."""
    for shared in (True, False):
        relay = Relay(FakeKernel(), shared=shared, pool=8)
        relay.kernel.dial(relay.single)
        relay.kernel.inject("accept", errno.EINVAL)
        relay.settle()
        assert relay.single not in relay.kernel.table
        assert relay.engine.accepting
        client, server = relay.connect()
        client.send(b"served")
        relay.settle()
        assert server.got == b"served"
        relay.engine.remove_listener(8, reset_flows=False)
        relay.settle()
