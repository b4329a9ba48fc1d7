# SPDX-License-Identifier: GPL-2.0-or-later
"""Several relays a direction: they share the load, and one's death costs only its own flows."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import PATIENCE, Stream, Violation, eventually, expect, send

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")
FLOWS = 40


class Pairs:
    """Connections through an instance with several relays, client and server each."""

    def __init__(self, stack: contextlib.ExitStack, instance: Instance, port: int) -> None:
        self.stack, self.instance, self.port = stack, instance, port
        self.listener: socket.socket | None = None

    def serve(self, listener: socket.socket, at: int) -> None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", at))
        listener.listen(1024)
        listener.settimeout(PATIENCE)
        self.listener = self.stack.enter_context(listener)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """One connection, each end with a timeout."""
        assert self.listener is not None
        address = ("127.0.0.1", self.port)
        client = self.stack.enter_context(socket.create_connection(address, timeout=PATIENCE))
        server = self.stack.enter_context(self.listener.accept()[0])
        server.settimeout(PATIENCE)
        return client, server

    def inbound(self) -> list[int]:
        """The inbound relays."""
        return [
            pid for pid in self.instance.relays() if procfs.status(pid)["Name"] == "hs-relay-in"
        ]


@pytest.fixture
def two(launch: Launch, identity: Identity) -> Iterator[Pairs]:
    """Two inbound relays and two outbound ones, with a server in the namespace."""
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(Namespace(identity))
        port = free_ports(2)
        instance = launch(
            identity, "-f", "--workers", "2", "-t", f"127.0.0.1/{port}:80",
            "-T", f"127.0.0.1/81:{port + 1}", str(namespace.pid),
        ).wait_ready()  # fmt: skip
        pairs = Pairs(stack, instance, port)
        pairs.serve(namespace.socket(socket.AF_INET), 80)
        yield pairs
        instance.stop()


def flows_of(pid: int) -> int:
    """Sockets that a process has, as far as they tell of its flows."""
    return sum(what.startswith("socket:") for what in procfs.descriptors(pid).values())


def test_there_are_as_many_relays_as_asked_for_each_with_its_name(two: Pairs) -> None:
    names = Counter(procfs.status(pid)["Name"] for pid in two.instance.processes())
    assert names == {"hs-host": 1, "hs-namespace": 1, "hs-relay-in": 2, "hs-relay-out": 2}


@pytest.mark.root
def test_connections_that_come_one_by_one_and_stay_are_shared(
    program: Program, launch: Launch
) -> None:
    """The worst case for a queue of sleepers: each connection finds all relays asleep."""
    root = Identity("root")
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(Namespace(root))
        port = free_ports()
        instance = launch(
            root, "-f", "--workers", "2", "-t", f"127.0.0.1/{port}:80", str(namespace.pid)
        ).wait_ready()
        pairs = Pairs(stack, instance, port)
        pairs.serve(namespace.socket(socket.AF_INET), 80)
        procfs.settle(instance.processes())
        before = {pid: flows_of(pid) for pid in pairs.inbound()}
        assert len(before) == 2
        for _ in range(FLOWS):
            pairs.connect()
            procfs.settle(instance.processes(), within=0.2)
        # A flow has two sockets, of which one was in the pool before, which is filled up at half.
        for pid, had in before.items():
            assert flows_of(pid) - had > FLOWS // 4, "one relay has hardly any of the connections"
        instance.stop()


def test_a_relay_killed_costs_its_own_flows_only(two: Pairs) -> None:
    """Some break, the others carry bytes as before, and whoever comes now is served."""
    made = [two.connect() for _ in range(FLOWS)]
    first, second = two.inbound()
    os.kill(first, signal.SIGKILL)
    broken: list[tuple[socket.socket, socket.socket]] = []
    whole: list[tuple[socket.socket, socket.socket]] = []
    for client, server in made:
        client.settimeout(0.1)
        try:
            # The kernel closes a killed process's sockets, which both ends of its flows notice.
            (broken if client.recv(1) == b"" else whole).append((client, server))
        except TimeoutError:
            whole.append((client, server))
        except ConnectionResetError:
            broken.append((client, server))
    assert broken, "no connection was the dead relay's"
    assert whole, "no connection was the other relay's"
    for client, server in (*whole, *(two.connect() for _ in range(FLOWS))):
        client.settimeout(PATIENCE)
        there, back = Stream(), Stream()
        send(client, there, 1000)
        expect(server, there, 1000)
        send(server, back, 1000)
        expect(client, back, 1000)
    eventually(lambda: len(two.inbound()) == 2, "the dead relay is not replaced")
    assert second in two.inbound()
    assert first not in two.inbound()


def test_no_client_waits_for_a_relay_that_was_told_of_it_and_died(two: Pairs) -> None:
    """A relay that is stopped may have been woken for a client, as its only one; then it dies."""
    for _ in range(6):
        victim = two.inbound()[0]
        os.kill(victim, signal.SIGSTOP)
        clients = [
            two.stack.enter_context(
                socket.create_connection(("127.0.0.1", two.port), timeout=PATIENCE)
            )
            for _ in range(4)
        ]
        with contextlib.suppress(ProcessLookupError):  # its monitor may have been quicker
            os.kill(victim, signal.SIGKILL)
        for client in clients:
            client.sendall(b"x")
        assert two.listener is not None
        served = 0
        while served < len(clients):
            try:
                server, _ = two.listener.accept()
            except TimeoutError:
                raise Violation(f"{served} of {len(clients)} clients were served") from None
            with server:
                server.settimeout(PATIENCE)
                served += server.recv(1) == b"x"
        eventually(lambda: len(two.inbound()) == 2, "the dead relay is not replaced")
