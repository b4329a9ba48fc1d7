# SPDX-License-Identifier: GPL-2.0-or-later
"""A child that never stops talking has one record a turn: counted, with channels that never dry."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hardsplice.ipc.channel import LAST_RECORDS, Channel
from hardsplice.ipc.child import Child
from hardsplice.ipc.dialogue import NAMESPACE_MONITOR, RELAY, ChildState, Dialogue
from hardsplice.ipc.loop import Loop
from hardsplice.ipc.messages import Kind, Record
from hardsplice.model.protocol import Protocol
from hardsplice.model.roles import HOST, OUTBOUND_RELAY
from hardsplice.monitor.host import HostMonitor
from hardsplice.monitor.supervisor import Supervisor
from tests.unit.monitor.fake_owner import Above

TURNS = 50
TOO_MANY = 100 * TURNS


class Endless:
    """A channel that has another record for ever."""

    def __init__(self, record: Record, fd: int = -1) -> None:
        self.record, self.fd, self.received = record, fd, 0

    def receive(self, *, wait: bool) -> Record:
        assert not wait
        self.received += 1
        assert self.received < TOO_MANY, "nobody else has a turn"
        return self.record

    def discard_rest(self) -> None:
        pass

    def fileno(self) -> int:
        return self.fd


def keeper_of(loop: Loop, channel: Endless) -> Supervisor:
    supervisor = Supervisor(
        cast(Any, SimpleNamespace(families=(0,), is_dynamic=False, protocol=Protocol.TCP)),
        loop,
        Above(),
    )
    supervisor.child = Child(os.getpid(), cast(Any, channel))
    supervisor.dialogue = Dialogue(RELAY)
    supervisor.dialogue.state = ChildState.SERVING
    return supervisor


def test_two_relays_and_somebody_else_have_as_many_turns_as_each_other() -> None:
    loop = Loop()
    pairs = [Channel.pair(HOST.name, OUTBOUND_RELAY.name) for _ in range(3)]
    for _, theirs in pairs:
        theirs.send(Record(Kind.ACCEPT_PAUSED))  # never taken, so that epoll has it ready for ever
    busy = [Endless(Record(Kind.ACCEPT_PAUSED), ours.fileno()) for ours, _ in pairs[:2]]
    for channel in busy:
        loop.add(channel.fd, keeper_of(loop, channel)._on_channel)
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        if turns == TURNS:
            loop.stop(0)

    loop.add(pairs[2][0].fileno(), turn)
    assert loop.run() == 0
    for channel in busy:
        assert abs(channel.received - TURNS) <= 1
    for pair in pairs:
        for end in pair:
            end.close()


@pytest.fixture
def monitor() -> HostMonitor:
    """As much of a host monitor as hears the namespace monitor."""
    made = HostMonitor.__new__(HostMonitor)
    channel = Endless(Record(Kind.PONG))
    made.namespace_monitor = cast(Any, SimpleNamespace(channel=channel))
    made.namespace_dialogue = Dialogue(NAMESPACE_MONITOR)
    made.namespace_dialogue.state = ChildState.SERVING
    made.watchdog = made.handover = made.failure = None
    for _ in range(TOO_MANY):
        made.namespace_dialogue.expect()
    return made


def test_the_namespace_monitor_has_one_record_a_turn(monitor: HostMonitor) -> None:
    channel = cast(Any, monitor.namespace_monitor).channel
    for turn in range(1, 4):
        monitor._on_monitor()
        assert channel.received == turn


def test_the_last_words_of_a_relay_have_an_end() -> None:
    """Another process may hold the other end still, and go on."""
    channel = Endless(Record(Kind.ACCEPT_PAUSED))
    supervisor = keeper_of(Loop(), channel)
    supervisor._receive_rest()
    assert channel.received == LAST_RECORDS


def test_a_channel_that_never_dries_can_be_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = Channel.pair(HOST.name, OUTBOUND_RELAY.name)
    endless = Endless(Record(Kind.ACCEPT_PAUSED))
    monkeypatch.setattr(ours, "receive", endless.receive)
    ours.discard_rest()
    assert endless.received == LAST_RECORDS
    ours.close()
    theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before
