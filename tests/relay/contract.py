# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract: what a client and a server may rely on, whatever lies between them.

Each case is a function of a `Lane`, a pair of ports that is either the same port (plain TCP, the
oracle) or has a forwarder in between. The docstring of a group lists what is acceptable before the
code says how it is seen. A case never asks what lies between, with two exceptions, named where they
are made: a refusal can reach a client as a reset of its established connection, and a flow that
carries urgent data may be reset.

`CASES` holds them all by name; contract_breaks.py and contract_urgent.py add theirs when they are
imported. test_contract.py runs them over every way there is, and test_suite_can_fail.py shows that
forwarders with known faults do not pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Literal

from tests.support.paths import Lane
from tests.support.stream import (
    KIB,
    MIB,
    PATIENCE,
    Stream,
    Violation,
    expect,
    expect_broken,
    expect_end,
    fill,
    finish,
    send,
    send_and_finish,
    together,
)

Case = Callable[[Lane], None]
Side = Literal["client", "server"]
CASES: dict[str, Case] = {}
LONG: set[str] = set()
"""Cases that take a second or more; the others take milliseconds."""
SMALL_BUFFER = 256 * KIB
SIDES: tuple[Side, Side] = ("client", "server")


def case(run: Callable[..., None], *values: object, name: str = "", long: bool = False) -> None:
    """Enter `run`, with these arguments after the lane, into CASES."""
    label = name or "-".join([run.__name__, *map(str, values)])
    if label in CASES:
        raise ValueError(f"two cases are called {label}")

    def bound(lane: Lane) -> None:
        run(lane, *values)

    CASES[label] = update_wrapper(bound, run)
    if long:
        LONG.add(label)


def sides(
    lane: Lane, first: Side, *, buffer: int | None = None
) -> tuple[socket.socket, socket.socket]:
    """A connection's two sockets, that of side `first` first."""
    client, server = lane.pair(buffer=buffer)
    return (client, server) if first == "client" else (server, client)


# --- bytes and ends ---


def echo(lane: Lane, size: int) -> None:
    """What goes there comes back, while both directions are open; then both end cleanly."""
    client, server = lane.pair()
    there, back = Stream(), Stream()
    for start in range(0, 5 * size, size):
        for source, sink, stream in ((client, server, there), (server, client, back)):
            together(
                partial(send, source, stream, size, start=start),
                partial(expect, sink, stream, size, start=start),
            )
    finish(client)
    expect_end(server, there, 0)
    finish(server)
    expect_end(client, back, 0)


def half_close(
    lane: Lane, order: Literal["client", "server", "both"], size: int, pace: Literal["fast", "slow"]
) -> None:
    """Each side sends `size` bytes and FIN, in this order.

    Acceptable: each receives exactly the other's bytes and then end of file, the second side's
    after the first is through. Not acceptable: an end before the last byte, a reset, a stall.
    """
    there, back = Stream(), Stream()
    slow = pace == "slow"
    if order == "both":
        client, server = lane.pair(buffer=SMALL_BUFFER if slow else None)
        together(
            partial(send_and_finish, client, there, size),
            partial(send_and_finish, server, back, size),
            partial(_read_to_end, server, there, size, slow),
            partial(_read_to_end, client, back, size, slow),
        )
        return
    one, other = sides(lane, order, buffer=SMALL_BUFFER if slow else None)
    for source, sink, stream in ((one, other, there), (other, one, back)):
        together(
            partial(send_and_finish, source, stream, size),
            partial(_read_to_end, sink, stream, size, slow),
        )


def _read_to_end(sock: socket.socket, stream: Stream, size: int, slow: bool) -> None:
    if slow:
        # The reader comes late, so that all that fits has piled up on the way, and then takes less
        # at a time than the smallest buffer holds: the way stays full to the last byte.
        time.sleep(0.05)
        expect_end(sock, stream, size, chunk=max(1024, min(size // 10, 64 * KIB)), pause=0.002)
    else:
        expect_end(sock, stream, size)


def late_data_after_fin(lane: Lane, first: Side) -> None:
    """One side finishes at once; the other then sends much, and finishes; the first reads slowly.

    The socket towards the second side is now shut both ways while its bytes are still under way:
    a forwarder that takes that for the end loses them.
    """
    one, other = sides(lane, first, buffer=SMALL_BUFFER)
    stream = Stream()
    finish(one)
    expect_end(other, Stream(), 0)
    sent = fill(other, stream)
    size = sent + 20 * MIB
    together(
        lambda: send_and_finish(other, stream, size - sent, start=sent),
        lambda: expect_end(one, stream, size, chunk=64 * KIB, pause=0.002),
    )


def fin_behind_blocked_data(lane: Lane, first: Side) -> None:
    """The same, with the last FIN arriving while what lies between can't pass on what it holds."""
    one, other = sides(lane, first, buffer=SMALL_BUFFER)
    stream = Stream()
    finish(one)
    expect_end(other, Stream(), 0)
    size = 0
    while not lane.stays_unread(other):
        send(other, stream, 32 * KIB, start=size)
        size += 32 * KIB
    finish(other)
    time.sleep(0.02)  # the FIN is there; nobody reads yet
    expect_end(one, stream, size)


def close_after_sending(lane: Lane, first: Side, size: int) -> None:
    """One side sends and closes its socket altogether: the other gets all of it, then the end."""
    one, other = sides(lane, first)
    stream = Stream()

    def send_and_close() -> None:
        send(one, stream, size)
        one.close()

    together(send_and_close, lambda: expect_end(other, stream, size))


def full_both_ways(lane: Lane) -> None:
    """Both send until nothing more goes in; nothing spins; then both read, and all comes."""
    client, server = lane.pair()
    there, back = Stream(), Stream()
    there_sent, back_sent = fill(client, there), fill(server, back)
    lane.assert_quiet()
    together(
        lambda: send_and_finish(client, there, MIB, start=there_sent),
        lambda: send_and_finish(server, back, MIB, start=back_sent),
        lambda: expect_end(server, there, there_sent + MIB),
        lambda: expect_end(client, back, back_sent + MIB),
    )


def tiny_segments(lane: Lane, first: Side, number: int) -> None:
    """One-byte segments for a reader that is late: they fill a pipe by slots, not by bytes."""
    one, other = sides(lane, first)
    stream = Stream()
    for position in range(number):
        one.send(stream.at(position, 1))
    finish(one)
    expect_end(other, stream, number)
    finish(other)
    expect_end(one, stream, 0)


def interleaved(lane: Lane) -> None:
    """Both directions carry pieces of every size at once, read in pieces of other sizes."""
    client, server = lane.pair()
    there, back = Stream(), Stream()
    sizes = [1, 2, 1447, 1448, 1449, 4095, 4096, 4097, 65_535, 65_536, 65_537, 300_000] * 3

    def write(sock: socket.socket, stream: Stream, sizes: list[int]) -> None:
        for start, size in zip(itertools.accumulate(sizes, initial=0), sizes, strict=False):
            send(sock, stream, size, start=start)
        finish(sock)

    together(
        lambda: write(client, there, sizes),
        lambda: write(server, back, sizes[::-1]),
        lambda: expect_end(server, there, sum(sizes), chunk=7919),
        lambda: expect_end(client, back, sum(sizes), chunk=104_729),
    )


def storm(lane: Lane, seed: int) -> None:
    """Eight connections at once, each way in pieces of any size, with rests of any length.

    The seed makes the pieces and rests the same each time; how they meet, the scheduler decides.
    """
    dice = random.Random(seed)
    jobs: list[Callable[[], None]] = []

    def write(sock: socket.socket, stream: Stream, pieces: list[tuple[int, float]]) -> None:
        position = 0
        for size, rest in pieces:
            send(sock, stream, size, start=position)
            position += size
            if rest:
                time.sleep(rest)
        finish(sock)

    for client, server in [lane.pair() for _ in range(8)]:
        for source, sink in ((client, server), (server, client)):
            stream = Stream()
            pieces = [
                (dice.choice((1, 2, 100, 1448, 5000, 65_536, 300_000)), dice.choice((0, 0, 0.001)))
                for _ in range(dice.randrange(40))
            ]
            size = sum(size for size, _ in pieces)
            chunk, pause = dice.choice((5000, 20_000, MIB)), dice.choice((0, 0, 0.0002))
            jobs.append(partial(write, source, stream, pieces))
            jobs.append(partial(expect_end, sink, stream, size, chunk=chunk, pause=pause))
    together(*jobs)


def request_response(lane: Lane) -> None:
    """Write, write, read, both ways, where receivers delay their ACKs (40 ms or more, TCP_ATO_MIN):
    Nagle's algorithm would have the second write wait for the ACK of the first, each time.
    """
    client, server = lane.pair()
    ways = ((client, server, Stream()), (server, client, Stream()))
    late, rounds = 0, 50
    for start in range(0, rounds * 20, 20):
        began = time.monotonic()
        for sender, receiver, stream in ways:
            receiver.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            for position in (start, start + 10):
                send(sender, stream, 10, start=position)
                expect(receiver, stream, 10, start=position)
        late += time.monotonic() - began > 0.035
    if late > rounds * 3 // 4:  # a busy machine makes some late, such a wait all
        raise Violation(f"{late} of {rounds} rounds took 35 ms or more: segments wait for ACKs")


for size in (1, 1000, 200_000):
    case(echo, size)
for order, size, pace in itertools.product(
    ("client", "server", "both"), (0, 1, 100, 64 * KIB, MIB + 1, 20 * MIB), ("fast", "slow")
):
    case(half_close, order, size, pace, long=size > 2 * MIB and pace == "slow")
for side in SIDES:
    case(late_data_after_fin, side, long=True)
    case(fin_behind_blocked_data, side, long=True)
    case(tiny_segments, side, 5000)
    for size in (0, 100, 3 * MIB):
        case(close_after_sending, side, size)
case(full_both_ways, long=True)
case(interleaved)
for seed in range(2):
    case(storm, seed)
case(request_response)


# --- peers that don't go on ---

_READER = """
import hashlib, socket, sys
peer = socket.socket(fileno=int(sys.argv[1]))
peer.setblocking(True)
digest, count = hashlib.sha256(), 0
while data := peer.recv(65536):
    if not count:
        print("reading", flush=True)
    digest.update(data); count += len(data)
peer.sendall(f"{count} {digest.hexdigest()}".encode())
"""


def stopped_peer(lane: Lane, first: Side, then: Literal["continued", "killed"]) -> None:
    """The other side is a process that gets SIGSTOP in the middle of things.

    Acceptable: others are served meanwhile and nothing spins. Continued, it receives everything;
    killed, it is as if it had reset the connection.
    """
    one, other = sides(lane, first)
    stream = Stream()
    reader = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _READER, str(other.fileno())],
        pass_fds=[other.fileno()],
        stdout=subprocess.PIPE,
    )
    try:
        lane.forget(other)
        send(one, stream, 100_000)
        if reader.stdout is None or reader.stdout.readline() != b"reading\n":
            raise Violation("the reader got nothing")
        reader.send_signal(signal.SIGSTOP)
        size = 100_000 + fill(one, stream, start=100_000)
        successors(lane)
        lane.assert_quiet()
        if then == "killed":
            reader.kill()
            expect_broken(one)
            return
        reader.send_signal(signal.SIGCONT)
        finish(one)
        one.settimeout(PATIENCE)
        digest = hashlib.sha256()
        for position in range(0, size, MIB):
            digest.update(stream.at(position, min(MIB, size - position)))
        try:
            told = b"".join(iter(lambda: one.recv(1000), b"")).decode()
        except OSError as error:
            raise Violation(f"the reader's answer did not come: {error}") from None
        if told != f"{size} {digest.hexdigest()}":
            raise Violation(f"sent {size} bytes; the reader got {told}")
    finally:
        reader.kill()
        reader.communicate(timeout=PATIENCE)


def idle(lane: Lane, state: str) -> None:
    """Connections on which nothing can move cost nothing, in whatever state they rest."""
    for first in SIDES:
        one, other = sides(lane, first)
        if state == "used":
            stream = Stream()
            send(one, stream, 1000)
            expect(other, stream, 1000)
        elif state == "half-closed":
            finish(one)
            expect_end(other, Stream(), 0)
        elif state == "blocked":
            fill(one, Stream())
        elif state == "blocked and half-closed":
            finish(other)
            expect_end(one, Stream(), 0)
            fill(one, Stream())
        elif state == "finished and blocked":
            fill(one, Stream())
            finish(one)
        elif state == "finished both ways and blocked":
            fill(one, Stream())
            finish(one)
            finish(other)
    lane.assert_quiet(1.5)


for side in SIDES:
    case(stopped_peer, side, "continued", long=True)
    case(stopped_peer, side, "killed", long=True)
for state in (
    "fresh",
    "used",
    "half-closed",
    "blocked",
    "blocked and half-closed",
    "finished and blocked",
    "finished both ways and blocked",
):
    case(idle, state, long=True)


# --- afterwards ---


def successors(lane: Lane, number: int = 4) -> None:
    """Connections that follow carry their own bytes and no others, one by one and all at once."""

    def exchange(client: socket.socket, server: socket.socket) -> None:
        there, back = Stream(), Stream()
        send(client, there, 5000)
        send(server, back, 7000)
        finish(client)
        finish(server)
        expect_end(server, there, 5000)
        expect_end(client, back, 7000)
        client.close()
        server.close()

    for _ in range(number):
        exchange(*_fresh_pair(lane))
    pairs = [_fresh_pair(lane) for _ in range(number)]
    together(*(partial(exchange, *both) for both in pairs))


def _fresh_pair(lane: Lane) -> tuple[socket.socket, socket.socket]:
    """A connection whose two sockets are known to belong together.

    What came before may have left a connection in the server's queue; those are closed here.
    """
    if not lane.listening:
        return lane.pair()
    client = lane.client()
    mark = Stream()
    send(client, mark, 64)
    while True:
        server = lane.accept()
        with contextlib.suppress(ConnectionResetError):
            if server.recv(64, socket.MSG_WAITALL) == mark.at(0, 64):
                return client, server
        server.close()
