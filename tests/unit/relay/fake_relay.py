# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine on a kernel to play with, and the rules that must hold whatever was played."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import cast

from hardsplice.ipc.messages import Note
from hardsplice.kernel import socketcalls
from hardsplice.net.listener import Listener
from hardsplice.relay.pools import SocketPool
from hardsplice.relay.tcp.accepting import EPOLLEXCLUSIVE
from hardsplice.relay.tcp.engine import Engine
from hardsplice.relay.tcp.flow_writer import flow_writer_of
from hardsplice.relay.tcp.flows import Limits, Resources
from hardsplice.relay.tcp.pipes import PipePool
from hardsplice.relay.tcp.rules import EPOLLIN, SIDES, UNWATCHED, Flow, watch
from hardsplice.sandbox.address_book import USUAL, Pointer
from hardsplice.telemetry.counters import Stats
from hardsplice.telemetry.flow_table import End, Ended, read_record
from tests.unit.relay.fake_kernel import FakeEpoll, FakeKernel, ReadEnd, WriteEnd
from tests.unit.relay.fake_tcp import Listening, Peer, Sock

# The targets of the first listener by family, and the other one's.
FOUR, SIX, ONE = (
    socketcalls.sockaddr(ip_address(address), port)
    for address, port in (("127.0.0.1", 80), ("::1", 80), ("127.0.0.1", 81))
)
_FOUR, _SIX = Pointer(USUAL, 0, 0, FOUR), Pointer(USUAL, 1, 1, SIX)
IPV4_FIRST, IPV6_FIRST = (_FOUR, _SIX), (_SIX, _FOUR)
SINGLE = (Pointer(USUAL, 2, 0, ONE),)


@dataclass
class FakeMonitor:
    """Writes down what it is told."""

    asked: list[tuple[int, int]] = field(default_factory=list)
    notes: list[tuple[Note, int, int, str]] = field(default_factory=list)
    asked_alive: int = 0
    yields: int = 0

    def request_sockets(self, family: int, number: int) -> bool:
        assert number > 0
        self.asked.append((family, number))
        return True

    def report_accept_paused(self) -> None:
        self.yields += 1

    def trace(self, kind: Note, listener: int, detail: int = 0) -> None:
        self.notes.append((kind, detail, listener, ""))

    def note(self, kind: Note, detail: int, listener: int = 0, text: str = "") -> None:
        self.notes.append((kind, detail, listener, text))


@dataclass(eq=False)
class Pair:
    """A client and the server that the relay connected it with."""

    client: Peer
    server: Peer
    flow: Flow
    disturbed: bool = False  # the kernel itself failed for this one


class _Engine(Engine):
    """Remembers who was connected with whom, which can't be told from outside."""

    pairs: list[Pair]

    def _connected(self, flow: Flow, code: int) -> None:
        kernel = cast(FakeKernel, self.kernel)
        ends = []
        for fd in flow.fd:
            sock = kernel.table[fd]
            assert isinstance(sock, Sock)
            assert sock.peer is not None
            ends.append(sock.peer)
        self.pairs.append(Pair(ends[0], ends[1], flow))
        super()._connected(flow, code)


class Relay:
    """An engine, its kernel and its monitor."""

    def __init__(
        self,
        kernel: FakeKernel | None = None,
        *,
        pool: int = 4,
        spare: int = 2,
        generous: bool = True,
        edge_slots: int = 2,
        shared: bool = False,
        rows: int = 0,
        late: int = 0,
    ) -> None:
        """``late`` are places for listeners that come at run time."""
        self.kernel = kernel = kernel or FakeKernel()
        self.monitor = FakeMonitor()
        self.generous = generous  # the monitor answers at once
        self.dual, self.single = kernel.listen(), kernel.listen()
        self.places = [kernel.reserve() for _ in range(late)]
        listeners = (
            Listener(self.dual, IPV4_FIRST, IPV6_FIRST, 7),
            Listener(self.single, SINGLE, SINGLE, 8),
        )
        self.pipes = PipePool(kernel, kernel.pipe_slots * 16, spare)
        self.pipes.fill()
        self.pools = (SocketPool(0, pool), SocketPool(1, pool))
        self.stats = Stats(rows)
        self.ends: list[Ended] = []
        resources = Resources(
            kernel,
            self.monitor,
            Limits(kernel.limit, edge_slots=edge_slots),
            self.pipes,
            self.pools,
            (0, 1),
            self.stats.count,
            3 + len(listeners) + late + 1,
            gauges=self.stats.gauges() if rows else None,
            flow_writer=flow_writer_of(self.stats, kernel.now, self._ended),
        )
        self.engine = _Engine(resources, listeners, shared=shared)
        self.pairs: list[Pair] = []
        self.engine.pairs = self.pairs
        self.epoll = cast(FakeEpoll, self.engine.epoll)
        self.engine.start()
        self.settle()

    def counted(self, name: str) -> int:
        return self.stats.snapshot()[name]

    def _ended(self, end: End, row: bytes) -> bool:
        self.ends.append(read_record(end, row))
        return True

    def serve(self) -> None:
        """Give the relay the sockets that it asked for, as many as it has descriptors for."""
        while self.monitor.asked:
            family, number = self.monitor.asked.pop(0)
            free = self.kernel.limit - 3 - len(self.kernel.table)
            self.engine.add_sockets(family, self.kernel.sockets(min(number, free)))

    def turn(self) -> None:
        if self.generous and self.monitor.asked:
            self.serve()
        self.engine.turn({})
        for sock in self.kernel.hit:
            for pair in self.pairs:
                if sock.peer in (pair.client, pair.server):
                    pair.disturbed = True
        self.kernel.hit.clear()

    def settle(self, *, idle_turns: int = 3) -> int:
        """Run until the loop sleeps; how many turns that took.

        A loop that goes on for more than ``idle_turns`` in which nothing is achieved spins.
        """
        turns = idle = 0
        while True:
            before = self.kernel.progress
            self.turn()
            turns += 1
            # A turn that slept may have made work for the next: pipes for those that waited.
            asleep = self.epoll.blocked and not self.epoll.ready()
            if asleep and not (self.generous and self.monitor.asked):
                self.check()
                return turns
            idle = 0 if self.kernel.progress != before else idle + 1
            assert idle <= idle_turns, f"the loop spins: {self.epoll.ready()}"

    def wait(self, seconds: float) -> None:
        """Let time pass, as the loop lets it: until the next thing that is due, and on."""
        end = self.kernel.clock + seconds
        self.settle()
        while 0 <= self.epoll.timeout <= end - self.kernel.clock:
            self.kernel.clock += max(self.epoll.timeout, 0.001)  # epoll counts in milliseconds
            self.settle()
        self.kernel.clock = max(end, self.kernel.clock)
        self.settle()

    def connect(
        self, *, single: bool = False, ipv4: bool = False, how: str = "at once"
    ) -> tuple[Peer, Peer]:
        """A client and the server that it reaches."""
        for address in (FOUR, SIX, ONE):
            self.kernel.behaviour[address] = how
        client = self.kernel.dial(self.single if single else self.dual, ipv4=ipv4)
        self.settle()
        assert self.pairs[-1].client is client
        return client, self.pairs[-1].server

    def check(self) -> None:
        """What holds whenever the loop is between two turns."""
        engine, kernel = self.engine, self.kernel
        flows = set(engine.flows.values())
        mask = EPOLLIN | (EPOLLEXCLUSIVE if engine.shared else 0)
        wanted = dict.fromkeys(engine.listeners, mask) if engine.accepting else {}
        leased = []
        for flow in flows:
            for side in SIDES:
                fd = flow.fd[side]
                pipe = flow.pipe[side]
                if pipe is not None:
                    leased.append(pipe)
                    slots = self._slots(pipe.read)
                    assert flow.held[side] == sum(map(len, slots)) > 0
                if fd < 0:
                    continue
                assert engine.flows[fd] is flow
                if self.epoll.blocked:  # a busy loop may put changes off that will not be needed
                    assert flow.watched[side] == watch(flow, side)
                if flow.watched[side] != UNWATCHED:
                    wanted[fd] = flow.watched[side]
        assert self.epoll.masks == wanted, "epoll has what the rules ask for, and no more"
        clean = [*self.pipes.spare, *([engine.warm] if engine.warm else [])]
        assert not any(self._slots(pipe.read) for pipe in clean), "a pipe is not clean"
        assert len(clean) + len(leased) == self.pipes.open == kernel.pipes_open
        kinds = Counter(map(type, kernel.table.values()))
        assert kinds[ReadEnd] == kinds[WriteEnd] == self.pipes.open
        assert all(isinstance(kernel.table[fd], Listening) for fd in engine.listeners)
        pooled = sum(len(pool.ready) for pool in self.pools)
        assert kinds[Sock] == len(engine.flows) + pooled, "a socket has leaked"
        assert kinds[FakeEpoll] == 1
        if self.stats.flows is not None:
            listed = [flow for flow in flows if flow.tally]
            assert len(list(self.stats.flows)) == len(listed) == len({one.tally for one in listed})

    def _slots(self, fd: int) -> list[bytearray]:
        end = self.kernel.table[fd]
        assert isinstance(end, ReadEnd)
        return list(end.pipe.slots)

    def check_idle(self) -> None:
        """What holds when nobody is connected."""
        self.check()
        assert not self.engine.flows
        assert not self.engine.connecting
        assert not self.engine.grace
        assert not any(flow.fd[0] >= 0 for flow in self.engine.unplaced)
        assert not any(flow.fd[0] >= 0 for flow, _ in self.engine.starved)
