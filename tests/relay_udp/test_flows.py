# SPDX-License-Identifier: GPL-2.0-or-later
"""Flows of datagrams as an administrator sees them: how long they live, how many there are, how
they end, and what is counted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.relay_udp import contract, contract_bound
from tests.relay_udp.site import DIRECTIONS, INSIDE, Launch, sited
from tests.support import procfs
from tests.support.datagrams import Letters, carry
from tests.support.netns import Identity
from tests.support.product import free_ports
from tests.support.stream import PATIENCE, Stream, eventually, expect_end, send_and_finish

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
BRIEF = 2.3  # seconds after whose beginning a flow in which something passes is no longer brief


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_lifetimes(
    launch: Launch, identity: Identity, user_directory: Path, direction: str
) -> None:
    """A flow that nobody answers ends before one that was answered; each is counted as what it
    was, and the next datagram begins another."""
    times = ("--udp-timeout", "1", "--udp-stream-timeout", "3")
    with sited(launch, identity, user_directory, direction, *times) as site, site.lane() as lane:
        server, answered, alone = lane.server(), lane.client(), lane.client()
        lane.meet(answered, server)
        began = time.monotonic()
        alone.send(b"alone")
        server.expect(b"alone")
        eventually(lambda: site.count("unanswered_flows_total") == 1, "it ends unanswered")
        assert time.monotonic() - began >= 1
        assert site.count("expired_flows_total") == 0
        assert len(site.flows()) == 1
        eventually(lambda: site.count("expired_flows_total") == 1, "the other one ends, too")
        assert time.monotonic() - began >= 2.9  # it was used before the clock here was read
        assert site.flows() == []
        for client in (answered, alone):
            lane.meet(client, server)
        assert site.count("accepted_total") == 4


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_flow_lives_as_long_as_either_side_goes_on(
    launch: Launch, identity: Identity, user_directory: Path, side: str
) -> None:
    times = ("--udp-timeout", "1", "--udp-stream-timeout", "1")
    with sited(launch, identity, user_directory, "inbound", *times) as site, site.lane() as lane:
        client, server = lane.client(), lane.server()
        met, letters = lane.meet(client, server), Letters()
        for _ in range(8):
            time.sleep(0.3)  # the time that passes is what is tested
            if side == "client":
                assert carry(client, server, letters.some([10])).peer == met.peer
            else:
                carry(server, client, letters.some([10]), met)
        assert site.count("accepted_total") == 1


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_is_counted(
    launch: Launch, identity: Identity, user_directory: Path, direction: str
) -> None:
    """Datagrams and bytes each way, flows and answered ones; and the flow's row."""
    with sited(launch, identity, user_directory, direction) as site, site.lane() as lane:
        client, server, letters = lane.client(), lane.server(), Letters()
        got = carry(client, server, letters.some([1000] * 30 + [0]))
        eventually(lambda: site.count("datagrams_total", "to=target") == 31, "all are counted")
        assert site.count("bytes_total", "to=target") == 30_000
        assert (site.count("accepted_total"), site.count("connected_total")) == (1, 0)
        (row,) = site.flows()
        assert row["client"] == f"127.0.0.1:{client.address[1]}"
        assert row["target"] == f"127.0.0.1:{site.exit}"
        assert row["state"] != "established"
        carry(server, client, letters.some([500] * 10), got)
        eventually(lambda: site.count("datagrams_total", "to=client") == 10, "all are counted")
        assert site.count("bytes_total", "to=client") == 5000
        assert (site.count("accepted_total"), site.count("connected_total")) == (1, 1)
        eventually(lambda: site.flows()[0]["state"] == "established", "the row says so")
        (row,) = site.flows()
        assert (row["bytesToTarget"], row["bytesToClient"]) == (30_000, 5000)
        for reason in ("queue", "send", "limit"):
            assert site.count("datagrams_dropped_total", f"reason={reason}") == 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_target_that_refuses_ends_the_flow(
    launch: Launch, identity: Identity, user_directory: Path, direction: str
) -> None:
    """And is counted, once for each datagram that had begun a flow."""
    with sited(launch, identity, user_directory, direction) as site, site.lane() as lane:
        client = lane.client(None)
        for number in range(1, 4):
            client.send(b"anybody?", lane.entry())
            eventually(lambda n=number: site.count("refused_total") == n, "it is counted")  # type: ignore[misc]
            assert site.flows() == []
        server = lane.server()
        lane.meet(client, server, lane.entry())
        lane.forget(server)
        client.send(b"still there?", lane.entry())
        eventually(lambda: site.count("refused_total") == 4, "it is counted")
        assert site.flows() == []
        assert site.count("errors_total") == 0


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["flood-answered", "flood-new"])
def test_flood(
    launch: Launch, identity: Identity, user_directory: Path, direction: str, name: str
) -> None:
    """Single datagrams from many addresses push out neither answered flows nor new clients."""
    bound = ("--udp-flows", str(contract_bound.BOUND))
    with sited(launch, identity, user_directory, direction, *bound) as site, site.lane() as lane:
        contract.CASES[name](lane)
        assert site.count("evicted_flows_total") >= contract_bound.FLOOD - contract_bound.BOUND
        assert site.count("datagrams_dropped_total", "reason=limit") == 0
        assert len(site.flows()) <= contract_bound.BOUND


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_flood_that_is_answered_keeps_nobody_out(
    launch: Launch, identity: Identity, user_directory: Path, direction: str
) -> None:
    """As at a server for names, which answers everybody. Flows that go on stay."""
    options = ("--udp-flows", "16")
    with sited(launch, identity, user_directory, direction, *options) as site, site.lane() as lane:
        server, kept, letters = lane.server(), lane.client(), Letters()
        lane.meet(kept, server)
        time.sleep(BRIEF)
        met = lane.meet(kept, server)
        for _ in range(100):
            client = lane.client()
            lane.meet(client, server)
            lane.forget(client)
        carry(server, kept, letters.some([10] * 3), met)
        assert carry(kept, server, letters.some([10] * 3)).peer == met.peer
        # A client may have got the port of an earlier one, whose flow is there.
        assert site.count("evicted_flows_total") == site.count("accepted_total") - 16
        assert site.count("datagrams_dropped_total", "reason=limit") == 0


def test_where_all_flows_go_on_new_clients_wait(
    launch: Launch, identity: Identity, user_directory: Path
) -> None:
    """Their datagrams are dropped and counted, until one ends."""
    options = ("--udp-flows", "8", "--udp-stream-timeout", "4")
    with sited(launch, identity, user_directory, "inbound", *options) as site, site.lane() as lane:
        server, letters = lane.server(), Letters()
        kept = [lane.client() for _ in range(8)]
        for client in kept:
            lane.meet(client, server)
        time.sleep(BRIEF)
        met = [lane.meet(client, server) for client in kept]
        late = lane.client()
        late.send(b"is there room?")
        dropped = ("datagrams_dropped_total", "reason=limit")
        eventually(lambda: site.count(*dropped) == 1, "it is counted")
        for client, one in zip(kept, met, strict=True):
            carry(client, server, letters.some([10] * 3))
            carry(server, client, letters.some([10] * 3), one)
        assert server.waiting() == []
        eventually(lambda: site.count("expired_flows_total") == 8, "they expire")
        lane.meet(late, server)


def test_one_listener_leaves_flows_to_the_others(
    launch: Launch, identity: Identity, user_directory: Path
) -> None:
    """Three quarters are all that one of several can have, those that go on included."""
    options = ("--udp-flows", "16")
    with (
        sited(launch, identity, user_directory, "inbound", *options, ports=2) as site,
        site.lane() as lane,
    ):
        server, other = lane.server(0), lane.server(1)
        kept = [lane.client(0) for _ in range(12)]
        for client in kept:
            lane.meet(client, server)
        time.sleep(BRIEF)
        for client in kept:
            lane.meet(client, server)
        lane.client(0).send(b"one too many")
        eventually(
            lambda: site.count("datagrams_dropped_total", "reason=limit") == 1, "it is counted"
        )
        for _ in range(4):
            lane.meet(lane.client(1), other)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bursts_are_counted_where_they_are_dropped(
    launch: Launch, identity: Identity, user_directory: Path, direction: str
) -> None:
    """A relay that is stopped drops what its queue doesn't hold, and says how much once it goes
    on (SO_RXQ_OVFL)."""
    with sited(launch, identity, user_directory, direction) as site, site.lane() as lane:
        client, server, letters = lane.client(), lane.server(), Letters()
        lane.meet(client, server)
        (relay,) = site.relays()
        os.kill(relay, signal.SIGSTOP)
        for datagram in letters.some([1000] * 2000):
            client.send(datagram)
        os.kill(relay, signal.SIGCONT)
        lane.settle()
        came = len(server.waiting())
        lane.meet(client, server)  # with it comes what was dropped before
        eventually(
            lambda: (
                came + server.dropped + site.count("datagrams_dropped_total", "reason=queue")
                == 2000
            ),
            "all are accounted for",
        )
        assert site.count("datagrams_dropped_total", "reason=queue") > 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_killed_relay_is_replaced(
    launch: Launch, identity: Identity, user_directory: Path, direction: str
) -> None:
    """Clients go on with the next one; what came meanwhile waits in the listener's queue."""
    with sited(launch, identity, user_directory, direction) as site, site.lane() as lane:
        client, server, letters = lane.client(), lane.server(), Letters()
        lane.meet(client, server)
        for _ in range(2):
            (relay,) = site.relays()
            os.kill(relay, signal.SIGKILL)
            waiting = letters.some([100] * 5)
            eventually(lambda r=relay: not procfs.alive(r), "it is dead")  # type: ignore[misc]
            for datagram in waiting:
                client.send(datagram)
            server.expect(*waiting)
            lane.meet(client, server)
            eventually(lambda r=relay: site.relays() not in ([], [r]), "another is there")  # type: ignore[misc]
        lane.assert_quiet()


def test_workers_keep_a_client_together(
    launch: Launch, identity: Identity, user_directory: Path
) -> None:
    """Three relays, four ports: all the datagrams of a client come from one address, in order."""
    with (
        sited(launch, identity, user_directory, "inbound", "--workers", "3", ports=4) as site,
        contextlib.ExitStack() as stack,
    ):
        assert len(site.relays()) == 3
        for port in range(4):
            lane = stack.enter_context(site.lane(port))
            server = lane.server()
            clients = [lane.client() for _ in range(10)]
            met = [lane.meet(client, server) for client in clients]
            for client, one in zip(clients, met, strict=True):
                got = carry(client, server, Letters().some([900] * 100))
                assert got.peer == one.peer
                carry(server, client, Letters().some([900] * 100), one)


def test_tcp_and_udp_side_by_side(launch: Launch, identity: Identity, user_directory: Path) -> None:
    """A port of each protocol with the same number here, and there: both are served, and the
    relays of the one are not those of the other."""
    port = free_ports()
    more = ("-t", f"127.0.0.1/{port}:{INSIDE}", "-u", f"127.0.0.1/{port}:{INSIDE}")
    with (
        sited(launch, identity, user_directory, "inbound", *more) as site,
        contextlib.ExitStack() as stack,
    ):
        listener = stack.enter_context(site.namespace.socket(socket.AF_INET))
        listener.bind(("127.0.0.1", INSIDE))
        listener.listen()
        site.entry = port
        lane = stack.enter_context(site.lane())
        client, server = lane.client(), lane.server()
        lane.meet(client, server)
        talker = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
        hearer = stack.enter_context(listener.accept()[0])
        hearer.settimeout(PATIENCE)
        send_and_finish(talker, stream := Stream(), 5000)
        expect_end(hearer, stream, 5000)
        (relay,) = site.relays()
        os.kill(relay, signal.SIGKILL)
        eventually(lambda: site.relays() not in ([], [relay]), "another is there")
        lane.meet(client, server)
        send_and_finish(hearer, stream := Stream(), 5000)
        expect_end(talker, stream, 5000)
