# SPDX-License-Identifier: GPL-2.0-or-later
"""Many connections, and little to serve them with: all are served in the end, nothing spins."""

from __future__ import annotations

import os
import resource
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from hardsplice.relay.pools import POOL_SIZE
from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.paths import DIRECT, Path
from tests.support.product import Instance, free_ports, limited
from tests.support.stream import (
    MIB,
    PATIENCE,
    Stream,
    Violation,
    eventually,
    expect,
    expect_end,
    finish,
    send,
    together,
)

Ways = Callable[[str], Path]
Launch = Callable[..., Instance]


@contextmanager
def echoing(listener: socket.socket) -> Iterator[None]:
    """A server for any number of clients: sends back what it gets until its client finishes."""
    selector = selectors.DefaultSelector()
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    stop_here, stop_there = socket.socketpair()
    selector.register(stop_here, selectors.EVENT_READ)

    def serve() -> None:
        while True:
            for key, _ in selector.select():
                sock = key.fileobj
                if sock is stop_here:
                    return
                if sock is listener:
                    try:
                        accepted = listener.accept()[0]
                    except BlockingIOError:
                        continue
                    accepted.settimeout(PATIENCE)
                    selector.register(accepted, selectors.EVENT_READ)
                    continue
                assert isinstance(sock, socket.socket)
                try:
                    data = sock.recv(65_536)
                    sock.sendall(data)
                except ConnectionError:
                    data = b""
                if not data:
                    selector.unregister(sock)
                    sock.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop_there.close()
        thread.join(PATIENCE)
        for key in list(selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        selector.close()


def exchange(client: socket.socket, size: int = 100) -> None:
    """Send, get the same back, finish, and see the end."""
    stream = Stream()
    send(client, stream, size)
    expect(client, stream, size)
    finish(client)
    expect_end(client, stream, 0)


@pytest.mark.parametrize("way", [DIRECT[0], "inbound-ipv4-root", "outbound-ipv6-user"])
def test_5000_short_connections_in_a_row(ways: Ways, way: str) -> None:
    with ways(way).lane() as lane, echoing(lane.listen()):
        for _ in range(5000):
            client = lane.client()
            exchange(client)
            lane.forget(client)


@pytest.mark.parametrize(
    "way", [DIRECT[0], "inbound-ipv4-root", "inbound-ipv6-user", "outbound-ipv4-user"]
)
def test_500_at_once(ways: Ways, way: str) -> None:
    """All open at the same time, each with its own bytes; idle meanwhile, they cost nothing."""
    with ways(way).lane() as lane, echoing(lane.listen(backlog=1000)):
        clients = together(*(lane.client for _ in range(500)))
        streams = [Stream() for _ in clients]
        for client, stream in zip(clients, streams, strict=True):
            send(client, stream, 2000)
        for client, stream in zip(clients, streams, strict=True):
            expect(client, stream, 2000)
        lane.assert_quiet()
        together(*(partial(exchange, client) for client in clients))


@pytest.mark.root  # nobody else may look into processes that aren't dumpable
@pytest.mark.parametrize("way", ["inbound-ipv6-user", "outbound-ipv4-root"])
def test_an_idle_connection_costs_two_descriptors(ways: Ways, way: str) -> None:
    """One for each side, and no pipe, though it has carried data both ways."""
    with ways(way).lane() as lane, echoing(lane.listen(backlog=1000)):
        before = _descriptors(lane.processes())
        for client in [lane.client() for _ in range(300)]:
            stream = Stream()
            send(client, stream, 2000)
            expect(client, stream, 2000)
        cost = _descriptors(lane.processes()) - before
        # Pools of sockets and pipes may be fuller or emptier, by as many as they hold.
        assert abs(cost - 600) <= 64, f"{cost} descriptors for 300 connections"


def _descriptors(processes: list[int]) -> int:
    return sum(len(procfs.descriptors(pid)) for pid in processes)


@pytest.mark.parametrize("way", ["inbound-ipv4-user", "outbound-ipv4-user"])
def test_more_blocked_flows_than_an_ordinary_user_has_pipe_memory_for(ways: Ways, way: str) -> None:
    """Past pipe-user-pages-soft new pipes have a page or two: slower, and still every byte."""
    size = 8 * MIB
    with ways(way).lane() as lane:
        lane.listen(buffer=64 * 1024)
        pairs = [lane.pair() for _ in range(60)]
        streams = [Stream() for _ in pairs]
        begin = threading.Event()

        def write(client: socket.socket, stream: Stream) -> None:
            client.settimeout(60)
            send(client, stream, size)
            finish(client)

        def read(server: socket.socket, stream: Stream) -> None:
            begin.wait(PATIENCE)
            expect_end(server, stream, size)

        def start_reading() -> None:
            time.sleep(1)  # all that fits is on its way by then
            lane.assert_quiet()
            begin.set()

        together(
            start_reading,
            *(partial(write, pair[0], own) for pair, own in zip(pairs, streams, strict=True)),
            *(partial(read, pair[1], own) for pair, own in zip(pairs, streams, strict=True)),
        )


Make = Callable[[socket.AddressFamily], socket.socket]


def ends(direction: str, namespace: Namespace) -> tuple[str, Make, Make]:
    """A direction's option, and what makes sockets where its clients are, and where its servers."""

    def here(family: socket.AddressFamily) -> socket.socket:
        return socket.socket(family)

    if direction == "inbound":
        return "-t", here, namespace.socket
    return "-T", namespace.socket, here


@pytest.fixture(params=["inbound", "outbound"])
def scarce(
    request: pytest.FixtureRequest, identity: Identity, namespace: Namespace, launch: Launch
) -> Iterator[tuple[Instance, socket.socket, Callable[[], socket.socket]]]:
    """An instance with 64 descriptors a process; the server's listener; how to make a client."""
    port = free_ports()
    option, outside, inside = ends(request.param, namespace)
    instance = launch(
        identity, "-f", option, f"127.0.0.1/{port}:{port}", str(namespace.pid), descriptors=64
    ).wait_ready()

    def client() -> socket.socket:
        made = outside(socket.AF_INET)
        made.settimeout(PATIENCE)
        made.connect(("127.0.0.1", port))
        return made

    with inside(socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(1000)
        yield instance, listener, client


def test_200_clients_with_64_descriptors(
    scarce: tuple[Instance, socket.socket, Callable[[], socket.socket]],
) -> None:
    """Clients that come and go: all are served, by the processes that were there at first."""
    instance, listener, connect = scarce
    before = instance.processes()
    with echoing(listener):
        clients = [connect() for _ in range(200)]

        def visit(client: socket.socket) -> None:
            with client:
                exchange(client)

        together(*(partial(visit, client) for client in clients))
        assert instance.processes() == before, instance.messages()
        procfs.assert_quiet(before)


def test_64_descriptors_held_by_idle_clients(
    scarce: tuple[Instance, socket.socket, Callable[[], socket.socket]],
) -> None:
    """Clients that stay: those that fit are served, the others wait without anything spinning."""
    instance, listener, connect = scarce
    before = instance.processes()
    with echoing(listener):
        waiting = [(connect(), Stream()) for _ in range(200)]
        for client, stream in waiting:
            send(client, stream, 100)
        served_at_first = None
        deadline = time.monotonic() + 60
        while waiting:
            served = _served(waiting)
            if served_at_first is None:
                procfs.assert_quiet(before)
                served_at_first = len(served)
            if time.monotonic() > deadline:
                raise Violation(f"{len(waiting)} clients were never served; {instance.messages()}")
            for client, stream in served:
                expect(client, stream, 100)
                client.close()
            waiting = [one for one in waiting if one[0].fileno() >= 0]
        assert served_at_first
        assert instance.processes() == before, instance.messages()


def _served(waiting: list[tuple[socket.socket, Stream]]) -> list[tuple[socket.socket, Stream]]:
    """Those whose answer is there; waits for the first, and a little for those right behind it."""
    with selectors.DefaultSelector() as selector:
        for pair in waiting:
            selector.register(pair[0], selectors.EVENT_READ, pair)
        selector.select(PATIENCE)
        time.sleep(0.05)
        return [key.data for key, _ in selector.select(0)]


# Has as many descriptors under way as the limit allows, until its input ends.
_CROWD = """
import array, errno, socket, sys
ends, sent = [], True
while sent:
    ends.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    ends[-1][0].setblocking(False)
    try:
        while True:
            socket.send_fds(ends[-1][0], [b"x"], [0] * 250)
    except BlockingIOError:
        pass
    except OSError as error:
        assert error.errno == errno.ETOOMANYREFS, error
        sent = False
print("full", flush=True)
sys.stdin.read()
"""
CROWD, LIMIT = 3000, 1000  # descriptors that they may have
LONER = 61235  # whom nobody else runs as, not even the tests of somebody else


@contextmanager
def another_program(identity: Identity, *argv: str) -> Iterator[None]:
    """A program of that user has taken all that there is of something; it ends with its input."""
    pipe = subprocess.PIPE
    with subprocess.Popen(identity.wrap(list(argv)), stdin=pipe, stdout=pipe) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"full\n"
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(PATIENCE)


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_another_program_of_the_user_has_too_many_descriptors_under_way(
    identity: Identity, launch: Launch, direction: str
) -> None:
    """Then relays get no new sockets: clients wait, it is said what helps, nothing spins, and all
    are served once that is over.
    """
    alone = Identity("alone", LONER) if os.geteuid() == 0 else identity
    who = identity if identity.is_root else alone
    runas = ["--runas", f"{LONER}:{LONER}"] if identity.is_root else []
    port = free_ports()
    with Namespace(who) as namespace:
        option, outside, inside = ends(direction, namespace)
        instance = launch(
            who, "-f", *runas, option, f"127.0.0.1/{port}:{port}", str(namespace.pid),
            descriptors=LIMIT,
        ).wait_ready()  # fmt: skip
        with inside(socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(1000)
            with echoing(listener):
                clients = []
                with another_program(alone, *limited(CROWD), "/usr/bin/python3", "-c", _CROWD):
                    for _ in range(2 * POOL_SIZE):
                        client = outside(socket.AF_INET)
                        client.settimeout(PATIENCE)
                        client.connect(("127.0.0.1", port))
                        clients.append(client)
                    eventually(
                        lambda: "a user of its own" in instance.messages(),
                        lambda: f"it does not say what is wrong; {instance.messages()}",
                    )
                    procfs.assert_quiet(instance.processes())
                together(*(partial(exchange, client) for client in clients))
                for client in clients:
                    client.close()
        assert instance.messages().count("cannot pass sockets on") < 10
        instance.stop()


PROCESSES = 40  # that they may have
_MANY = """
import os, sys
for _ in range(2 * int(sys.argv[1])):
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
print("full", flush=True)
sys.stdin.read()
for _ in range(2 * int(sys.argv[1])):
    os.wait()  # until then they count
"""


@contextmanager
def few_processes() -> Iterator[None]:
    """What is started meanwhile may have so many, those of other programs of its user included."""
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, before)


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user whom nobody else runs as")
def test_another_program_of_the_user_has_all_processes(launch: Launch, direction: str) -> None:
    """Then a relay that died can't be replaced: hardsplice says so and goes on, and whoever waits
    is served once that is over.
    """
    port, runas = free_ports(), f"{LONER}:{LONER}"
    with Namespace(Identity("root")) as namespace:
        option, outside, inside = ends(direction, namespace)
        words = ["-f", "--runas", runas, option, f"127.0.0.1/{port}:{port}", str(namespace.pid)]
        with few_processes():
            instance = launch(Identity("root"), *words).wait_ready()
        with inside(socket.AF_INET) as listener, outside(socket.AF_INET) as client:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()
            many = ["/usr/bin/python3", "-c", _MANY, str(PROCESSES)]
            with another_program(Identity("alone", LONER), *many):
                for pid in instance.processes():
                    if procfs.status(pid)["Name"].startswith("hs-relay"):
                        os.kill(pid, signal.SIGKILL)
                said = f"{direction}: cannot start the relay again for now: "
                eventually(lambda: said in instance.messages(), instance.messages)
                client.settimeout(PATIENCE)
                client.connect(("127.0.0.1", port))
            with echoing(listener):
                exchange(client)
        assert "was started again" in instance.messages()
