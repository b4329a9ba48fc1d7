# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay's books: a row for each flow, its bytes, and how it ended."""

from __future__ import annotations

import errno

import pytest

from hardsplice.relay.targets import end_of_attempt
from hardsplice.telemetry.flow_table import End, State
from tests.unit.relay.fake_kernel import CLIENT
from tests.unit.relay.fake_relay import FOUR, ONE, SIX, Relay


def states(relay: Relay) -> list[State]:
    assert relay.stats.flows is not None
    return [row.state for row in relay.stats.flows]


def test_a_row_is_there_from_the_moment_that_its_client_is_accepted() -> None:
    relay = Relay(rows=8)
    relay.kernel.behaviour[ONE] = "pend"
    relay.kernel.dial(relay.single)
    relay.settle()
    assert relay.stats.flows is not None
    (row,) = relay.stats.flows
    assert (row.state, row.port_id, row.client) == (State.CONNECTING, 8, CLIENT)
    relay.kernel.answer(relay.kernel.pending[0])
    relay.settle()
    assert states(relay) == [State.ESTABLISHED]


def test_fin_both_ways() -> None:
    relay = Relay(rows=8)
    client, server = relay.connect()
    assert states(relay) == [State.ESTABLISHED]
    client.send(b"there")
    server.send(b"and back")
    client.finish()
    relay.settle()
    assert states(relay) == [State.HALF_CLOSED]
    server.finish()
    relay.settle()
    assert states(relay) == []
    (ended,) = relay.ends
    assert ended.end is End.FIN
    assert (ended.flow.bytes_to_target, ended.flow.bytes_to_client) == (5, 8)
    assert (ended.flow.port_id, ended.flow.client) == (7, CLIENT)


@pytest.mark.parametrize(
    ("who", "end"), [(0, End.CLIENT_RESET), (1, End.TARGET_RESET)], ids=["client", "target"]
)
def test_who_reset_it(who: int, end: End) -> None:
    relay = Relay(rows=8)
    pair = relay.connect()
    pair[who].send(b"last words")
    pair[who].reset()
    relay.wait(1)
    assert [ended.end for ended in relay.ends] == [end]
    counted = (relay.counted("bytes_to_target"), relay.counted("bytes_to_client"))
    row = relay.ends[0].flow
    assert counted == (row.bytes_to_target, row.bytes_to_client)


@pytest.mark.parametrize(
    ("how", "end"),
    [("refuse", End.REFUSED), ("refuse at once", End.REFUSED), ("pend", End.TIMEOUT)],
)
def test_a_target_that_is_not_reached(how: str, end: End) -> None:
    relay = Relay(rows=8)
    relay.kernel.behaviour.update({FOUR: how, SIX: how, ONE: how})
    relay.kernel.dial(relay.dual)
    relay.wait(60)
    assert [ended.end for ended in relay.ends] == [end]
    assert relay.stats.connect_latency().counts[-1] == 0


def test_a_client_that_goes_before_its_target_answers() -> None:
    relay = Relay(rows=8)
    relay.kernel.behaviour[ONE] = "pend"
    client = relay.kernel.dial(relay.single)
    relay.settle()
    client.reset()
    relay.settle()
    assert [ended.end for ended in relay.ends] == [End.CLIENT_RESET]


def test_an_error_of_our_own() -> None:
    relay = Relay(rows=8)
    client, _ = relay.connect()
    relay.kernel.inject("splice in", errno.EINVAL)
    client.send(b"x")
    relay.settle()
    assert [ended.end for ended in relay.ends] == [End.ERROR]


@pytest.mark.parametrize(
    ("code", "end"),
    [
        (errno.ECONNREFUSED, End.REFUSED),
        (errno.EHOSTUNREACH, End.REFUSED),
        (errno.EACCES, End.REFUSED),
        (errno.ETIMEDOUT, End.TIMEOUT),
        (errno.EADDRNOTAVAIL, End.LIMIT),
        (errno.ENOMEM, End.LIMIT),
    ],
)
def test_what_an_attempt_s_error_says(code: int, end: End) -> None:
    assert end_of_attempt(code) is end


def test_flows_beyond_the_table_are_served_and_counted_all_the_same() -> None:
    relay = Relay(rows=1)
    pairs = [relay.connect() for _ in range(3)]
    for client, server in pairs:
        client.send(b"abc")
        relay.settle()
        assert server.got == b"abc"
    assert len(states(relay)) == 1
    assert relay.counted("unlisted") == 2
    assert relay.counted("bytes_to_target") == 9
    for client, server in pairs:
        client.finish()
        server.finish()
    relay.settle()
    assert [ended.flow.bytes_to_target for ended in relay.ends] == [3]
    assert relay.counted("bytes_to_target") == 9
    relay.connect()
    assert len(states(relay)) == 1, "the row is used again"


def test_how_long_a_client_waited_is_counted() -> None:
    relay = Relay(rows=8)
    for _ in range(3):
        relay.connect()
    assert relay.stats.connect_latency().counts[-1] == 3
