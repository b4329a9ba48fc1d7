# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract, where more clients come than what lies between can keep: at most BOUND at a time.

Anybody can write from as many addresses as there are, and need not even have them. So a flood of
clients that nobody answers must not push out those that are answered, nor keep new ones out.
"""

from __future__ import annotations

import socket

from tests.relay_udp.contract import case
from tests.support.datagram_paths import Lane
from tests.support.datagrams import Address, Letters, Post, carry
from tests.support.stream import Violation

BOUND = 64
"""Flows that what lies between keeps at most, where these cases run."""
FLOOD = 4 * BOUND


def _addresses(lane: Lane) -> list[Address]:
    """So many that no client has: of a family that has but one loopback address, ports."""
    if lane.family == socket.AF_INET:
        return [(f"127.7.{number // 250}.{number % 250 + 1}", 0) for number in range(FLOOD)]
    return [("::1", 0)] * FLOOD


def _flood(lane: Lane, server: Post) -> None:
    """Single datagrams from many addresses, which the server hears and doesn't answer."""
    letters = Letters()
    for number, source in enumerate(_addresses(lane), 1):
        client = lane.client(source=source)
        client.send(letters.next(64))
        lane.forget(client)
        if number % 16 == 0:
            for _ in range(16):
                server.receive()


def flood_answered(lane: Lane) -> None:
    """Clients that were answered before the flood have the same address after it, and are served,
    though they didn't say a word meanwhile."""
    server = lane.server()
    clients = [lane.client() for _ in range(BOUND // 4)]
    met = [lane.meet(client, server) for client in clients]
    _flood(lane, server)
    letters = Letters()
    for client, before in zip(clients, met, strict=True):
        carry(server, client, letters.some([100] * 3), before)
        if carry(client, server, letters.some([100] * 3)).peer != before.peer:
            raise Violation("a client that was answered has lost its flow")


def flood_new(lane: Lane) -> None:
    """A client that comes amid the flood is served, and stays."""
    server = lane.server()
    _flood(lane, server)
    client, letters = lane.client(), Letters()
    met = lane.meet(client, server)
    _flood(lane, server)
    carry(server, client, letters.some([100] * 3), met)


case(flood_answered, name="flood-answered")
case(flood_new, name="flood-new")
