# SPDX-License-Identifier: GPL-2.0-or-later
"""Records between processes: they arrive whole, and nonsense harms nobody but its sender."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.ipc.channel import Channel, close_all
from hardsplice.ipc.messages import (
    FDS_LIMIT,
    TEXT_LIMIT,
    Kind,
    MalformedError,
    Record,
    decode,
    encode,
)
from hardsplice.model.roles import HOST, OUTBOUND_RELAY
from tests.support.descriptors import as_socket, open_descriptors

Pair = tuple[Channel, Channel]
HEADER = 12  # bytes

records = st.builds(
    Record,
    kind=st.integers(0, 255),
    small=st.integers(0, 255),
    index=st.integers(0, 2**32 - 1),
    detail=st.integers(-(2**31), 2**31 - 1),
    text=st.binary(max_size=TEXT_LIMIT),
    fds=st.just(()),
)


@pytest.fixture
def pair() -> Iterator[Pair]:
    before = open_descriptors()
    ends = Channel.pair(OUTBOUND_RELAY.name, HOST.name)
    yield ends
    for end in ends:
        end.close()
    assert open_descriptors() == before, "a descriptor has leaked"


def raw(channel: Channel, packet: bytes, fds: list[int] | None = None) -> None:
    """Send what no Channel would."""
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    with as_socket(channel) as end:
        end.sendmsg((packet,), beside)


# --- packets ---


@given(records)
def test_a_record_survives_its_packet(record: Record) -> None:
    assert decode(encode(record)) == record


@given(records)
def test_a_packet_is_a_header_and_the_text(record: Record) -> None:
    packet = encode(record)
    assert len(packet) == HEADER + len(record.text)
    assert packet.endswith(record.text)


def test_a_text_is_cut_where_it_is_too_long() -> None:
    record = Record(Kind.FATAL, text=b"x" * (TEXT_LIMIT + 1))
    assert decode(encode(record)).text == b"x" * TEXT_LIMIT


@given(st.binary(max_size=64))
def test_any_packet_is_a_record_or_malformed(packet: bytes) -> None:
    try:
        record = decode(packet)
    except MalformedError:
        return
    assert encode(record) == packet, "there is one packet for a record"


@pytest.mark.parametrize("size", range(HEADER))
def test_less_than_a_header_is_malformed(size: int) -> None:
    with pytest.raises(MalformedError):
        decode(bytes(size))


@pytest.mark.parametrize("change", [-1, 1])
@given(record=records)
def test_a_text_of_another_length_than_it_says_is_malformed(record: Record, change: int) -> None:
    packet = encode(record)
    packet = packet[:-1] if change < 0 and record.text else packet + b"x"
    with pytest.raises(MalformedError):
        decode(packet)


# --- channels ---


def test_records_keep_their_bounds_and_order(pair: Pair) -> None:
    said = [Record(Kind.NOTE, number, text=b"t" * number) for number in range(5)]
    for record in said:
        assert pair[0].send(record)
    assert [pair[1].receive() for _ in said] == said


def test_descriptors_arrive_open_and_close_on_exec(pair: Pair) -> None:
    read, write = os.pipe()
    pair[1].send(Record(Kind.SOCKETS, fds=(write,)))
    os.close(write)
    record = pair[0].receive()
    assert record is not None
    (copy,) = record.fds
    assert not os.get_inheritable(copy)
    os.write(copy, b"through the copy")
    assert os.read(read, 100) == b"through the copy"
    close_all([read, copy])


def test_as_many_descriptors_as_are_allowed_arrive(pair: Pair) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    pair[1].send(Record(Kind.SOCKETS, fds=(null,) * FDS_LIMIT))
    record = pair[0].receive()
    assert record is not None
    assert len(set(record.fds)) == FDS_LIMIT
    close_all([null, *record.fds])


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"short",
        bytes(HEADER) + b"a text that nobody announced",
        bytes(HEADER + TEXT_LIMIT + 1),
    ],
    ids=["empty", "short", "unannounced text", "too long"],
)
def test_what_comes_beside_nonsense_is_closed(pair: Pair, packet: bytes) -> None:
    """Whoever can make a receiver keep descriptors can starve it of them."""
    null = os.open(os.devnull, os.O_RDONLY)
    before = open_descriptors()
    raw(pair[0], packet, [null] * 5)
    with pytest.raises(MalformedError):
        pair[1].receive()
    assert open_descriptors() == before
    os.close(null)


def test_a_packet_that_is_too_long_is_malformed_though_its_start_would_do(pair: Pair) -> None:
    header = struct.pack("=BBHiI", Kind.NOTE, 0, TEXT_LIMIT, 0, 0)
    raw(pair[0], header + bytes(TEXT_LIMIT))
    assert pair[1].receive() == Record(Kind.NOTE, text=bytes(TEXT_LIMIT))
    raw(pair[0], header + bytes(TEXT_LIMIT + 1))
    with pytest.raises(MalformedError):
        pair[1].receive()


def test_the_end_is_none_after_all_that_was_said(pair: Pair) -> None:
    pair[0].send(Record(Kind.FATAL, text=b"last words"))
    pair[0].close()
    last = pair[1].receive()
    assert last is not None
    assert last.text == b"last words"
    assert pair[1].receive() is None
    assert pair[1].receive(wait=False) is None


def test_nothing_to_receive_is_said_at_once(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        pair[1].receive(wait=False)


def test_a_receiver_that_is_gone_or_full_is_no_error(pair: Pair) -> None:
    record = Record(Kind.NOTE, text=b"x" * TEXT_LIMIT)
    sent = 0
    while pair[0].send(record, wait=False):
        sent += 1
        assert sent < 100_000
    assert sent > 10
    pair[1].close()
    assert not pair[0].send(record)


def test_a_channel_is_moved_to_the_descriptor_that_policies_name(pair: Pair) -> None:
    place = os.open(os.devnull, os.O_RDONLY)
    old = pair[0].fileno()
    pair[0].move_to(place)
    assert pair[0].fileno() == place
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(old)
    assert not os.get_inheritable(place)
    pair[0].move_to(place)
    pair[0].send(Record(Kind.READY))
    assert pair[1].receive() == Record(Kind.READY)


@given(st.sets(st.integers(0, 40), max_size=20))
def test_closing_many_closes_these_and_no_others(places: set[int]) -> None:
    base = 700
    null = os.open(os.devnull, os.O_RDONLY)
    wanted = {base + place for place in places}
    everything = range(base, base + 41)
    for fd in everything:
        os.dup2(null, fd)
    close_all(list(wanted))
    left = set()
    for fd in everything:
        with contextlib.suppress(OSError):
            os.close(fd)
            left.add(fd)
    os.close(null)
    assert left == set(everything) - wanted


def test_ends_are_close_on_exec(pair: Pair) -> None:
    assert not any(os.get_inheritable(end.fileno()) for end in pair)


def test_the_last_words_of_one_who_did_not_read_all_are_heard() -> None:
    ours, theirs = Channel.pair(HOST.name, OUTBOUND_RELAY.name)
    ours.send(Record(Kind.PING))
    theirs.send(Record(Kind.FATAL, text=b"so long"))
    theirs.close()
    last = ours.receive(wait=False)
    assert last is not None
    assert (last.kind, last.text) == (Kind.FATAL, b"so long")
    assert ours.receive(wait=False) is None
    ours.close()
