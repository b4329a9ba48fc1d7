# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract, where several datagrams travel as one: UDP_SEGMENT and UDP_GRO.

A sender may hand several datagrams of one size to the kernel by one call, and a receiver may get
several by one. What lies between may join and split as it likes, as long as each end sees exactly
the other's datagrams.
"""

from __future__ import annotations

import itertools

from tests.relay_udp.contract import case
from tests.support.datagram_paths import ETHERNET, Lane
from tests.support.datagrams import MOST_SEGMENTED, Letters, Post, Received, carry
from tests.support.stream import Violation

ENDS = ("neither", "client", "server", "both")
"""Which ends receive by GRO."""


def _posts(lane: Lane, merging: str) -> tuple[Post, Post]:
    client = lane.client(gro=merging in ("client", "both"))
    return client, lane.server(gro=merging in ("server", "both"))


def _ways(
    lane: Lane, client: Post, server: Post
) -> tuple[tuple[Post, Post, Received | None], tuple[Post, Post, Received]]:
    met = lane.meet(client, server)
    return (client, server, None), (server, client, met)


def segmented(lane: Lane, merging: str, size: int, number: int, last: int) -> None:
    """One call sends `number` datagrams of `size` bytes and, if it isn't 0, one of `last`."""
    letters = Letters()
    for sender, receiver, to in _ways(lane, *_posts(lane, merging)):
        for _ in range(3):
            datagrams = letters.some([size] * number + [last] * bool(last))
            sender.send_segmented(datagrams, to)
            receiver.expect(*datagrams)


def segmented_burst(lane: Lane, merging: str) -> None:
    """Calls with segments of different sizes, and single datagrams, one after the other."""
    letters = Letters()
    sizes = [[1200] * 10, [1200] * 4 + [300], [300], [300] * 5, [1000], [1200], [1200] * 2 + [1]]
    for sender, receiver, to in _ways(lane, *_posts(lane, merging)):
        for _ in range(5):
            calls = [letters.some(some) for some in sizes]
            for call in calls:
                sender.send_segmented(call, to) if len(call) > 1 else sender.send(call[0], to)
            receiver.expect(*itertools.chain(*calls))


def singles(lane: Lane, merging: str, sizes: tuple[int, ...]) -> None:
    """Datagrams sent singly, one right after the other, that could be joined, or look like it."""
    letters = Letters()
    for sender, receiver, to in _ways(lane, *_posts(lane, merging)):
        for _ in range(10):
            carry(sender, receiver, letters.some(sizes), to)


def segmented_crowd(lane: Lane) -> None:
    """Clients send segments by turns: each one's stay its own, whole, and in order."""
    server = lane.server(gro=True)
    clients = [lane.client(gro=True) for _ in range(6)]
    met = [lane.meet(client, server) for client in clients]
    letters = [Letters() for _ in clients]
    for _ in range(10):
        sent = [one.some([1100] * 3 + [500]) for one in letters]
        for client, datagrams in zip(clients, sent, strict=True):
            client.send_segmented(datagrams)
        got: dict[object, list[bytes]] = {one.peer: [] for one in met}
        for _ in range(4 * len(clients)):
            received = server.receive()
            got.setdefault(received.peer, []).append(received.data)
        if list(got.values()) != sent:
            raise Violation("a client's segments are missing, or not its own")
        for one, datagrams in zip(met, sent, strict=True):
            server.send_segmented(datagrams, one)
        for client, datagrams in zip(clients, sent, strict=True):
            client.expect(*datagrams)


# On the way to Ethernet's MTU: the largest segment that still fits is MTU - 20 - 8 (IPv4).
FITS = ETHERNET - 48
for merging, (size, number, last) in itertools.product(
    ENDS,
    (
        (1, 2, 0), (1, 60, 0), (100, 2, 1), (1000, 1, 999), (1200, 40, 0), (1200, 40, 1199),
        (FITS, 10, 0), (FITS, 44, 1), (FITS, MOST_SEGMENTED // FITS, 0), (512, 64, 0),
    ),
):  # fmt: skip
    case(segmented, merging, size, number, last)
for merging in ENDS:
    case(segmented_burst, merging)
    for name, sizes in {
        "equal": (1000,) * 40,
        "last shorter": (1000,) * 20 + (1,),
        "shorter amid": (1000,) * 5 + (400,) + (1000,) * 5 + (400, 400),
        "longer amid": (400,) * 5 + (1000,) + (400,) * 5,
        "rising": tuple(range(1, 40)),
        "falling": tuple(range(40, 0, -1)),
        "zero amid": (600, 600, 0, 600, 600, 0, 0, 600),
        "alternating": (800, 200) * 20,
        "tiny": (1,) * 48,
        "above Ethernet": (3000,) * 20,
        "large": (20_000,) * 4 + (30_000, 65_000, 65_000),
    }.items():
        case(singles, merging, sizes, name=f"singles-{merging}-{name.replace(' ', '-')}")
case(segmented_crowd)
