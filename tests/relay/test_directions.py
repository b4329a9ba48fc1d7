# SPDX-License-Identifier: GPL-2.0-or-later
"""What forwarding adds to TCP: other addresses, other families, targets that don't answer.

There is no oracle for these; the manual says what is right.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.relay import contract, contract_breaks
from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.paths import SPLICED, Lane, Path, loopback
from tests.support.product import Instance, can_bind, free_ports
from tests.support.stream import (
    PATIENCE,
    Stream,
    eventually,
    expect,
    expect_end,
    finish,
    notices_reset,
    reset,
    send,
)

Ways = Callable[[str], Path]
Launch = Callable[..., Instance]
OTHER = {socket.AF_INET: socket.AF_INET6, socket.AF_INET6: socket.AF_INET}


# --- which server a client reaches ---


@pytest.mark.parametrize("way", SPLICED)
def test_falls_back_to_the_other_loopback(ways: Ways, way: str) -> None:
    """A server that listens on the other family only is reached too, and nothing is lost."""
    with ways(way).lane() as lane:
        lane.listen(family=OTHER[lane.ends.family])
        for early in (False, True):
            client, stream = lane.client(), Stream()
            if early:
                send(client, stream, 10_000)
                finish(client)
                expect_end(lane.accept(), stream, 10_000)
            else:
                server = lane.accept()
                send(server, stream, 10_000)
                expect(client, stream, 10_000)


def test_servers_see_the_loopback_address_whoever_the_client_is(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    """README.md's first limit: here a client of 127.0.0.7 is one of 127.0.0.1."""
    port = free_ports()
    instance = launch(identity, "-f", "-t", f"{port}:80", str(namespace.pid)).wait_ready()
    with namespace.socket(socket.AF_INET) as server:
        server.bind(("127.0.0.1", 80))
        server.listen()
        server.settimeout(PATIENCE)
        for address in ("127.0.0.7", "127.0.0.1"):
            with socket.create_connection(
                ("127.0.0.1", port), PATIENCE, source_address=(address, 0)
            ):
                accepted, peer = server.accept()
                accepted.close()
                assert peer[0] == "127.0.0.1"
    instance.stop()


@pytest.mark.parametrize("way", ["inbound-ipv6-root", "outbound-ipv4-user"])
def test_prefers_the_clients_family(ways: Ways, way: str) -> None:
    """With servers on both, the one of the client's family is reached."""
    with ways(way).lane() as lane:
        lane.listen(family=OTHER[lane.ends.family])
        lane.listen()
        lane.client()
        assert lane.accept().family == lane.ends.family


@contextlib.contextmanager
def _servers(
    namespace: Namespace, family: socket.AddressFamily, address: str, *ports: int
) -> Iterator[list[socket.socket]]:
    """Listening sockets in the namespace."""
    with contextlib.ExitStack() as stack:
        made = []
        for port in ports:
            server = stack.enter_context(namespace.socket(family))
            if family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            server.bind((address, port))
            server.listen()
            server.settimeout(5)
            made.append(server)
        yield made


def _reaches(address: str, port: int, server: socket.socket) -> None:
    """A client of that port talks to that server."""
    stream = Stream()
    with (
        socket.create_connection((address, port), timeout=5) as client,
        server.accept()[0] as accepted,
    ):
        accepted.settimeout(5)
        send(client, stream, 100)
        expect(accepted, stream, 100)


def test_a_listener_without_address_is_dual_stack(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    """One port serves clients of both families, each with the server of its own."""
    port = free_ports()
    launch(identity, "-f", "-t", f"{port}:80", str(namespace.pid)).wait_ready()
    with (
        _servers(namespace, socket.AF_INET, "127.0.0.1", 80) as (four,),
        _servers(namespace, socket.AF_INET6, "::1", 80) as (six,),
    ):
        _reaches("127.0.0.1", port, four)
        _reaches("::1", port, six)


@pytest.mark.parametrize(
    ("option", "works", "fails"), [("-4", "127.0.0.1", "::1"), ("-6", "::1", "127.0.0.1")]
)
def test_one_family_only(
    namespace: Namespace, identity: Identity, launch: Launch, option: str, works: str, fails: str
) -> None:
    port = free_ports()
    launch(identity, "-f", option, "-t", f"{port}:80", str(namespace.pid)).wait_ready()
    family = socket.AF_INET6 if ":" in works else socket.AF_INET
    with _servers(namespace, family, works, 80) as (server,):
        _reaches(works, port, server)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((fails, port), timeout=5).close()


def test_a_target_address_is_used(namespace: Namespace, identity: Identity, launch: Launch) -> None:
    """Another address of the namespace, for a client of either family."""
    port = free_ports(2)
    specs = ["-t", f"{port}:127.0.0.2/80", "-t", f"127.0.0.1/{port + 1}:[::1]/81"]
    launch(identity, "-f", *specs, str(namespace.pid)).wait_ready()
    with _servers(namespace, socket.AF_INET, "127.0.0.2", 80) as (server,):
        _reaches("127.0.0.1", port, server)
        _reaches("::1", port, server)
    with _servers(namespace, socket.AF_INET6, "::1", 81) as (server,):
        _reaches("127.0.0.1", port + 1, server)


def test_an_interface_is_used(namespace: Namespace, identity: Identity, launch: Launch) -> None:
    port = free_ports()
    launch(identity, "-f", "-t", f"%lo/{port}:80", str(namespace.pid)).wait_ready()
    with _servers(namespace, socket.AF_INET, "127.0.0.1", 80) as (server,):
        _reaches("127.0.0.1", port, server)


def test_a_mapped_range_keeps_its_order(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    first = free_ports(10)
    spec = f"127.0.0.1/{first}-{first + 9}:8000-8009"
    launch(identity, "-f", "-t", spec, str(namespace.pid)).wait_ready()
    with _servers(namespace, socket.AF_INET, "127.0.0.1", *range(8000, 8010)) as servers:
        for number in (0, 4, 9):
            _reaches("127.0.0.1", first + number, servers[number])


@pytest.mark.parametrize("lone", [False, True])
def test_exclusions(namespace: Namespace, identity: Identity, launch: Launch, lone: bool) -> None:
    """An excluded port is not listened on; exclusions alone mean all the others."""
    first = free_ports(10)
    spec = f"127.0.0.1/{first}-{first + 9},~{first + 5}"
    if lone:
        spec = f"127.0.0.1/~1-{first - 1},~{first + 5},~{first + 10}-65535"
    launch(identity, "-f", "-t", spec, str(namespace.pid)).wait_ready()
    taken = [n for n in range(10) if not can_bind("127.0.0.1", first + n)]
    assert taken == [0, 1, 2, 3, 4, 6, 7, 8, 9]


# --- a target that does not answer ---


@contextlib.contextmanager
def _unanswering(lane: Lane) -> Iterator[socket.socket]:
    """The lane's server listens, its accept queue is full, and further SYNs to it are dropped."""
    listener = lane.listen(backlog=0)
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            extra = stack.enter_context(lane.ends.server_side(lane.ends.family))
            extra.settimeout(0.3)
            try:
                extra.connect((loopback(lane.ends.family), lane.ends.exit))
            except TimeoutError:
                break
        else:
            pytest.fail("the accept queue took 16 connections with a backlog of 0")
        yield listener


def _drain(listener: socket.socket) -> None:
    """Accept what waits, so that the next SYN is answered."""
    listener.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()


@pytest.mark.parametrize("way", SPLICED)
def test_others_are_served_while_a_target_does_not_answer(ways: Ways, way: str) -> None:
    """The clients wait, asleep; with early data and FIN sent they get through when it answers."""
    path = ways(way)
    with path.lane() as stuck, path.lane() as other:
        with _unanswering(stuck) as listener:
            client, stream, back = stuck.client(), Stream(), Stream()
            send(client, stream, 50_000)
            finish(client)
            contract.successors(other)
            stuck.assert_quiet(1.0)
            _drain(listener)
        while True:  # until it is ours: the queue's other guests are closed
            server = stuck.accept(patience=10)
            if server.recv(1, socket.MSG_PEEK):
                break
            server.close()
        expect_end(server, stream, 50_000)
        send(server, back, 100)
        server.close()
        expect_end(client, back, 100)
        contract.successors(stuck)


@pytest.mark.root  # nobody else may count the descriptors of processes that aren't dumpable
@pytest.mark.parametrize("way", ["inbound-ipv4-root", "outbound-ipv6-user"])
def test_a_client_that_resets_while_waiting_is_let_go(ways: Ways, way: str) -> None:
    """Its descriptors are free again although the target never answered."""
    path = ways(way)
    with path.lane() as lane, path.lane() as other:
        contract.successors(other)
        procfs.settle(lane.processes())
        with _unanswering(lane) as listener:
            before = _sockets(lane)
            clients = [lane.client() for _ in range(8)]
            for client in clients:
                send(client, Stream(), 10_000)
            eventually(lambda: _sockets(lane) >= before + 8, "the clients were not accepted")
            procfs.settle(lane.processes())  # a pool of sockets may have been filled up again
            most = _sockets(lane)
            for client in clients:
                reset(client)
            eventually(
                lambda: _sockets(lane) <= most - 2 * len(clients),
                lambda: f"{most} sockets with 8 clients, {_sockets(lane)} after their resets",
                within=2,
            )
            contract.successors(other)
            _drain(listener)
        contract.successors(lane)


def _sockets(lane: Lane) -> int:
    """Sockets of the relays: those that hold more than any monitor are the relays."""
    return sum(
        sum(what.startswith("socket:") for what in procfs.descriptors(pid).values())
        for pid in procfs.leaves(lane.processes())
    )


def test_a_target_that_never_answers_is_given_up(ways: Ways) -> None:
    """In a time that is neither a hurry nor the kernel's two minutes; the client gets a reset."""
    with ways("inbound-ipv4-root").lane() as lane, _unanswering(lane):
        client = lane.client()
        notices_reset(client, within=45)
        expect_end(client, Stream(), 0, "reset")


def test_a_missing_server_is_only_its_own_clients_matter(ways: Ways) -> None:
    """Refusals and good connections take turns."""
    path = ways("inbound-ipv4-root")
    with path.lane() as missing, path.lane() as present:
        present.listen()
        for _ in range(50):
            contract_breaks.refused(missing, 0)
            client, server = present.pair()
            stream = Stream()
            send(client, stream, 100)
            expect(server, stream, 100)
            for sock in (client, server):
                present.forget(sock)
