# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract: what clients and servers that send datagrams may rely on, whatever lies between.

Each case is a function of a `Lane`: two ports that lead to the same two ports (UDP itself, the
oracle) or have a forwarder in between. A case never asks what lies between. UDP may lose datagrams,
but not as many as a receive buffer holds between sockets of one machine; so a case sends no more at
a time than that and requires all of it, in order. Where more is sent, what is missing has to be
counted: by the server's own socket, or by what forwards.

`CASES` holds them all by name; contract_segments.py and contract_absence.py add theirs when they
are imported. test_contract.py runs them over every way there is, and test_suite_can_fail.py shows
that forwarders with known faults do not pass.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial, update_wrapper

from tests.support.datagram_paths import Lane
from tests.support.datagrams import MOST, Letters, Post, Received, carry
from tests.support.stream import Violation, eventually, together

Case = Callable[[Lane], None]
CASES: dict[str, Case] = {}
LONG: set[str] = set()
"""Cases that take a second or more; the others take milliseconds."""
SIZES: set[str] = set()
"""Cases whose datagrams are larger than what Ethernet carries in one packet."""
WILDCARD: set[str] = set()
"""Cases for ways on which clients may ask any address."""
CROWD = 40


def case(
    run: Callable[..., None],
    *values: object,
    name: str = "",
    long: bool = False,
    sizes: bool = False,
    wildcard: bool = False,
) -> None:
    """Enter `run`, with these arguments after the lane, into CASES."""
    label = name or "-".join([run.__name__, *map(str, values)])
    if label in CASES:
        raise ValueError(f"two cases are called {label}")

    def bound(lane: Lane) -> None:
        run(lane, *values)

    CASES[label] = update_wrapper(bound, run)
    if long:
        LONG.add(label)
    if sizes:
        SIZES.add(label)
    if wildcard:
        WILDCARD.add(label)


# --- requests and answers ---


def exchange(lane: Lane, size: int) -> None:
    """A datagram there and another back, of the same size, ten times."""
    client, server = lane.client(), lane.server()
    there, back = Letters(), Letters()
    for _ in range(10):
        request, answer = there.next(size), back.next(size)
        client.send(request)
        got = server.expect(request)
        server.send(answer, got)
        client.expect(answer)


def largest(lane: Lane) -> None:
    """The largest datagram that there is goes both ways, and others after it."""
    exchange(lane, MOST[lane.family])


def many_sizes(lane: Lane, seed: int) -> None:
    """Sizes at random, mostly small, one after the other: as many datagrams, each of its size."""
    dice = random.Random(seed)
    client, server = lane.client(), lane.server()
    met = lane.meet(client, server)
    letters = Letters()
    sizes = [
        dice.choice((0, 1, 2, 20, 100, dice.randrange(2000), dice.randrange(2000)))
        if dice.random() < 0.95
        else dice.randrange(MOST[lane.family] + 1)
        for _ in range(400)
    ]
    carry(client, server, letters.some(sizes))
    carry(server, client, letters.some(sizes[::-1]), met)


def zero_length(lane: Lane, number: int) -> None:
    """Datagrams without a byte are datagrams: alone, first of all, and among others."""
    client, server = lane.client(), lane.server()
    letters = Letters()
    for _ in range(number):
        client.send(b"")
    got = server.expect(*[b""] * number)
    for _ in range(number):
        server.send(b"", got)
    client.expect(*[b""] * number)
    mixed = letters.some((100, 0, 100, 0, 0, 1, 0))
    carry(client, server, mixed)
    carry(server, client, mixed, got)


def pushes(lane: Lane) -> None:
    """One request, many answers, also later: who has written once may be written to."""
    client, server = lane.client(), lane.server()
    met, letters = lane.meet(client, server), Letters()
    for _ in range(3):
        carry(server, client, letters.some([500] * 20), met)
        lane.settle()


def unanswered(lane: Lane) -> None:
    """Many requests and no answer; then one."""
    client, server = lane.client(), lane.server()
    letters = Letters()
    got = carry(client, server, letters.some([300] * 100))
    answer = letters.next(300)
    server.send(answer, got)
    client.expect(answer)


def both_at_once(lane: Lane) -> None:
    """Both sides send all the time, and each receives exactly what the other sent."""
    client, server = lane.client(), lane.server()
    met = lane.meet(client, server)
    there, back = Letters(), Letters()
    for _ in range(30):
        requests, answers = there.some([700] * 15), back.some([900] * 15)
        for request, answer in zip(requests, answers, strict=True):
            client.send(request)
            server.send(answer, met)
        server.expect(*requests)
        client.expect(*answers)


for size in (1, 64, 511, 1200, 1472, 1473, 1500, 2048, 2049, 4096, 9000, 16_384, 32_768, 65_000,
             65_506, 65_507):  # fmt: skip
    case(exchange, size, sizes=True)
case(largest, sizes=True)
for seed in range(3):
    case(many_sizes, seed, sizes=True)
for number in (1, 2, 30):
    case(zero_length, number)
case(pushes)
case(unanswered)
case(both_at_once)


# --- who is who ---


def _crowd(lane: Lane, server: Post, number: int = CROWD) -> list[tuple[Post, Received]]:
    """Clients, and how the server saw each; all have written before the first is answered."""
    letters = Letters()
    clients, hellos = [lane.client() for _ in range(number)], letters.some([32] * number)
    met = []
    for client, hello in zip(clients, hellos, strict=True):
        client.send(hello)
        met.append(server.expect(hello))
    return list(zip(clients, met, strict=True))


def crowd(lane: Lane, order: str) -> None:
    """Clients that all have written are answered in another order; each gets its own answer."""
    server, other = lane.server(0), lane.server(1)
    crowd = _crowd(lane, server)
    if len({met.peer for _, met in crowd}) != len(crowd):
        raise Violation("the server can't tell clients from each other")
    letters = Letters()
    turns = {"reversed": crowd[::-1], "first-again": [*crowd, *crowd[:1]], "twice": crowd * 2}
    answers = [(client, met, letters.next(100)) for client, met in turns[order]]
    for _, met, answer in answers:
        server.send(answer, met)
    for client, _, answer in answers:
        client.expect(answer)
    if other.waiting():
        raise Violation("datagrams for one port went to another")


def crowd_at_once(lane: Lane) -> None:
    """Clients take turns at random, in bursts; each client's datagrams keep their order."""
    dice = random.Random(7)
    server = lane.server()
    crowd = _crowd(lane, server, 12)
    known = {met.peer: number for number, (_, met) in enumerate(crowd)}
    letters = [Letters() for _ in crowd]
    for _ in range(25):
        sent: dict[int, list[bytes]] = {number: [] for number in range(len(crowd))}
        for _ in range(40):
            number = dice.randrange(len(crowd))
            datagram = letters[number].next(dice.choice((200, 200, 200, 77, 1200)))
            crowd[number][0].send(datagram)
            sent[number].append(datagram)
        got: dict[int, list[bytes]] = {number: [] for number in sent}
        for _ in range(40):
            received = server.receive()
            if received.peer not in known:
                raise Violation("a client's datagrams come from a new address")
            got[known[received.peer]].append(received.data)
        if got != sent:
            raise Violation("a client's datagrams are missing, of another, or out of order")
        for number, datagrams in sent.items():
            for datagram in datagrams:
                server.send(datagram, crowd[number][1])
        for number, datagrams in sent.items():
            if datagrams:
                crowd[number][0].expect(*datagrams)


def threads(lane: Lane) -> None:
    """Eight pairs of a client and what it hears from the server, all at the same time."""
    server = lane.server()
    crowd = _crowd(lane, server, 8)

    def listen(client: Post, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            client.send(datagram)
            client.expect(datagram)

    def answer(number: int) -> None:
        for _ in range(number):
            got = server.receive()
            server.send(got.data, got)

    jobs: list[Callable[[], None]] = []
    for client, _ in crowd:
        letters = Letters()
        jobs.append(partial(listen, client, letters.some([400] * 150)))
    together(*jobs, partial(answer, 150 * len(crowd)))


def two_listeners(lane: Lane) -> None:
    """One socket that writes to two ports gets each one's answers from that one."""
    client, servers = lane.client(None), (lane.server(0), lane.server(1))
    letters = Letters()
    met = []
    for port, server in enumerate(servers):
        hello = letters.next(50)
        client.send(hello, lane.entry(port))
        met.append(server.expect(hello))
    for port in (0, 1, 1, 0):
        answer = letters.next(60)
        servers[port].send(answer, met[port])
        got = client.expect(answer)
        if got.peer[:2] != lane.entry(port):
            raise Violation(f"the answer of {lane.entry(port)} came from {got.peer}")


def one_flow(lane: Lane) -> None:
    """A client keeps its address at the server as long as it goes on."""
    client, server = lane.client(), lane.server()
    met, letters = lane.meet(client, server), Letters()
    for _ in range(20):
        got = carry(client, server, letters.some([90] * 10))
        if got.peer != met.peer:
            raise Violation(f"the client was {met.peer} and is now {got.peer}")


def client_replaced(lane: Lane) -> None:
    """A client's port number is used by another one, after it: that one gets its own answers."""
    server = lane.server()
    client = lane.client()
    lane.meet(client, server)
    source = client.address
    lane.forget(client)
    again = lane.client(source=source)
    lane.meet(again, server)
    carry(again, server, Letters().some([100] * 10))


for order in ("reversed", "first-again", "twice"):
    case(crowd, order)
case(crowd_at_once)
case(threads)
case(two_listeners)
case(one_flow)
case(client_replaced)


# --- addresses ---


def asked_address(lane: Lane, asked: str) -> None:
    """Whoever asks an address is answered from there, and from the port that was asked."""
    if (":" in asked) != (":" in lane.entry()[0]):
        return  # the other family's ways ask it
    client, server = lane.client(None), lane.server()
    letters = Letters()
    for _ in range(3):
        request, answer = letters.some((80, 90))
        client.send(request, lane.entry(0, asked))
        server.send(answer, server.expect(request))
        got = client.expect(answer)
        if got.peer[:2] != lane.entry(0, asked):
            raise Violation(f"asked {asked}, answered from {got.peer[:2]}")


def asked_addresses(lane: Lane) -> None:
    """One socket asks several addresses by turns; each one's answers come from that one."""
    if ":" in lane.entry()[0]:
        return
    client, server = lane.client(None), lane.server()
    letters = Letters()
    met = {}
    addresses = ("127.0.0.1", "127.0.0.2", "127.9.8.7")
    for address in addresses:
        hello = letters.next(40)
        client.send(hello, lane.entry(0, address))
        met[address] = server.expect(hello)
    for address in (*addresses[::-1], *addresses):
        burst = letters.some([1000] * 10)
        for answer in burst:
            server.send(answer, met[address])
        for answer in burst:
            if (got := client.expect(answer)).peer[:2] != lane.entry(0, address):
                raise Violation(f"asked {address}, answered from {got.peer[:2]}")


for address in ("127.0.0.1", "127.0.0.2", "127.255.255.254", "::1"):
    case(asked_address, address, wildcard=True)
case(asked_addresses, wildcard=True)


# --- bursts ---


def _in_order(sent: list[bytes], came: list[bytes]) -> int:
    """How many of the sent datagrams came; a Violation if one is wrong, doubled or out of order."""
    left = iter(sent)
    for number, one in enumerate(came):
        if not any(one == other for other in left):
            raise Violation(f"number {number} of a burst is wrong, doubled, or out of order")
    return len(came)


def burst(lane: Lane, way: str, size: int) -> None:
    """More at once than any buffer takes: what comes is right and in order, and the rest counted.

    Counted by the receiver's own socket (SO_RXQ_OVFL), or by what forwards.
    """
    client, server = lane.client(), lane.server()
    met = lane.meet(client, server)
    sender, receiver, to = (client, server, None) if way == "there" else (server, client, met)
    letters, number = Letters(), 3000
    before, counted = lane.dropped(), receiver.dropped
    sent = letters.some([size] * number)
    for datagram in sent:
        sender.send(datagram, to)
    lane.settle()
    came = _in_order(sent, [one.data for one in receiver.waiting()])
    # What a queue has dropped is said with the next datagram that it takes.
    last = letters.next(20)
    sender.send(last, to)
    receiver.expect(last)

    def accounted() -> int:
        return came + (receiver.dropped - counted) + (lane.dropped() - before)

    eventually(
        lambda: accounted() == number,
        lambda: f"{number} were sent, {came} came, {accounted() - came} are said to be dropped",
        within=lane.patience,
    )
    carry(client, server, letters.some([size] * 20))
    carry(server, client, letters.some([size] * 20), met)


def deaf_server(lane: Lane) -> None:
    """A server that takes nothing: another is served as ever, nothing spins, and what the first
    one's buffer holds is there when it reads."""
    deaf, other = lane.server(0), lane.server(1)
    client, second = lane.client(0), lane.client(1)
    letters = Letters()
    sent = letters.some([1000] * 1000)
    for datagram in sent:
        client.send(datagram)
    lane.meet(second, other)
    lane.assert_quiet()
    carry(second, other, letters.some([1000] * 50))
    if not _in_order(sent, [one.data for one in deaf.waiting()]):
        raise Violation("nothing reached the server")


def deaf_client(lane: Lane) -> None:
    """The same for a client: others of its server are served."""
    server = lane.server()
    deaf, other = lane.client(), lane.client()
    met = lane.meet(deaf, server)
    letters = Letters()
    sent = letters.some([1000] * 1000)
    for datagram in sent:
        server.send(datagram, met)
    again = lane.meet(other, server)
    lane.assert_quiet()
    carry(server, other, letters.some([1000] * 50), again)
    if not _in_order(sent, [one.data for one in deaf.waiting()]):
        raise Violation("nothing reached the client")


for way, size in itertools.product(("there", "back"), (10, 1400, 20_000)):
    case(burst, way, size)
case(deaf_server, long=True)
case(deaf_client, long=True)


# --- afterwards ---


def successors(lane: Lane) -> None:
    """Clients that follow get their own answers, from the server behind their port."""
    for post in list(lane.posts):
        lane.forget(post)
    server = lane.server()
    for client, met in _crowd(lane, server, 4):
        letters = Letters()
        carry(client, server, letters.some((1, 100, 1400)))
        carry(server, client, letters.some((100, 1, 1400)), met)
