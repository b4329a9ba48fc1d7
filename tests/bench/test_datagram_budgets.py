# SPDX-License-Identifier: GPL-2.0-or-later
"""The budgets of datagrams: system calls of a request and its answer, of bursts, and of what the
sender has joined; descriptors and memory of a flow. As in test_budgets.py all of it is counted.

How many datagrams a call takes depends on how many have come, and so on time. A burst comes at once
here: the relay is stopped until all of it is in its queue. The call that waits returns with EINTR
for that, as often as strace has to do with it; so waits aren't counted of bursts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from hardsplice.model.families import FAMILIES
from hardsplice.relay.pools import POOL_SIZE
from tests.bench.tracing import Traced, calls_of, skip_without_strace
from tests.support import procfs
from tests.support.datagrams import SOL_UDP, UDP_GRO, UDP_SEGMENT
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

BURST, SIZE = 32, 1400  # datagrams, bytes: as many as a call of the relay takes for certain
WAITS = ("epoll_wait", "epoll_pwait")
SLACK = 0.05  # calls of a round: the allocator's, a signal's
WARM, FLOWS = 100, 500  # flows that are there before, and those that are measured
MEMORY_OF_A_FLOW = 1024  # bytes


class Site:
    """A server in the namespace, and a client on the host that the server knows."""

    def __init__(self, instance: Instance, port: int, server: socket.socket) -> None:
        self.instance, self.port, self.server = instance, port, server
        (self.relay,) = (
            pid for pid, name in procfs.names(instance.pid).items() if name == "hs-udp-in"
        )
        self.client = self.new_client()
        server.settimeout(PATIENCE)
        self.client.send(b"hello")
        _, self.peer = server.recvfrom(100)
        server.sendto(b"hello", self.peer)
        assert self.client.recv(100) == b"hello"

    def new_client(self) -> socket.socket:
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", self.port))
        return client

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Meanwhile the relay does nothing."""
        os.kill(self.relay, signal.SIGSTOP)
        eventually(lambda: procfs.stat(self.relay)[0] in "Tt", "it goes on")
        try:
            yield
        finally:
            os.kill(self.relay, signal.SIGCONT)

    # --- what is counted --------------------------------------------------------------------------

    def round_trip(self) -> None:
        """A request and its answer."""
        self.client.send(b"x" * 64)
        assert len(self.server.recv(100)) == 64
        self.server.sendto(b"y" * 64, self.peer)
        assert len(self.client.recv(100)) == 64

    def burst_there(self) -> None:
        with self.stopped():
            for _ in range(BURST):
                self.client.send(bytes(SIZE))
        for _ in range(BURST):
            assert len(self.server.recv(1 << 16)) == SIZE

    def burst_back(self) -> None:
        with self.stopped():
            for _ in range(BURST):
                self.server.sendto(bytes(SIZE), self.peer)
        for _ in range(BURST):
            assert len(self.client.recv(1 << 16)) == SIZE

    def joined_there(self) -> None:
        """A burst that the client sends by one call (GSO), and the server takes by one (GRO)."""
        self.server.setsockopt(SOL_UDP, UDP_GRO, 1)
        segment = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", SIZE))]
        self.client.sendmsg([bytes(SIZE * BURST)], segment)
        assert len(self.server.recv(1 << 16)) == SIZE * BURST

    def joined_back(self) -> None:
        self.client.setsockopt(SOL_UDP, UDP_GRO, 1)
        segment = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", SIZE))]
        self.server.sendmsg([bytes(SIZE * BURST)], segment, 0, self.peer)
        assert len(self.client.recv(1 << 16)) == SIZE * BURST


@contextlib.contextmanager
def site(program: Program, identity: Identity, *, descriptors: int | None = None) -> Iterator[Site]:
    with Namespace(identity) as namespace, contextlib.ExitStack() as stack:
        port = free_ports()
        server = stack.enter_context(namespace.datagram_socket(socket.AF_INET))
        server.bind(("127.0.0.1", 80))
        arguments = ["-f", "-q", "-u", f"127.0.0.1/{port}:80", str(namespace.pid)]
        instance = Instance(program, identity, arguments, descriptors=descriptors)
        stack.callback(instance.discard)
        instance.wait_ready()
        made = Site(instance, port, server)
        stack.callback(made.client.close)
        yield made


@pytest.mark.parametrize(
    ("what", "rounds", "left_out", "budget"),
    [
        # Three each way: wait, receive, send.
        (Site.round_trip, 500, (), 6),
        # The same for all of a burst.
        (Site.burst_there, 50, WAITS, 2),
        (Site.burst_back, 50, WAITS, 2),
        (Site.joined_there, 100, (), 3),
        (Site.joined_back, 100, (), 3),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_datagrams_cost_no_more_calls_than_their_budget(
    program: Program,
    identity: Identity,
    user_directory: Path,
    what: Callable[[Site], None],
    rounds: int,
    left_out: Collection[str],
    budget: int,
) -> None:
    skip_without_strace(identity)

    def counted(number: int) -> int:
        summary = user_directory / f"calls-{number}"
        with site(Traced(program, summary), identity) as traced:
            for _ in range(number):
                what(traced)
            calls = calls_of(traced.instance, summary)
        return sum(times for name, times in calls.items() if name not in left_out)

    used = (counted(10 + rounds) - counted(10)) / rounds
    assert used <= budget + SLACK


@pytest.mark.root  # nobody else may look into processes that aren't dumpable
def test_a_flow_costs_a_descriptor_and_little_memory(program: Program, identity: Identity) -> None:
    with site(program, identity, descriptors=4096) as made, contextlib.ExitStack() as stack:

        def open_flows(number: int) -> None:
            for _ in range(number):
                client = stack.enter_context(made.new_client())
                client.send(b"hello")
                _, peer = made.server.recvfrom(100)
                made.server.sendto(b"hello", peer)
                assert client.recv(100) == b"hello"

        open_flows(WARM)
        procfs.settle([made.relay])
        descriptors, memory = used_by(made.relay)
        open_flows(FLOWS)
        procfs.settle([made.relay])
        more_descriptors, more_memory = used_by(made.relay)
        # The pool of each family may have been empty before and be full now.
        assert more_descriptors - descriptors <= FLOWS + len(FAMILIES) * POOL_SIZE
        assert (more_memory - memory) / FLOWS <= MEMORY_OF_A_FLOW


def used_by(pid: int) -> tuple[int, int]:
    """Descriptors, and bytes of memory."""
    return len(procfs.descriptors(pid)), 1024 * procfs.resident(pid)
