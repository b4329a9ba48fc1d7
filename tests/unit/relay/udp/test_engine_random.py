# SPDX-License-Identifier: GPL-2.0-or-later
"""Random lives of a datagram relay: clients, sizes, refusals, drops, floods, shortages and time in
any order, and the promises that hold all the same.

- Nothing reaches a target's socket but what one client sent to one address, in order and at most
  once; nothing reaches a client but answers to it, from the address that it had asked.
- Each datagram that a client sent is passed on, or counted as dropped.
- No flow that was answered ends before its time to make room.
"""

from __future__ import annotations

import errno
import socket

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hardsplice.net.listener import Listener
from tests.unit.relay.udp.fake_relay import FOUR, PORT, SINGLE, SIX, Relay
from tests.unit.relay.udp.fake_udp import Sock, client_ipv4, client_mapped

CLIENTS = st.integers(0, 11)
ADDRESSES = st.sampled_from(["127.0.0.1", "127.0.0.2"])
LENGTHS = st.sampled_from([8, 8, 8, 9, 20, 1400])
FAULTS = st.sampled_from(
    [
        ("write", errno.EIO), ("write", errno.EINVAL), ("write", errno.EAGAIN),
        ("send", errno.ENOBUFS), ("send", errno.EHOSTUNREACH), ("segment", errno.ENOPROTOOPT),
        ("send_all", errno.EAGAIN), ("send_all", errno.EINVAL), ("send_all", errno.EPERM),
        ("answer", errno.EAGAIN), ("answer", errno.EINVAL), ("answer", errno.ENETUNREACH),
        ("take", errno.EAGAIN), ("hear", errno.EAGAIN), ("receive", errno.EAGAIN),
        ("receive_single", errno.EAGAIN),
        ("connect", errno.ENETUNREACH), ("connect", errno.EAGAIN),
        ("send", errno.EDESTADDRREQ), ("send", errno.EMSGSIZE), ("write", errno.EMSGSIZE),
    ]
)  # fmt: skip


class Lives(RuleBasedStateMachine):
    """A relay with room for eight flows, and whatever may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.relay = Relay(pool=4, flows=8, rows=6)
        self.kernel = self.relay.kernel
        self.sent = 0  # datagrams of clients
        self.number = 0  # each payload is another one
        self.answers = 0
        self.listeners = [self.kernel.get(fd) for fd in (self.relay.first, self.relay.second)]

    def _payload(self, head: str, length: int) -> bytes:
        self.number += 1
        return f"{head}|{self.number:06}|".encode().ljust(length + 24, b".")

    @rule(client=CLIENTS, asked=ADDRESSES, lengths=st.lists(LENGTHS, min_size=1, max_size=12))
    def clients_send(self, client: int, asked: str, lengths: list[int]) -> None:
        listener, address = self._client(client)
        for length in lengths:
            self.kernel.ask(listener, address, self._payload(f"{client}@{asked}", length), asked)
        self.sent += len(lengths)

    def _client(self, client: int) -> tuple[int, bytes]:
        if client % 2:
            return self.relay.second, client_mapped(client)
        return self.relay.first, client_ipv4(client)

    @rule(client=CLIENTS, pieces=st.integers(2, 9))
    def a_client_sends_joined(self, client: int, pieces: int) -> None:
        listener, address = self._client(client)
        whole = b"".join(self._payload(f"{client}@127.0.0.1", 8) for _ in range(pieces))
        self.kernel.ask(listener, address, whole, segment=len(whole) // pieces)
        self.sent += pieces

    @rule(lengths=st.lists(LENGTHS, min_size=1, max_size=12), which=st.integers(0, 100))
    def a_target_answers(self, lengths: list[int], which: int) -> None:
        served = [sock for sock in self.kernel.sockets if sock.got and not sock.closed]
        if served:
            sock = served[which % len(served)]
            for length in lengths:
                self.kernel.answer(sock, self._payload(_sender(sock.got[0]), length))
            self.answers += len(lengths)

    @rule()
    def a_turn(self) -> None:
        self.relay.turn()

    @rule()
    def all_turns(self) -> None:
        flows = self.relay.engine.flows
        answered = [flow for flow in flows.answered if not flow.is_brief]
        refused = self.relay.counted("refused")
        self.relay.run()
        gone = [flow for flow in answered if flow.fd < 0]
        assert len(gone) <= self.relay.counted("refused") - refused

    @rule(seconds=st.sampled_from([0.1, 1.5, 31.0, 121.0]))
    def time_passes(self, seconds: float) -> None:
        self.relay.wait(seconds)

    @rule(refusing=st.sampled_from([set(), {FOUR}, {FOUR, SIX}]), late=st.booleans())
    def targets_refuse(self, refusing: set[bytes], late: bool) -> None:
        self.kernel.refusing, self.kernel.late = refusing, late
        self.kernel.deliver_refusals()

    @rule(fault=FAULTS)
    def the_kernel_fails(self, fault: tuple[str, int]) -> None:
        self.kernel.inject(*fault)

    @rule(most=st.sampled_from([30, 40, 65507]))
    def the_path_changes(self, most: int) -> None:
        self.kernel.largest_joined = most

    @rule(has_gone=st.booleans())
    def an_address_comes_or_goes(self, has_gone: bool) -> None:
        self.kernel.no_source = {"127.0.0.2"} if has_gone else set()

    @rule(queued=st.booleans())
    def a_listener_gives_way_to_another_one(self, queued: bool) -> None:
        """At the same place; what its queue holds is lost."""
        place, engine = self.relay.second, self.relay.engine
        if queued:
            self.kernel.ask(place, client_mapped(1), self._payload("1@127.0.0.1", 8))
            self.sent += 1
        engine.remove_listener(8, place, reset_flows=True)
        assert place not in self.kernel.epoll_.watched
        self.relay.turn()
        self.listeners.append(Sock(socket.AF_INET6, listens=True))
        self.kernel.given[place] = self.listeners[-1]
        engine.add_listener(Listener(place, SINGLE, SINGLE, 8, PORT + 1))

    @rule()
    def the_monitor_is_slow(self) -> None:
        self.relay.generous = False

    @precondition(lambda self: not self.relay.generous)
    @rule(has_any=st.booleans())
    def the_monitor_answers(self, has_any: bool) -> None:
        if has_any:
            self.relay.generous = True
            self.relay.supply()
        elif self.relay.monitor.asked:
            family, _ = self.relay.monitor.asked.pop(0)
            self.relay.engine.add_sockets(family, [])

    @invariant()
    def nobody_gets_what_is_not_for_him(self) -> None:
        for sock in self.kernel.sockets:
            assert len({_sender(one) for one in sock.got}) <= 1
            numbers = [_number(one) for one in sock.got]
            assert numbers == sorted(set(numbers))
        by_client: dict[tuple[bytes, str], list[int]] = {}
        for one in self.kernel.answers:
            client, asked = _sender(one.payload).split("@")
            assert one.client == self._client(int(client))[1]
            assert one.source in (asked, "0.0.0.0")
            by_client.setdefault((one.client, asked), []).append(_number(one.payload))
        for numbers in by_client.values():
            assert numbers == sorted(set(numbers))

    @invariant()
    def what_was_sent_is_accounted_for(self) -> None:
        self.relay.check()
        counts = self.relay.stats.snapshot()
        queued = sum(
            -(-len(one.payload) // one.segment) if one.segment else 1
            for sock in self.listeners
            for one in sock.queue
        )
        held = sum(
            -(-len(one.payload) // one.segment) if one.segment else 1
            for one in self.relay.engine.held
        )
        to_target, to_client = self.relay.datagrams()
        waiting = sum(len(sock.queue) for sock in self.kernel.sockets if not sock.closed)
        lost = sum(counts[f"dropped_{why}"] for why in ("send", "limit", "source"))
        assert self.sent <= to_target + lost + queued + held
        assert to_client == len(self.kernel.answers)
        assert to_client + waiting <= self.answers
        got = sum(len(sock.got) for sock in self.kernel.sockets)
        assert got <= to_target <= self.sent
        assert to_target + queued + held <= self.sent


def _sender(payload: bytes) -> str:
    return payload.split(b"|")[0].decode()


def _number(payload: bytes) -> int:
    return int(payload.split(b"|")[1])


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
