# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract's part on connections that break, or that no server has accepted yet.

As in contract.py, each group says what is acceptable before the code says how that is seen.
"""

from __future__ import annotations

from typing import Literal

from tests.relay.contract import SIDES, Side, case, sides
from tests.support.paths import Lane
from tests.support.stream import (
    Stream,
    Violation,
    expect,
    expect_broken,
    expect_end,
    fill,
    finish,
    notices_reset,
    receive,
    reset,
    send,
)

# --- resets ---
#
# Acceptable: within a second the other side sees the connection broken (ECONNRESET, or EPIPE where
# it had seen the end of file already). What had reached it before is delivered first; what had not
# may be lost, as with plain TCP. Not acceptable: a clean end, no news, foreign bytes afterwards.


def reset_fresh(lane: Lane, by: Side) -> None:
    """Before any data."""
    one, other = sides(lane, by)
    reset(one)
    notices_reset(other)
    expect_end(other, Stream(), 0, "reset")


def reset_after_exchange(lane: Lane, by: Side) -> None:
    """After data went both ways and arrived."""
    one, other = sides(lane, by)
    there, back = Stream(), Stream()
    send(one, there, 1000)
    expect(other, there, 1000)
    send(other, back, 1000)
    expect(one, back, 1000)
    reset(one)
    notices_reset(other)
    expect_end(other, there, 0, "reset")


def reset_behind_data(lane: Lane, by: Side, size: int) -> None:
    """Data, and the reset right behind it: the data comes first, all of it."""
    one, other = sides(lane, by)
    stream = Stream()
    send(one, stream, size)
    reset(one)
    notices_reset(other)
    expect_end(other, stream, size, "reset")


def reset_while_flooding(lane: Lane, by: Side) -> None:
    """The resetting side has filled the path, the other reads nothing: it still learns of it."""
    one, other = sides(lane, by)
    stream = Stream()
    sent = fill(one, stream)
    reset(one)
    notices_reset(other)
    got = receive(other, stream)
    if got.end != "reset" or got.count > sent:
        raise Violation(f"{got.count} of {sent} bytes and then {got.end}")


def reset_while_flooded(lane: Lane, by: Side) -> None:
    """The other side has filled the path and now waits to send more."""
    one, other = sides(lane, by)
    fill(other, Stream())
    reset(one)
    expect_broken(other)


def reset_by_unread_data(lane: Lane, by: Side) -> None:
    """A socket closed with bytes in it that nobody read: the kernel makes that a reset."""
    one, other = sides(lane, by)
    stream = Stream()
    send(other, stream, 1000)
    expect(one, stream, 999)
    one.close()
    expect_broken(other)


def reset_after_own_fin(lane: Lane, by: Side) -> None:
    """The side that resets had finished: the other, idle and past end of file, learns of it."""
    one, other = sides(lane, by)
    stream = Stream()
    send(one, stream, 100)
    finish(one)
    expect_end(other, stream, 100)
    reset(one)
    notices_reset(other)


def reset_after_own_fin_flooded(lane: Lane, by: Side) -> None:
    """As before, and the other side was sending all it could."""
    one, other = sides(lane, by)
    finish(one)
    expect_end(other, Stream(), 0)
    fill(other, Stream())
    reset(one)
    expect_broken(other)


def reset_after_others_fin(lane: Lane, by: Side) -> None:
    """The other side had finished sending and waits for an answer, which will not come."""
    one, other = sides(lane, by)
    stream = Stream()
    send(other, stream, 100)
    finish(other)
    expect_end(one, stream, 100)
    reset(one)
    notices_reset(other)
    expect_end(other, Stream(), 0, "reset")


def reset_after_others_fin_behind_data(lane: Lane, by: Side) -> None:
    """The same, with part of the answer sent before the reset."""
    one, other = sides(lane, by)
    there, back = Stream(), Stream()
    send(other, there, 100)
    finish(other)
    expect_end(one, there, 100)
    send(one, back, 10_000)
    reset(one)
    notices_reset(other)
    expect_end(other, back, 10_000, "reset")


def send_to_the_closed(lane: Lane, by: Side) -> None:
    """One side closed; what the other sends now meets a reset, within a second."""
    one, other = sides(lane, by)
    one.close()
    expect_end(other, Stream(), 0)
    send(other, Stream(), 100)
    notices_reset(other)


for side in SIDES:
    for run in (
        reset_fresh,
        reset_after_exchange,
        reset_while_flooding,
        reset_while_flooded,
        reset_by_unread_data,
        reset_after_own_fin,
        reset_after_own_fin_flooded,
        reset_after_others_fin,
        reset_after_others_fin_behind_data,
        send_to_the_closed,
    ):
        case(run, side)
    for size in (1, 10_000, 60_000):
        case(reset_behind_data, side, size)


# --- before the server has accepted ---


def refused(lane: Lane, early: int) -> None:
    """Nobody listens, and the client may send at once.

    Acceptable: connect() is refused, or the connection is reset. Not acceptable: a clean end, as if
    a server had been there and had had nothing to say; silence.
    """
    stream = Stream()
    try:
        client = lane.client()
        client.sendall(stream.at(0, early))
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
        return
    notices_reset(client)
    expect_end(client, stream, 0, "reset")


def early_data(lane: Lane, size: int, end: Literal["open", "fin"]) -> None:
    """The client sends, and may finish, before the server accepts: nothing is lost."""
    lane.listen()
    client = lane.client()
    there, back = Stream(), Stream()
    send(client, there, size)
    if end == "fin":
        finish(client)
    server = lane.accept()
    if end == "fin":
        expect_end(server, there, size)
    else:
        expect(server, there, size)
    send(server, back, 100)
    server.close()
    expect_end(client, back, 100)


def early_reset(lane: Lane, size: int) -> None:
    """The client resets before the server accepts.

    Acceptable: the server sees a connection with a prefix of the data and then a reset, or none at
    all. Not acceptable: a clean end; data that passes into the next connection.
    """
    lane.listen()
    stream = Stream()
    client = lane.client()
    send(client, stream, size)
    reset(client)
    try:
        server = lane.accept(patience=0.5)
    except Violation:
        return
    got = receive(server, stream)
    if got.end != "reset" or got.count > size:
        raise Violation(f"{got.count} of {size} bytes and then {got.end}")


for size in (0, 100):
    case(refused, size)
for size in (0, 100, 50_000):
    case(early_data, size, "fin")
    case(early_reset, size)
case(early_data, 100, "open")
