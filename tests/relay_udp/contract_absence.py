# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract, where somebody isn't there: no server yet, or no more, or a client that has gone.

UDP has no ends. The kernel says by ICMP that nobody is bound to a port, which a client may hear of
or not; nothing may depend on it, nothing may be broken by it, and nothing spins.
"""

from __future__ import annotations

import contextlib

from tests.relay_udp.contract import case
from tests.support.datagram_paths import Lane
from tests.support.datagrams import Letters, Post, carry
from tests.support.stream import Violation


def _knock(client: Post, datagram: bytes) -> None:
    """Send to where nobody may be, of which a connected socket may hear at the next call."""
    with contextlib.suppress(ConnectionRefusedError):
        client.send(datagram)


def _hears_nothing(client: Post) -> None:
    with contextlib.suppress(ConnectionRefusedError):
        if client.waiting():
            raise Violation("somebody answered where nobody is")


def _in_touch(lane: Lane, client: Post, server: Post) -> None:
    """The next datagram is heard, once the client has heard of what was before."""
    _hears_nothing(client)
    lane.meet(client, server)
    letters = Letters()
    got = carry(client, server, letters.some([200] * 10))
    carry(server, client, letters.some([200] * 10), got)


def nobody_yet(lane: Lane, knocks: int) -> None:
    """Who comes too early gets no answer; with the server, the same client is served."""
    client, letters = lane.client(), Letters()
    for _ in range(knocks):
        _knock(client, letters.next(100))
        lane.settle()
    _hears_nothing(client)
    _in_touch(lane, client, lane.server())


def nobody_at_all(lane: Lane) -> None:
    """Where nobody is bound nothing spins, however many have knocked."""
    letters = Letters()
    clients = [lane.client() for _ in range(20)]
    for client in clients:
        for _ in range(5):
            _knock(client, letters.next(100))
    lane.assert_quiet()
    server = lane.server()
    for client in clients:
        _hears_nothing(client)
        lane.meet(client, server)


def server_restarts(lane: Lane, knocks: int) -> None:
    """A server goes and comes again; clients that wrote meanwhile, and others, are served."""
    server = lane.server()
    clients = [lane.client() for _ in range(5)]
    for client in clients:
        lane.meet(client, server)
    lane.forget(server)
    letters = Letters()
    for _ in range(knocks):
        for client in clients:
            _knock(client, letters.next(100))
        lane.settle()
    server = lane.server()
    for client in clients:
        _in_touch(lane, client, server)


def other_server_absent(lane: Lane) -> None:
    """Nobody behind one port: the other's clients don't notice, and answers come in between."""
    server = lane.server(0)
    client, lost = lane.client(0), lane.client(1)
    met, letters = lane.meet(client, server), Letters()
    for _ in range(20):
        _knock(lost, letters.next(100))
        carry(client, server, letters.some([100] * 5))
        carry(server, client, letters.some([100] * 5), met)


def client_gone(lane: Lane) -> None:
    """Answers to a client that has gone go nowhere; the others get theirs."""
    server = lane.server()
    gone, stays = lane.client(), lane.client()
    lost, met = lane.meet(gone, server), lane.meet(stays, server)
    lane.forget(gone)
    letters = Letters()
    for _ in range(20):
        with contextlib.suppress(ConnectionRefusedError):
            server.send(letters.next(100), lost)
        carry(server, stays, letters.some([100] * 5), met)
    carry(stays, server, letters.some([100] * 5))
    lane.meet(lane.client(), server)


def refused_in_a_burst(lane: Lane) -> None:
    """A server leaves while datagrams are on their way to it, and returns: no harm is done."""
    client, letters = lane.client(None), Letters()
    for _ in range(5):
        server = lane.server()
        carry(client, server, letters.some([300] * 20), lane.entry())
        lane.forget(server)
        for datagram in letters.some([300] * 40):
            client.send(datagram, lane.entry())
        lane.settle()
    lane.meet(client, lane.server(), lane.entry())


def idle(lane: Lane, state: str) -> None:
    """Flows on which nothing comes cost nothing, in whatever state they rest."""
    server = lane.server()
    for _ in range(5):
        client = lane.client()
        if state == "unanswered":
            request = Letters().next(10)
            client.send(request)
            server.expect(request)
        else:
            lane.meet(client, server)
        if state == "without a client":
            lane.forget(client)
    if state == "without a server":
        lane.forget(server)
    lane.assert_quiet(1.5)


for knocks in (1, 3):
    case(nobody_yet, knocks)
    case(server_restarts, knocks)
case(server_restarts, 0)
case(nobody_at_all, long=True)
case(other_server_absent)
case(client_gone)
case(refused_in_a_burst)
for state in ("unanswered", "answered", "without a client", "without a server"):
    case(idle, state, name=f"idle-{state.replace(' ', '-')}", long=True)
