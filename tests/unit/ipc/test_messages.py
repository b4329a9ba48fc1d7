# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may say what to whom, and with what in it: anything else is refused on receipt."""

from __future__ import annotations

import os
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.ipc.channel import Channel
from hardsplice.ipc.messages import (
    FDS_LIMIT,
    FOLDER_MAKER,
    LAUNCHER,
    MAPPER,
    MESSAGES,
    Kind,
    MalformedError,
    Message,
    Record,
    check,
    on,
)
from hardsplice.model.roles import (
    GUARD,
    HOST,
    INBOUND_RELAY,
    INIT,
    NAMESPACE,
    OUTBOUND_RELAY,
    ROLES,
)

PARTIES = (*ROLES, LAUNCHER, FOLDER_MAKER, MAPPER)
FIELDS: dict[str, dict[str, int | bytes]] = {
    "small": {"small": 1},
    "index": {"index": 1},
    "detail": {"detail": -1},
    "text": {"text": b"x"},
}
messages = pytest.mark.parametrize(
    ("kind", "message"), MESSAGES.items(), ids=[kind.name for kind in MESSAGES]
)
ways = st.sampled_from(list(permutations(PARTIES, 2)))


def of(kind: int, message: Message, **more: int | bytes) -> Record:
    """A record of that kind, with as few descriptors beside it as there may be."""
    return Record(kind, fds=(3,) * message.fds[0], **more)  # type: ignore[arg-type]


def test_every_kind_is_in_the_table_and_has_a_way() -> None:
    assert set(MESSAGES) == set(Kind)
    for message in MESSAGES.values():
        assert message.ways
        assert set(message.carries.split()) <= set(FIELDS)
        for sender, receiver in message.ways:
            assert {sender, receiver} <= set(PARTIES)


@given(ways, st.integers(0, 255))
def test_a_kind_that_is_not_the_sender_s_is_refused(way: tuple[str, str], kind: int) -> None:
    message = next((one for number, one in MESSAGES.items() if number == kind), None)
    if message is not None and way in message.ways:
        check(of(kind, message), on(*way))
    else:
        with pytest.raises(MalformedError, match="not its to send"):
            check(Record(kind), on(*way))


@messages
def test_what_a_kind_does_not_carry_is_refused(kind: Kind, message: Message) -> None:
    due = on(*message.ways[0])
    for name, value in FIELDS.items():
        record = of(kind, message, **value)
        if name in message.carries.split():
            check(record, due)
        else:
            with pytest.raises(MalformedError, match="carries more"):
                check(record, due)


@messages
@given(number=st.integers(0, FDS_LIMIT))
def test_descriptors_come_beside_what_has_them_only(
    kind: Kind, message: Message, number: int
) -> None:
    record, due = Record(kind, fds=(3,) * number), on(*message.ways[0])
    fewest, most = message.fds
    if fewest <= number <= most:
        check(record, due)
    else:
        with pytest.raises(MalformedError, match="descriptors beside"):
            check(record, due)


@pytest.mark.parametrize("relay", [INBOUND_RELAY, OUTBOUND_RELAY], ids=lambda role: role.name)
def test_a_relay_speaks_to_its_monitor_and_nobody_else(relay: object) -> None:
    assert relay in (INBOUND_RELAY, OUTBOUND_RELAY)
    name = INBOUND_RELAY.name if relay is INBOUND_RELAY else OUTBOUND_RELAY.name
    heard_by = {other for other in PARTIES if on(name, other)}
    assert heard_by == {ROLES[name].parent}
    assert set(on(name, ROLES[name].parent)) == {
        Kind.READY, Kind.READY_PLACING, Kind.FATAL, Kind.WANT_SOCKETS, Kind.ACCEPT_PAUSED,
        Kind.NOTE, Kind.FLOW, Kind.PONG,
    }  # fmt: skip


def test_who_may_have_been_taken_over_says_no_more_than_this_to_the_host_monitor() -> None:
    assert set(on(NAMESPACE.name, HOST.name)) == {
        Kind.READY, Kind.FATAL, Kind.NOTE, Kind.NOTE_OF_UDP, Kind.FLOW, Kind.PONG,
        Kind.LISTENERS, Kind.BOUND, Kind.OPENED, Kind.SERVED, Kind.CLOSED,
    }  # fmt: skip
    assert set(on(INIT.name, HOST.name)) == {
        Kind.READY, Kind.FATAL, Kind.NAMESPACES, Kind.PASSED_ON, Kind.STOPPED, Kind.CHECKED,
        Kind.EXITED,
    }  # fmt: skip
    assert set(on(GUARD.name, HOST.name)) == {
        Kind.READY, Kind.FATAL, Kind.WANTS_MAPS, Kind.STARTED,
    }  # fmt: skip
    assert {kind for kind, one in MESSAGES.items() if one.fds[1]} & set(
        on(NAMESPACE.name, HOST.name)
    ) == {Kind.LISTENERS, Kind.BOUND, Kind.OPENED}


def test_both_relays_hear_the_same() -> None:
    assert on(HOST.name, OUTBOUND_RELAY.name) == on(NAMESPACE.name, INBOUND_RELAY.name)


@pytest.mark.parametrize(
    "record",
    [
        Record(Kind.SOCKETS),
        Record(Kind.ACCEPT_PAUSED, 1),
        Record(Kind.ACCEPT_PAUSED, text=b"x"),
        Record(200),
    ],
)
def test_it_is_checked_on_receipt(record: Record) -> None:
    ours, theirs = Channel.pair(HOST.name, OUTBOUND_RELAY.name)
    theirs.send(record)
    theirs.send(Record(Kind.ACCEPT_PAUSED))
    with pytest.raises(MalformedError):
        ours.receive()
    assert ours.receive() == Record(Kind.ACCEPT_PAUSED)
    ours.close()
    theirs.close()


def test_what_comes_beside_a_record_that_is_refused_is_closed() -> None:
    ours, theirs = Channel.pair(HOST.name, OUTBOUND_RELAY.name)
    read, write = os.pipe2(os.O_NONBLOCK)
    theirs.send(Record(Kind.ACCEPT_PAUSED, fds=(write,)))
    os.close(write)
    with pytest.raises(MalformedError, match="descriptors beside"):
        ours.receive()
    assert os.read(read, 1) == b"", "somebody holds the other end still"
    os.close(read)
    ours.close()
    theirs.close()
