# SPDX-License-Identifier: GPL-2.0-or-later
"""The server of many containers' ports, on a real loop with real sockets: what clients may say, how
late, and what is left of them. The registry of ports behind it is real, and what makes listeners
for it is a fake.
"""

from __future__ import annotations

import os
import socket
import types
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from hardsplice.frontends import mapping, offers, packets
from hardsplice.frontends import server as module
from hardsplice.frontends.offers import Offer
from hardsplice.frontends.server import Server
from hardsplice.ipc import loop
from hardsplice.ipc.loop import Loop
from hardsplice.kernel import pinned, socketcalls
from hardsplice.kernel.scm import Messages
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.monitor.registry import Registry
from hardsplice.net import listeners
from tests.support.clock import FakeClock
from tests.support.descriptors import open_descriptors
from tests.unit.monitor.fake_worker import FakeWorker

TARGET = ip_address("10.89.0.2")


class Worker(FakeWorker):
    """Takes listeners that are open already, as the real one does."""

    def __init__(self) -> None:
        super().__init__()
        self.taken_over: list[int] = []

    def add(self, forward: Forward, done: Any, opened: Any = None) -> None:
        if opened is not None and forward.port not in self.taken:
            self.taken_over.append(opened())
        super().add(forward, done)

    def close(self) -> None:
        for fd in self.taken_over:
            os.close(fd)


PLACES = 100


def check_room(listening: int) -> None:
    if listening > PLACES:
        raise HardspliceError("listen on", "one more port", f"there are places for {PLACES}")


class Running:
    """A server on a loop that a test turns."""

    def __init__(self, path: Path, clock: FakeClock) -> None:
        self.path, self.clock = path, clock
        self.loop, self.worker = Loop(), Worker()
        self.registry = Registry(
            (), 1, frozenset((Direction.INBOUND, one) for one in Protocol), self.worker,
            lambda _: None, lambda *_: None,
        )  # fmt: skip
        self.server = Server(str(path))
        host = types.SimpleNamespace(check_room=check_room)
        monitor: Any = types.SimpleNamespace(loop=self.loop, registry=self.registry, host=host)
        self.server.serve(monitor)
        self.clients: list[socket.socket] = []

    def turn(self, times: int = 20) -> None:
        """Serve what has come by now."""
        for _ in range(times):
            self.loop.after(0, lambda: None)
            self.loop._pass()

    def client(self) -> socket.socket:
        made = packets.connect(str(self.path))
        made.setblocking(False)
        self.clients.append(made)
        self.turn()
        return made

    def offer(self, offer: Offer) -> socket.socket:
        client = self.client()
        say(client, *offers.encode(offer))
        self.turn()
        return client

    def ports(self) -> list[int]:
        return [one.port for one in self.registry.list()]

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.turn()
        self.worker.close()
        self.server._listener.close()
        self.loop._epoll.close()


def say(client: socket.socket, *messages: tuple[bytes, Sequence[int]]) -> None:
    room = Messages(1 << 16, 253)
    for data, fds in messages:
        room.sendmsg(client.fileno(), data, fds, 0)


def failure(client: socket.socket, *, is_full: bool = False) -> str:
    """What the server answered, which then hung up."""
    found = offers.answer_of(client.recv(1 << 16))
    assert isinstance(found.failure, HardspliceError)
    assert found.is_full is is_full
    assert client.recv(1) == b""
    return str(found.failure)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Nobody is late before a test says so."""
    clock = FakeClock()
    for name in (module, loop):
        monkeypatch.setattr(name, "time", clock)
    monkeypatch.setattr(module, "_start_remover", lambda _: None)  # which is a process
    return clock


@pytest.fixture
def running(tmp_path: Path, clock: FakeClock) -> Iterator[Running]:
    listeners.prepare()
    made = Running(tmp_path / "server", clock)
    before = open_descriptors()
    try:
        yield made
    finally:
        for client in made.clients:
            client.close()
        made.turn()
        assert made.ports() == []
        made.worker.close()
        made.worker.taken_over.clear()
        assert open_descriptors() == before, "no client leaves anything"
        made.close()


class Opened:
    """Listeners as programs make them."""

    def __init__(self, *protocols: Protocol) -> None:
        self.forwards, self.fds = [], []
        for protocol in protocols:
            asked = mapping.inbound(protocol, ip_address("127.0.0.1"), 0, TARGET, 80)
            listeners.write_bind_address(asked, (0,))
            fd = listeners.open_listener(asked, (0,))
            pinned.clear_bind_address()
            self.forwards.append(asked._replace(port=socketcalls.local_port(fd)))
            self.fds.append(fd)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds:
            os.close(fd)


def test_ports_live_as_long_as_their_client(running: Running) -> None:
    with Opened(Protocol.TCP, Protocol.UDP) as one, Opened(Protocol.TCP) as two:
        first = running.offer(Offer(one.forwards, one.fds))
        second = running.offer(Offer(two.forwards, two.fds))
    assert (first.recv(9), second.recv(9)) == (offers.SERVED, offers.SERVED)
    assert running.ports() == [port.port for port in (*one.forwards, *two.forwards)]
    first.close()
    running.turn()
    assert running.ports() == [two.forwards[0].port]
    assert running.worker.reset == [1, 2], "with their connections"


def test_ports_end_with_what_was_passed_for_that(running: Running) -> None:
    read, write = os.pipe()
    with Opened(Protocol.TCP) as one:
        client = running.offer(Offer(one.forwards, one.fds, ends=read))
    os.close(read)
    assert client.recv(9) == offers.SERVED
    os.close(write)
    running.turn()
    assert running.ports() == []
    assert (client.recv(9), client.recv(9)) == (offers.ENDED, b"")


def test_a_port_that_cannot_be_removed_is_tried_again(running: Running) -> None:
    with Opened(*[Protocol.TCP] * 2) as some:
        client = running.offer(Offer(some.forwards, some.fds))
    assert client.recv(9) == offers.SERVED
    running.worker.fails = HardspliceError("remove", "port 1", "no answer")
    say(client, (b"\n", []))
    running.turn()
    assert len(running.ports()) == 2
    with pytest.raises(BlockingIOError):
        client.recv(9)  # it isn't told that they have ended
    running.worker.fails = None
    running.clock.now += module.AGAIN_SECONDS
    running.turn()
    assert running.ports() == []
    assert (client.recv(9), client.recv(9)) == (offers.ENDED, b"")


def test_a_container_without_ports_is_served_too(running: Running) -> None:
    assert running.offer(Offer([], [])).recv(9) == offers.SERVED


def test_an_offer_may_come_in_parts(running: Running) -> None:
    with Opened(*[Protocol.TCP] * (offers.PORTS + 1)) as many:
        client = running.client()
        first, second = offers.encode(Offer(many.forwards, many.fds))
        say(client, first)
        running.turn()
        assert running.ports() == [], "not before all of it is there"
        say(client, second)
        running.turn(2 * offers.PORTS)
    assert client.recv(9) == offers.SERVED
    assert len(running.ports()) == offers.PORTS + 1


def test_all_or_nothing(running: Running) -> None:
    with Opened(*[Protocol.TCP] * 3) as some:
        running.worker.taken.add(some.forwards[1].port)
        client = running.offer(Offer(some.forwards, some.fds))
    assert "in use" in failure(client)
    assert running.ports() == []


def test_more_than_there_are_places_for_is_refused_at_once(running: Running) -> None:
    with Opened(*[Protocol.TCP] * (PLACES + 1)) as many:
        client = running.offer(Offer(many.forwards, many.fds))
    assert "there are places for" in failure(client, is_full=True)
    assert running.worker.done == []


def test_a_client_that_leaves_meanwhile_leaves_nothing(running: Running) -> None:
    running.worker.later = []
    with Opened(*[Protocol.TCP] * 2) as some:
        client = running.offer(Offer(some.forwards, some.fds))
    client.close()
    running.turn()
    later, running.worker.later = running.worker.later, None
    for outcome in later:
        outcome()
    running.turn()
    assert running.ports() == []


def test_what_is_passed_has_to_be_the_listener(running: Running) -> None:
    with Opened(Protocol.TCP, Protocol.UDP) as some:
        (tcp, udp), (tcp_fd, udp_fd) = some.forwards, some.fds
        for forward, fd in (
            (tcp, udp_fd),
            (udp, tcp_fd),
            (tcp._replace(port=1), tcp_fd),
            (tcp._replace(address=None), tcp_fd),
            (tcp._replace(address=ip_address("127.0.0.2")), tcp_fd),
            (tcp, 0),
        ):
            assert "is not its listener" in failure(running.offer(Offer([forward], [fd])))
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = tcp._replace(port=plain.getsockname()[1])
        assert "is not its listener" in failure(running.offer(Offer([port], [plain.fileno()])))


def test_one_that_blocks_is_refused(running: Running) -> None:
    with Opened(Protocol.TCP, Protocol.UDP) as some:
        for forward, fd in zip(some.forwards, some.fds, strict=True):
            os.set_blocking(fd, True)
            said = failure(running.offer(Offer([forward], [fd])))
            assert "its listener is one that blocks" in said


def test_one_of_another_namespace_is_refused(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketcalls, "namespace_cookie", lambda _: 7)
    with Opened(Protocol.TCP) as one:
        said = failure(running.offer(Offer(one.forwards, one.fds)))
    assert "another network namespace" in said


@pytest.mark.parametrize(
    "message",
    [
        (b"x", []),
        (b"\xff\xff", []),
        (b"\1\1" + bytes(54), [0]),
        (b"\1\1" + bytes(54), [0, 0]),
        (b"\1\0", [0]),
        (b"x" * 65000, []),
        (b"\1\0", [0] * 253),
    ],
)
def test_garbage_is_answered_and_forgotten(
    message: tuple[bytes, list[int]], running: Running
) -> None:
    client = running.client()
    say(client, message)
    running.turn()
    assert "cannot use what was asked for" in failure(client)


def test_what_cannot_be_watched_is_refused(running: Running, tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:
        client = running.offer(Offer([], [], ends=file.fileno()))
    assert "can't be watched" in failure(client)


def test_who_never_says_the_last_word_is_not_waited_for(running: Running) -> None:
    client = running.client()
    with Opened(Protocol.TCP) as one:
        ((data, fds),) = offers.encode(Offer(one.forwards, one.fds))
        say(client, (b"\0" + data[1:], fds))
    running.turn()
    running.clock.now += module.SECONDS + 1
    running.turn()
    assert "within 10 seconds" in failure(client)


def test_who_says_something_more_wants_to_end(running: Running) -> None:
    with Opened(Protocol.TCP) as one:
        client = running.offer(Offer(one.forwards, one.fds))
    assert client.recv(9) == offers.SERVED
    say(client, (b"\n", []))
    running.turn()
    assert (client.recv(9), client.recv(9)) == (offers.ENDED, b"")
    assert running.ports() == []


def test_others_are_turned_away(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socketcalls, "peer_user", lambda _: 12345)
    assert running.client().recv(9) == b""


def test_those_that_say_nothing_keep_a_bounded_number_of_places(running: Running) -> None:
    oldest, *others = [running.client() for _ in range(module.OFFERING)]
    with Opened(Protocol.TCP) as one:
        late = running.offer(Offer(one.forwards, one.fds))
        running.turn()
        assert late.recv(9) == offers.SERVED
    assert "too many others ask" in failure(oldest)
    for other in others:
        with pytest.raises(BlockingIOError):
            other.recv(9)


def test_a_connection_of_its_own_tells_nobodys_end(running: Running) -> None:
    client = running.client()
    ((data, _),) = offers.encode(Offer([], [], ends=client.fileno()))
    say(client, (data, [client.fileno()]))
    running.turn()
    assert "can't be watched: it is no pipe" in failure(client)


def test_it_ends_when_nobody_has_been_there_for_a_while(running: Running) -> None:
    client = running.offer(Offer([], []))
    for _ in range(3):
        running.clock.now += module.IDLE_SECONDS + 1
        running.turn()
    client.close()
    running.turn()
    running.clock.now += module.IDLE_SECONDS / 2
    running.turn()
    assert running.loop.status is None
    running.clock.now += module.IDLE_SECONDS
    running.turn()
    assert running.loop.status == 0
