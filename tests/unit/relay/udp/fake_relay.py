# SPDX-License-Identifier: GPL-2.0-or-later
"""A datagram relay's engine on a kernel to play with, and the rules that hold whatever happens."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from hardsplice.ipc.messages import Note
from hardsplice.kernel import socketcalls
from hardsplice.model.lifetimes import Lifetimes
from hardsplice.net.listener import Listener
from hardsplice.relay.pools import SocketPool
from hardsplice.relay.udp.engine import Engine
from hardsplice.relay.udp.flow_writer import flow_writer_of
from hardsplice.relay.udp.sending import Resources
from hardsplice.sandbox.address_book import USUAL, Pointer
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.counters import Stats
from hardsplice.telemetry.flow_table import End, Ended, read_record
from tests.unit.relay.udp.fake_udp import FakeKernel, Sock

FOUR, SIX, OTHER = (
    socketcalls.sockaddr(ip_address(address), port)
    for address, port in (("127.0.0.1", 53), ("::1", 53), ("127.0.0.1", 54))
)
_FOUR, _SIX = Pointer(USUAL, 0, 0, FOUR), Pointer(USUAL, 1, 1, SIX)
DUAL, DUAL_IPV6 = (_FOUR, _SIX), (_SIX, _FOUR)
SINGLE = (Pointer(USUAL, 2, 0, OTHER),)


PORT = 500  # of the first listener; the second has the next one


class FakeMonitor:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.notes: list[tuple[Note, int, int]] = []
        self.traces: list[Note] = []

    def request_sockets(self, family: int, number: int) -> bool:
        self.asked.append((family, number))
        return True

    def trace(self, kind: Note, listener: int, detail: int = 0) -> None:
        self.traces.append(kind)

    def note(self, kind: Note, detail: int, listener: int = 0, text: str = "") -> None:
        assert kind is not Note.ERROR, text
        self.notes.append((kind, detail, listener))


class Relay:
    """An engine, its kernel and its monitor: a listener whose target may be at either loopback
    address, and one, dual-stack, with a single target.
    """

    def __init__(
        self, *, pool: int = 8, flows: int = 100, rows: int = 0, generous: bool = True,
        descriptors: int = 1000,
    ) -> None:  # fmt: skip
        self.kernel = kernel = FakeKernel()
        self.monitor = FakeMonitor()
        self.generous = generous  # the monitor answers at once
        self.first, self.second = kernel.listen(), kernel.listen(socket.AF_INET6)
        self.stats = Stats(rows)
        self.ends: list[Ended] = []

        def report(end: End, row: bytes) -> bool:
            self.ends.append(read_record(end, row))
            return True

        resources = Resources(
            kernel=kernel,
            monitor=self.monitor,
            lifetimes=Lifetimes(30, 120, flows),
            descriptors=descriptors,
            other_descriptors=20,
            pools=(SocketPool(0, pool), SocketPool(1, pool)),
            families=(0, 1),
            counters=self.stats.count,
            trace=True,
            gauges=self.stats.gauges() if rows else None,
            flow_writer=flow_writer_of(self.stats, kernel.now, report),
        )
        listeners = (
            Listener(self.first, DUAL, DUAL, 7, PORT),
            Listener(self.second, SINGLE, SINGLE, 8, PORT + 1),
        )
        self.engine = Engine(resources, listeners)
        self.engine.start()
        self.supply()

    def supply(self) -> None:
        """Answer what the engine asked its monitor for."""
        while self.generous and self.monitor.asked:
            family, number = self.monitor.asked.pop(0)
            self.engine.add_sockets(family, self.kernel.pool(number))

    def turn(self) -> None:
        self.engine.turn({}, 0.0)
        self.supply()

    def run(self, most: int = 1000) -> None:
        """Until nothing is to be done."""
        while self.kernel.epoll_.ready():
            self.turn()
            most -= 1
            assert most, "it spins"
        self.check()

    def wait(self, seconds: float) -> None:
        """Let time pass; nothing happens meanwhile."""
        self.kernel.clock += seconds
        self.turn()

    def ask(self, client: bytes, *sent: bytes, asked: str = "127.0.0.1") -> None:
        """Datagrams of a client at the first listener, and all that comes of them."""
        for payload in sent:
            self.kernel.ask(self.first, client, payload, asked)
        self.run()

    def target(self) -> Sock:
        """The socket that was connected last."""
        return self.kernel.sockets[-1]

    def begin_streams(self) -> None:
        """Every target sends a few answers, which are the first of many; they are forgotten."""
        for sock in self.kernel.sockets:
            for _ in range(3):
                self.kernel.answer(sock, b"early")
        self.run()
        assert all(sock.takes_joined for sock in self.kernel.sockets)
        self.kernel.answers.clear()
        self.kernel.calls.clear()

    def counted(self, name: str) -> int:
        return self.stats.snapshot()[name]

    def check(self) -> None:
        """What holds at any time between two turns."""
        engine, counts = self.engine, self.stats.snapshot()
        open_now = len(engine.flows.by_fd)
        ended = ("refused", "expired", "unanswered", "evicted", "reset", "errors")
        assert counts["accepted"] == open_now + sum(counts[name] for name in ended)
        assert counts["errors"] == 0
        flows = set(engine.flows.by_fd.values())
        by_key = [flow for state in engine.listeners.values() for flow in state.flows.values()]
        assert set(by_key) == flows
        assert len(by_key) == len(flows)
        assert set(engine.flows.unanswered) | set(engine.flows.answered) == flows
        assert len(engine.flows.unanswered) + len(engine.flows.answered) == len(flows)
        brief = {flow for flow in flows if flow.is_brief}
        assert set(engine.flows.brief) == brief <= set(engine.flows.answered)
        assert {one for state in engine.listeners.values() for one in state.brief} == brief
        used = {*engine.flows.by_fd, *engine.listeners}
        for pool in engine.pools:
            used.update(pool.ready)
        assert used == set(self.kernel.table), "a descriptor is lost"
        assert self.kernel.epoll_.watched >= set(engine.flows.by_fd)
        assert len(flows) <= engine.flows.most
        for flow in flows:
            sock = self.kernel.get(flow.fd)
            assert sock.segment == flow.segment
            assert not sock.takes_joined or flow.many, "what is joined would pass for one datagram"
            prepared = [one is not None for one in (flow.hear, flow.send, flow.answer)]
            assert len(set(prepared)) == 1
        for entry, address in enumerate(engine.buffers.addresses):
            assert engine.parts.words[2 * entry] == address, "an entry isn't its slot any more"
        self._check_settled()

    def _check_settled(self) -> None:
        """What is looked at only when something has changed is as if it were looked at always."""
        engine = self.engine
        if engine.has_changed:
            return  # the next turn does
        assert not engine.refused
        assert not any(flow.is_refused for flow in engine.flows.by_fd.values())
        has_sockets = all(pool.ready for pool in engine.pools)
        waits = not engine.shortage_until and engine.to_drain is None
        assert engine.watching == (not engine.held and (has_sockets or not waits))
        if not engine.shortage_until:
            assert not any(pool.want() for pool in engine.pools), "nobody has requested sockets"
        for fd, state in engine.listeners.items():
            assert (fd in self.kernel.epoll_.watched) == (engine.watching and not state.is_shut)
        if engine.gauges is not None:
            in_use = [len(pool.ready) for pool in engine.pools]
            total = engine.other_descriptors + len(engine.flows.by_fd) + sum(in_use)
            assert list(engine.gauges[2:5]) == [*in_use, total]

    def datagrams(self) -> tuple[int, int]:
        words = self.stats.count
        return words[count.DATAGRAMS], words[count.DATAGRAMS + 1]
