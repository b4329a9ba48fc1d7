# SPDX-License-Identifier: GPL-2.0-or-later
"""The datagram relay's engine on the kernel itself, over loopback, in this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from hardsplice.ipc.messages import Note
from hardsplice.kernel import datagrams, socketcalls
from hardsplice.kernel.mmsghdr import LARGEST
from hardsplice.model.families import FAMILIES
from hardsplice.model.lifetimes import Lifetimes
from hardsplice.net.listener import Listener
from hardsplice.relay.pools import SocketPool
from hardsplice.relay.udp.engine import Engine
from hardsplice.relay.udp.seam import Kernel
from hardsplice.relay.udp.sending import Resources
from hardsplice.sandbox.address_book import USUAL, Pointer
from hardsplice.telemetry.counters import Stats


class Target(Pointer):
    """One that lies in this process's own memory: there is no address book."""

    def __init__(self, host: str, port: int) -> None:
        sockaddr = socketcalls.sockaddr(ip_address(host), port)
        super().__init__(USUAL, 0, int(":" in host), sockaddr)
        self.memory = ctypes.create_string_buffer(sockaddr, len(sockaddr))
        self.where = ctypes.c_void_p(ctypes.addressof(self.memory))

    def holds(self) -> bool:
        return True


class Monitor:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.asked: list[tuple[int, int]] = []

    def request_sockets(self, family: int, number: int) -> bool:
        self.asked.append((family, number))
        return True

    def answer(self) -> None:
        """Nothing."""

    def trace(self, kind: Note, listener: int, detail: int = 0) -> None:
        """Nothing."""

    def note(self, kind: Note, detail: int, listener: int = 0, text: str = "") -> None:
        assert kind is not Note.ERROR, text
        self.notes.append(kind)


class Relay:
    """An engine between a dual-stack listener and the targets at one port."""

    def __init__(self, port: int, *hosts: str) -> None:
        fd = datagrams.datagram_socket(socket.AF_INET6)
        datagrams.set_pktinfo(fd, socket.AF_INET6)
        self.listener = socket.socket(fileno=fd)
        self.listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.listener.bind(("::", 0))
        self.port = self.listener.getsockname()[1]
        self.stats, self.monitor = Stats(), Monitor()
        route = tuple(Target(host, port) for host in hosts)
        resources = Resources(
            kernel=Kernel(),
            monitor=self.monitor,
            lifetimes=Lifetimes(30, 120, 100),
            descriptors=1000,
            other_descriptors=100,
            pools=(SocketPool(0, 8), SocketPool(1, 8)),
            families=tuple(sorted({one.family for one in route})),
            counters=self.stats.count,
        )
        self.engine = Engine(resources, [Listener(fd, route, route, 1)])
        self.engine.start()
        self.supply()

    def supply(self) -> None:
        """Send the sockets that were asked for."""
        while self.monitor.asked:
            family, number = self.monitor.asked.pop()
            made = [datagrams.datagram_socket(FAMILIES[family]) for _ in range(number)]
            self.engine.add_sockets(family, made)

    def run(self) -> None:
        """Until nothing is ready: on loopback all is there at once."""
        turns = 0
        while self.engine.turn({}, 0.0):
            self.supply()
            turns += 1
            assert turns < 1000, "it spins"

    def close(self) -> None:
        self.listener.close()
        for fd in self.engine.flows.by_fd:
            os.close(fd)
        for pool in self.engine.pools:
            for fd in pool.ready:
                os.close(fd)

    def counted(self, name: str) -> int:
        return self.stats.snapshot()[name]


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with bound("127.0.0.1") as made:
        yield made


@pytest.fixture
def relay(target: socket.socket) -> Iterator[Relay]:
    with contextlib.closing(Relay(target.getsockname()[1], "127.0.0.1")) as made:
        yield made


@contextlib.contextmanager
def bound(host: str, port: int = 0) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.settimeout(5)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        made.bind((host, port))
        yield made


@contextlib.contextmanager
def client(relay: Relay, asked: str = "127.0.0.1") -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in asked else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.settimeout(5)
        made.connect((asked, relay.port))  # it hears nobody else
        yield made


@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2", "::1"])
@pytest.mark.parametrize("size", [0, 1, 1400, LARGEST])
def test_there_and_back(relay: Relay, target: socket.socket, asked: str, size: int) -> None:
    payload = os.urandom(size)
    with client(relay, asked) as peer:
        for _ in range(3):
            peer.send(payload)
            relay.run()
            got, flow = target.recvfrom(70_000)
            assert got == payload
            target.sendto(payload[::-1], flow)
            relay.run()
            assert peer.recv(70_000) == payload[::-1]
    assert relay.counted("datagrams_to_target") == relay.counted("datagrams_to_client") == 3
    assert relay.counted("bytes_to_client") == 3 * size
    assert relay.counted("accepted") == relay.counted("connected") == 1


def test_a_stream_keeps_sizes_and_order_both_ways(relay: Relay, target: socket.socket) -> None:
    sent = [bytes([n]) * size for n, size in enumerate([100] * 70 + [50, 0, 100, 100, 7, 100])]
    with client(relay) as peer:
        for payload in sent:
            peer.send(payload)
        relay.run()
        received = [target.recvfrom(1000) for _ in sent]
        assert [payload for payload, _ in received] == sent
        for payload in sent:
            target.sendto(payload, received[0][1])
        relay.run()
        assert [peer.recv(1000) for _ in sent] == sent
    assert relay.counted("dropped_send") == relay.counted("dropped_queue") == 0


def test_joined_datagrams_come_apart_again(relay: Relay, target: socket.socket) -> None:
    with client(relay) as peer:
        for _ in range(2):
            assert datagrams.segment(peer.fileno(), 100) == 0
            peer.send(b"a" * 100 + b"b" * 100 + b"c")
            relay.run()
            pieces = [target.recvfrom(1000) for _ in range(3)]
            assert [piece for piece, _ in pieces] == [b"a" * 100, b"b" * 100, b"c"]
            assert datagrams.segment(target.fileno(), 50) == 0
            target.sendto(b"d" * 50 + b"e" * 20, pieces[0][1])
            relay.run()
            assert [peer.recv(1000), peer.recv(1000)] == [b"d" * 50, b"e" * 20]
    assert relay.counted("datagrams_to_target") == 6


def test_clients_are_told_apart(relay: Relay, target: socket.socket) -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(client(relay)) for _ in range(20)]
        for number, peer in enumerate(peers):
            peer.send(b"%d" % number)
        relay.run()
        for _ in peers:
            got, flow = target.recvfrom(100)
            target.sendto(got, flow)
        relay.run()
        assert [peer.recv(100) for peer in peers] == [b"%d" % n for n in range(len(peers))]


@pytest.mark.parametrize("there", ["127.0.0.1", "::1"])
def test_the_loopback_at_which_the_target_is_gets_the_first_datagram(there: str) -> None:
    with bound(there) as only:
        port = only.getsockname()[1]
        for hosts in (("127.0.0.1", "::1"), ("::1", "127.0.0.1")):
            with contextlib.closing(Relay(port, *hosts)) as relay, client(relay) as peer:
                peer.send(b"first")
                peer.send(b"second")
                relay.run()
                assert [only.recv(100), only.recv(100)] == [b"first", b"second"]
                assert relay.counted("refused") == 0


def test_a_target_that_refuses_ends_the_flow_and_one_that_comes_is_served() -> None:
    with bound("127.0.0.1") as closed:
        port = closed.getsockname()[1]
    with contextlib.closing(Relay(port, "127.0.0.1")) as relay, client(relay) as peer:
        peer.send(b"nobody is there")
        relay.run()
        assert relay.counted("refused") == 1
        assert relay.monitor.notes == [Note.REFUSED]
        assert not relay.engine.flows.by_fd
        with bound("127.0.0.1", port) as late:
            peer.send(b"now")
            relay.run()
            assert late.recv(100) == b"now"


def test_what_the_listener_s_queue_drops_is_counted(relay: Relay, target: socket.socket) -> None:
    relay.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    with client(relay) as peer:
        for _ in range(30):
            peer.send(bytes(1000))
        relay.run()
        peer.send(b"last")
        relay.run()
    got = relay.counted("datagrams_to_target")
    assert relay.counted("dropped_queue") == 31 - got > 0


def test_a_datagram_too_large_for_the_target_s_family_is_counted(target: socket.socket) -> None:
    port = target.getsockname()[1]
    with contextlib.closing(Relay(port, "127.0.0.1")) as relay, client(relay, "::1") as peer:
        peer.send(bytes(LARGEST + 20))
        peer.send(b"small")
        relay.run()
        assert target.recv(100) == b"small"
        assert relay.counted("dropped_send") == 1
