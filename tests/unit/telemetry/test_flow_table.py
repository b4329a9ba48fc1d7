# SPDX-License-Identifier: GPL-2.0-or-later
"""The flow table: what a relay writes is what monitors read; what makes no sense hurts nobody."""

from __future__ import annotations

import math
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hardsplice.kernel import socketcalls
from hardsplice.model.protocol import Protocol
from hardsplice.telemetry.counters import COUNTERS, KEPT, LATENCY_BOUNDS, Stats, count_latency
from hardsplice.telemetry.flow_table import (
    RECORD_SIZE,
    WORDS_A_ROW,
    End,
    FlowRow,
    FlowTable,
    InvalidRowError,
    State,
    read_record,
)
from tests.support.tables import empty

TCP = Protocol.TCP.number
CLIENT = socketcalls.endpoint(socketcalls.sockaddr(IPv4Address("192.0.2.1"), 40000))
TARGET = socketcalls.endpoint(socketcalls.sockaddr(IPv6Address("2001:db8::1"), 443))
OTHER = socketcalls.endpoint(socketcalls.sockaddr(IPv4Address("127.0.0.1"), 80))


def test_a_row_says_what_was_written() -> None:
    stats, table = empty()
    at = table.positions()[1]
    table.open(at, 7, TCP, CLIENT, OTHER, 12.5)
    assert [row.state for row in table] == [State.CONNECTING]
    table.aim(at, TARGET)
    table.mark(at, State.ESTABLISHED)
    stats.count[at], stats.count[at + 1] = 17, 2**63
    assert list(table) == [
        FlowRow(
            port_id=7,
            protocol=Protocol.TCP,
            client=(IPv4Address("192.0.2.1"), 40000),
            target=(IPv6Address("2001:db8::1"), 443),
            started=12.5,
            bytes_to_target=17,
            bytes_to_client=2**63,
            state=State.ESTABLISHED,
        )
    ]


def test_an_end_carries_the_row_and_the_time() -> None:
    stats, table = empty()
    at = table.positions()[0]
    table.open(at, 7, TCP, CLIENT, TARGET, 10.0)
    stats.count[at] = 5
    ended = read_record(End.CLIENT_RESET, table.close(at, stats.count, 12.5))
    assert (ended.end, ended.seconds, ended.flow.bytes_to_target) == (End.CLIENT_RESET, 2.5, 5)
    assert list(table) == []


def test_bytes_are_counted_once_wherever_they_stand() -> None:
    stats, table = empty()
    first, second = table.positions()[:2]
    for at in (first, second):
        table.open(at, 0, TCP, CLIENT, TARGET, 0.0)
    stats.count[0] = 1
    stats.count[first] = 10
    stats.count[second + 1] = 100
    before = stats.snapshot()
    assert (before["bytes_to_target"], before["bytes_to_client"]) == (11, 100)
    table.close(first, stats.count, 1.0)
    table.close(second, stats.count, 1.0)
    assert stats.snapshot() == before


def test_what_a_dead_relay_left_is_closed_and_the_rows_are_free_again() -> None:
    stats, table = empty()
    for at in table.positions():
        table.open(at, 0, TCP, CLIENT, TARGET, 0.0)
        stats.count[at] = 3
    rows = list(table.close_all(stats.count, 1.0))
    assert len(rows) == table.capacity
    assert stats.snapshot()["bytes_to_target"] == 3 * table.capacity
    assert list(table) == []
    assert list(table.close_all(stats.count, 2.0)) == []


def test_without_a_table_there_is_no_memory_for_it() -> None:
    assert Stats().flows is None
    assert len(Stats(1).count) - len(Stats().count) == FlowTable.HEAD_WORDS + WORDS_A_ROW
    assert set(Stats().snapshot()) == {*COUNTERS, *KEPT}


# --- a hostile relay ---


@given(st.binary(min_size=8 * (2 + 3 * WORDS_A_ROW), max_size=8 * (2 + 3 * WORDS_A_ROW)))
@example(b"\xff" * 8 * (2 + 3 * WORDS_A_ROW))
@example((struct.pack("=QQ", 1, 3) + struct.pack("=QQII", 2**64 - 1, 1, 2, 2)).ljust(232, b"\xff"))
def test_whatever_stands_in_the_memory_monitors_can_live_with_it(noise: bytes) -> None:
    stats, table = empty(3)
    first = len(stats.count) - len(noise) // 8
    stats.count[first:] = memoryview(noise).cast("Q")
    stats.count[0] = 2**64 - 1
    for row in table:
        assert 0 <= row.started < 2**40
        assert row.state in (State.CONNECTING, State.ESTABLISHED, State.HALF_CLOSED)
    stats.snapshot()
    for record in table.close_all(stats.count, 1.0):
        if record is not None:
            read_record(End.RELAY_DIED, record)
    assert list(table) == []
    at = table.positions()[0]
    table.open(at, 0, TCP, CLIENT, TARGET, 0.0)
    assert len(list(table)) == 1, "the next relay's table is in order"


@given(st.integers(0, 255), st.binary(max_size=RECORD_SIZE + 1))
def test_a_record_that_makes_no_sense_is_refused(end: int, text: bytes) -> None:
    try:
        ended = read_record(end, text)
    except InvalidRowError:
        return
    assert math.isfinite(ended.seconds)
    assert ended.seconds >= 0


def test_each_part_of_a_record_is_looked_at() -> None:
    stats, table = empty()
    at = table.positions()[0]
    table.open(at, 0, TCP, CLIENT, TARGET, 0.0)
    good = table.close(at, stats.count, 1.0)
    assert read_record(End.FIN, good).end is End.FIN
    bad_state = good[:16] + struct.pack("=I", 9) + good[20:]
    free = good[:16] + struct.pack("=I", 0) + good[20:]
    bad_start = good[:32] + struct.pack("=d", math.nan) + good[40:]
    endless = good[:-8] + struct.pack("=d", math.inf)
    too_long = good[:-8] + struct.pack("=d", 1e300)
    before_time, after_time = (
        good[:32] + struct.pack("=d", start) + good[40:] for start in (-1.0, 1e300)
    )
    for end, text in (
        (End.FIN, too_long), (End.FIN, before_time), (End.FIN, after_time),
        (99, good), (End.FIN, good[:-1]), (End.FIN, good + b"x"), (End.FIN, bad_state),
        (End.FIN, free), (End.FIN, bad_start), (End.FIN, endless),
    ):  # fmt: skip
        with pytest.raises(InvalidRowError):
            read_record(end, text)


# --- the histogram ---


def test_latencies_are_counted_up_to_each_bound_and_in_all() -> None:
    stats = Stats(1)
    for seconds in (0.0, LATENCY_BOUNDS[0], 0.0002, 5.0, 60.0):
        count_latency(stats.count, seconds)
    latency = stats.connect_latency()
    assert latency.counts[:2] == (2, 3)
    assert latency.counts[-2:] == (4, 5)
    assert len(latency.counts) == len(LATENCY_BOUNDS) + 1
    assert latency.seconds == pytest.approx(65.0003)


def test_flows_are_counted_by_state() -> None:
    stats = Stats(8)
    assert stats.flows is not None
    assert stats.flows.states() == {"connecting": 0, "established": 0, "half_closed": 0}
    ends = (bytes(16), 1), (bytes(16), 2)
    positions = list(stats.flows.positions())
    for at, state in zip(positions, (State.CONNECTING, *[State.ESTABLISHED] * 2), strict=False):
        stats.flows.open(at, 0, TCP, *ends, 1.0)
        stats.flows.mark(at, state)
    assert stats.flows.states() == {"connecting": 1, "established": 2, "half_closed": 0}
    stats.flows.mark(positions[0], State.HALF_CLOSED)
    stats.flows.close(positions[1], stats.count, 2.0)
    assert stats.flows.states() == {"connecting": 0, "established": 1, "half_closed": 1}
    stats.count[positions[2] + 2] = 77  # what a relay that was taken over may write
    assert stats.flows.states() == {"connecting": 0, "established": 0, "half_closed": 1}


@pytest.mark.parametrize("protocol", Protocol)
def test_a_row_says_its_protocol_and_so_does_its_end(protocol: Protocol) -> None:
    stats, table = empty()
    at = table.positions()[0]
    table.open(at, 1, protocol.number, CLIENT, TARGET, 1.0)
    assert [row.protocol for row in table] == [protocol]
    text = table.close(at, stats.count, 2.0)
    assert read_record(End.FIN, text).flow.protocol is protocol


def test_a_row_of_no_known_protocol_is_passed_over() -> None:
    stats, table = empty()
    at = table.positions()[0]
    table.open(at, 1, 1, CLIENT, TARGET, 1.0)
    assert list(table) == []
    with pytest.raises(InvalidRowError):
        read_record(End.FIN, table.close(at, stats.count, 2.0))
