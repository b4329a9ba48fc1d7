# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine against clients and servers that do anything in any order.

`Relay.check` holds between any two turns: epoll is asked for what the rules say, no descriptor has
leaked, clean pipes are clean. The rest is held here, peer by peer, whenever the loop sleeps.
"""

from __future__ import annotations

import errno

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.unit.relay.fake_kernel import FakeKernel
from tests.unit.relay.fake_relay import FOUR, ONE, SIX, Pair, Relay
from tests.unit.relay.fake_tcp import Peer

CODES = [errno.ENOMEM, errno.ENOBUFS, errno.EINVAL]
WAYS = st.sampled_from(["at once", "no delay", "pend", "refuse", "refuse at once", "reset"])
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([64, 65, 96, 160, 300, 700]))


def told_apart(peer: Peer, size: int) -> bytes:
    """Bytes that come after the ones that this peer has sent, like no other peer's."""
    places = range(len(peer.stream), len(peer.stream) + size)
    return bytes((peer.number * 31 + at * 7 + at // 251 * 13) & 0xFF for at in places)


def follows(sender: Peer, receiver: Peer, *, disturbed: bool) -> None:
    """What the receiver has got and seen may come of what the sender has done."""
    got = receiver.got
    assert sender.stream.startswith(got), "bytes lost, doubled, swapped or foreign"
    assert set(receiver.marks) <= set(sender.urgent_places), "an ordinary byte became urgent"
    if receiver.saw == "fin" and not receiver.has_gone:
        assert sender.has_finished, "a clean end that nobody sent"
        assert len(got) == len(sender.stream), "FIN before the data"
        assert not sender.has_gone or sender.sock.shut or len(got) == len(sender.stream)
    if receiver.saw == "reset" and not receiver.has_gone:
        assert sender.has_gone or disturbed, "a reset that nobody sent"


def arrived(sender: Peer, receiver: Peer) -> None:
    """With both sides well and room at the receiver, all is there."""
    if len(receiver.inbox) < receiver.window:
        assert len(receiver.got) == len(sender.stream), "bytes are held back"
        assert receiver.saw == ("fin" if sender.has_finished else "open")
        assert sender.urgent_places[-1:] == receiver.marks[-1:], "urgent data became ordinary"


class Anything(RuleBasedStateMachine):
    """Clients and servers at random; in between the relay takes turns, or runs until it sleeps."""

    @initialize(
        descriptors=st.sampled_from([26, 40, 200]),
        send_buffer=st.sampled_from([1, 50, 96, 2000]),
        window=st.sampled_from([1, 64, 2000]),
        slots=st.integers(1, 5),
        pool=st.integers(1, 5),
        spare=st.integers(0, 3),
        edge_slots=st.sampled_from([0, 4, 100]),
        rows=st.sampled_from([0, 2, 50]),
    )
    def begin(
        self,
        descriptors: int,
        send_buffer: int,
        window: int,
        slots: int,
        pool: int,
        spare: int,
        edge_slots: int,
        rows: int,
    ) -> None:
        kernel = FakeKernel(
            descriptors=descriptors, send_buffer=send_buffer, window=window, pipe_slots=slots
        )
        self.relay = Relay(kernel, pool=pool, spare=spare, edge_slots=edge_slots, rows=rows)
        self.kernel = kernel
        self.clients: list[Peer] = []

    # --- what clients and servers do ---

    @rule(way4=WAYS, way6=WAYS, single=st.booleans(), ipv4=st.booleans(), early=SIZES)
    def dial(self, way4: str, way6: str, single: bool, ipv4: bool, early: int) -> None:
        if len(self.clients) >= 12:
            return
        self.kernel.behaviour.update({FOUR: way4, SIX: way6, ONE: way6})
        listener = self.relay.single if single else self.relay.dual
        client = self.kernel.dial(listener, ipv4=ipv4)
        self.clients.append(client)
        if early % 2:
            client.send(told_apart(client, early))

    def peers(self) -> list[Peer]:
        return self.clients + self.kernel.servers

    @rule(who=st.integers(0, 30), size=SIZES)
    def send(self, who: int, size: int) -> None:
        if peers := self.peers():
            peer = peers[who % len(peers)]
            if len(peer.stream) < 3000:
                peer.send(told_apart(peer, size))

    @rule(who=st.integers(0, 30), count=st.integers(2, 120))
    def send_in_small_segments(self, who: int, count: int) -> None:
        if peers := self.peers():
            peer = peers[who % len(peers)]
            for _ in range(count):
                peer.send(told_apart(peer, 1))

    @rule(who=st.integers(0, 30))
    def send_urgent(self, who: int) -> None:
        if peers := self.peers():
            peer = peers[who % len(peers)]
            peer.send_urgent(told_apart(peer, 1))

    @rule(who=st.integers(0, 30))
    def finish(self, who: int) -> None:
        if peers := self.peers():
            peers[who % len(peers)].finish()

    @rule(who=st.integers(0, 30))
    def reset(self, who: int) -> None:
        if peers := self.peers():
            peers[who % len(peers)].reset()

    @rule(who=st.integers(0, 30), count=st.sampled_from([1, 20, 64, 3000]))
    def read(self, who: int, count: int) -> None:
        if peers := self.peers():
            peers[who % len(peers)].read(count)

    @precondition(lambda self: self.kernel.pending)
    @rule(which=st.integers(0, 30), refuse=st.booleans())
    def answer(self, which: int, refuse: bool) -> None:
        pending = self.kernel.pending
        self.kernel.answer(pending[which % len(pending)], refuse=refuse)

    # --- what the machine does ---

    @rule(short=st.booleans())
    def files(self, short: bool) -> None:
        self.kernel.files_short = short

    @rule(generous=st.booleans())
    def monitor(self, generous: bool) -> None:
        self.relay.generous = generous

    @rule(
        call=st.sampled_from(["splice in", "splice out", "send_byte", "connected"]),
        code=st.sampled_from(CODES),
    )
    def break_down(self, call: str, code: int) -> None:
        self.kernel.inject(call, code)

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.relay.wait(seconds)
        self.look()

    @rule(times=st.integers(1, 3))
    def turn(self, times: int) -> None:
        for _ in range(times):
            self.relay.turn()
            self.relay.check()
        self.safe()

    @rule()
    def settle(self) -> None:
        self.relay.settle()
        self.look()

    # --- what must hold ---

    def safe(self) -> None:
        for pair in self.relay.pairs:
            follows(pair.client, pair.server, disturbed=pair.disturbed)
            follows(pair.server, pair.client, disturbed=pair.disturbed)

    def well(self, pair: Pair) -> bool:
        gone = pair.client.has_gone or pair.server.has_gone
        starving = {flow for flow, _ in self.relay.engine.starved}
        return not (gone or pair.disturbed or pair.flow in starving)

    def look(self) -> None:
        """The loop sleeps: whatever could be delivered has been."""
        self.safe()
        for pair in self.relay.pairs:
            if self.well(pair):
                arrived(pair.client, pair.server)
                arrived(pair.server, pair.client)

    def teardown(self) -> None:
        """Everybody comes to an end; then the relay holds what it held at the start."""
        if not hasattr(self, "relay"):
            return
        self.kernel.faults.clear()
        self.kernel.files_short = False
        self.relay.generous = True
        self.kernel.behaviour.clear()
        self.relay.wait(15)
        self.resets_are_passed_on()  # also to those who read nothing
        for _ in range(2 * len(self.clients)):  # with few descriptors they come one at a time
            if not (self.relay.engine.flows or self.waiting()):
                break
            for peer in self.peers():
                peer.finish()
            self.relay.wait(2)
            while any(peer.inbox for peer in self.peers()):
                for peer in self.peers():
                    peer.read(3000)
                self.relay.wait(0.2)
            self.look()
        assert not self.waiting(), "somebody waits to be accepted"
        self.resets_are_passed_on()
        self.relay.check_idle()
        assert self.relay.epoll.timeout == -1

    def waiting(self) -> bool:
        return any(listener.queue for listener in self.kernel.listeners())

    def resets_are_passed_on(self) -> None:
        for pair in self.relay.pairs:
            for one, other in ((pair.client, pair.server), (pair.server, pair.client)):
                if one.has_gone and not other.has_gone and not other.sock.fin:
                    assert other.saw == "reset", "a reset that was not passed on"


TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=settings().max_examples,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow],
)
