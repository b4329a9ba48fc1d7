# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeping a relay alive: when it is started again, and what it may ask for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hardsplice.channel import Channel, Kind, Note, Record, close_all
from hardsplice.keeper import (
    DEATHS_MAX,
    DELAYS,
    WINDOW,
    Backoff,
    Keeper,
    describe_status,
    open_socket,
    wait_for,
)
from hardsplice.relay.sockets import POOL_SIZE
from tests.support.descriptors import open_descriptors

# --- when to start again ---


def test_the_first_restart_is_at_once_and_the_next_ones_later_and_later() -> None:
    backoff = Backoff()
    delays = [backoff.delay(0.001 * death) for death in range(DEATHS_MAX)]
    assert delays[: len(DELAYS)] == list(DELAYS)
    assert set(delays[len(DELAYS) :]) == {DELAYS[-1]}
    assert list(DELAYS) == sorted(DELAYS)
    assert DELAYS[0] == 0


def test_a_crash_loop_is_given_up() -> None:
    backoff = Backoff()
    for death in range(DEATHS_MAX):
        assert backoff.delay(float(death)) is not None
    assert backoff.delay(float(DEATHS_MAX)) is None


def test_the_delays_of_a_crash_loop_fit_into_the_window_that_finds_it() -> None:
    """Otherwise a relay that dies as soon as it is started would be started for ever."""
    backoff = Backoff()
    now = 0.0
    for _ in range(DEATHS_MAX + 1):
        delay = backoff.delay(now)
        if delay is None:
            return
        now += delay + 0.25  # which a start may take
    pytest.fail("a crash loop is not found out")


def test_deaths_of_long_ago_do_not_count() -> None:
    backoff = Backoff()
    for death in range(100):
        assert backoff.delay(death * (WINDOW + 0.1)) == DELAYS[0]


# --- how it ended ---


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with status 0"),
        (7 << 8, "ended with status 7"),
        (signal.SIGKILL, "killed by SIGKILL"),
        (signal.SIGSEGV | 0x80, "killed by SIGSEGV"),  # and it left a core
        (40, "killed by signal 40"),
        (
            signal.SIGSYS,
            "killed by SIGSYS: it made a system call that its policy does not allow",
        ),
    ],
)
def test_how_a_process_ended_in_words(status: int, words: str) -> None:
    assert describe_status(status) == words


def spawn(*command: str) -> int:
    return os.posix_spawnp(command[0], command, os.environ)


@pytest.mark.parametrize("leaves", [True, False])
def test_a_child_that_does_not_leave_is_killed(leaves: bool) -> None:
    pid = spawn(*(["true"] if leaves else ["sleep", "1000"]))
    pidfd = os.pidfd_open(pid)
    status = wait_for(pid, pidfd, 10 if leaves else 0)
    os.close(pidfd)
    assert status == (0 if leaves else signal.SIGKILL)


# --- what a relay may ask ---


@dataclass
class Above:
    """Whom the keeper tells."""

    said: list[Any] = field(default_factory=list)

    def relay_ready(self) -> None:
        self.said.append("ready")

    def relay_lost(self, reason: str) -> None:
        self.said.append(reason)

    def note(self, kind: int, detail: int, index: int, text: bytes) -> None:
        self.said.append((kind, detail, index, text))


@dataclass
class Timers:
    """A loop that never runs."""

    due: list[Any] = field(default_factory=list)

    def add(self, *_: object) -> None:
        pass

    def remove(self, *_: object) -> None:
        pass

    def after(self, seconds: float, callback: object) -> None:
        self.due.append((seconds, callback))


Stand = tuple[Keeper, Above, Channel]


@pytest.fixture
def stand() -> Iterator[Stand]:
    """A keeper whose relay is a process that does nothing, and the relay's end of the channel."""
    above = Above()
    plan = SimpleNamespace(families=(0,))
    keeper = Keeper(cast(Any, plan), cast(Any, Timers()), above)
    pid = spawn("sleep", "1000")
    keeper.channel, theirs = Channel.pair()
    keeper.pid, keeper.pidfd = pid, os.pidfd_open(pid)
    yield keeper, above, theirs
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(keeper.pidfd)
    if keeper.channel is not None:
        keeper.channel.close()
    theirs.close()


def test_a_relay_gets_the_sockets_that_it_asks_for(stand: Stand) -> None:
    keeper, _, relay = stand
    relay.send(Record(Kind.ASK, 0, detail=3))
    keeper._on_channel()
    record = relay.receive(wait=False)
    assert record is not None
    assert (record.kind, record.small, len(record.fds)) == (Kind.SOCKETS, 0, 3)
    for fd in record.fds:
        with socket.socket(fileno=fd) as one:
            assert one.family == socket.AF_INET
            assert one.type == socket.SOCK_STREAM
            assert not os.get_blocking(fd)
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize(
    "record",
    [
        Record(Kind.ASK, 0, detail=0),
        Record(Kind.ASK, 0, detail=-1),
        Record(Kind.ASK, 0, detail=POOL_SIZE + 1),
        Record(Kind.ASK, 1, detail=1),  # a family that the plan has no use for
        Record(Kind.ASK, 200, detail=1),
        Record(Kind.NOTE, Note.RESTARTED),
        Record(Kind.NOTE, Note.SOCKETS),
        Record(Kind.LISTENERS),
        Record(Kind.SOCKETS),
        Record(Kind.GO),
        Record(0),
        Record(255),
    ],
    ids=str,
)
def test_a_relay_that_asks_for_anything_else_is_ended(stand: Stand, record: Record) -> None:
    keeper, above, relay = stand
    relay.send(record)
    keeper._on_channel()
    assert keeper.is_cut_off
    assert "protocol" in keeper.last_words
    relay.send(Record(Kind.NOTE, Note.REFUSED))
    keeper._hear_out()
    assert above.said == [], "what it says after that is not heard"
    assert os.WTERMSIG(os.waitpid(keeper.pid, 0)[1]) == signal.SIGKILL


def test_descriptors_from_a_relay_are_closed_and_end_it(stand: Stand) -> None:
    keeper, _, relay = stand
    before = open_descriptors()
    relay.send(Record(Kind.READY, fds=(relay.fileno(),) * 3))
    relay.send(Record(Kind.READY, fds=(relay.fileno(),) * 3))
    keeper._on_channel()
    assert keeper.is_cut_off
    keeper._hear_out()
    assert open_descriptors() == before


def test_nonsense_from_a_relay_ends_it(stand: Stand) -> None:
    keeper, _, relay = stand
    relay.socket.send(b"nonsense")
    keeper._on_channel()
    assert keeper.is_cut_off
    assert "protocol" in keeper.last_words


def test_ready_is_told_once_and_notes_are_passed_on(stand: Stand) -> None:
    keeper, above, relay = stand
    relay.send(Record(Kind.READY))
    relay.send(Record(Kind.READY))
    relay.send(Record(Kind.NOTE, Note.REFUSED, 5, 111, b"text"))
    for _ in range(3):
        keeper._on_channel()
    assert above.said == ["ready", (Note.REFUSED, 111, 5, b"text")]


@pytest.mark.parametrize("family", [0, 1])
def test_a_pooled_socket_is_ready_to_be_connected(family: int) -> None:
    fd = open_socket(family)
    assert not os.get_inheritable(fd)
    assert not os.get_blocking(fd)
    close_all([fd])
