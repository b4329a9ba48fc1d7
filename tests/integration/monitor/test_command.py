# SPDX-License-Identifier: GPL-2.0-or-later
"""COMMAND as the host monitor has it: what PID 1 is told, what is made of what it says, its end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest

from hardsplice.ipc.channel import Channel
from hardsplice.ipc.child import Child
from hardsplice.ipc.messages import Kind, Record
from hardsplice.kernel.signals import FINAL
from hardsplice.model.errors import HardspliceError, text_of
from hardsplice.model.roles import HOST, INIT
from hardsplice.monitor.command import PASS_ON_SECONDS, Command
from tests.support.descriptors import open_descriptors


class Above:
    """Whom it tells."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.arrived: list[Callable[[], None]] = []

    def command_prepared(self) -> None:
        self.said.append("prepared")

    def command_ended(self, status: int) -> None:
        self.said.append(status)

    def take_signals(self) -> None:
        while self.arrived:
            self.arrived.pop()()

    def fail(self, failure: HardspliceError) -> None:
        self.said.append(str(failure))

    def distrust(self, whom: str, error: Exception | str) -> None:
        self.said.append(f"{whom}: {error}")


class Loop:
    """Callbacks, which tests call."""

    def __init__(self) -> None:
        self.callbacks: dict[int, Callable[[], None]] = {}
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        self.callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        self.callbacks.pop(fd, None)

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        self.timers.append((seconds, callback))


class Inside:
    """As much of a Container as is asked for."""

    def __init__(self, pid: int, channel: Channel) -> None:
        self.child, self.channel = Child(pid, channel), channel
        self.pidfd, self.pids = self.child.pidfd, (pid,)
        self.ended: list[dict[str, float]] = []

    def last_records(self) -> Iterator[Record]:
        return self.child.last_words()

    def last_words(self, record: Record, *, runs: bool) -> HardspliceError:
        return HardspliceError("run", "true" if runs else "namespaces", record.text.decode())

    def status(self) -> tuple[int, str]:
        return 137, "hs-init was killed by SIGKILL"

    def end(self, **more: float) -> None:
        self.ended.append(more)


class Stand(NamedTuple):
    """A Command and all that it talks to."""

    command: Command
    above: Above
    loop: Loop
    inside: Inside
    init: Channel  # PID 1's end
    stopped: list[bool]
    logged: list[str]

    def says(self, *records: Record) -> None:
        """PID 1 says this, and is heard."""
        for record in records:
            self.init.send(record)
            self.loop.callbacks[self.inside.channel.fileno()]()

    def heard(self) -> list[int]:
        """The kinds of what PID 1 has been told."""
        kinds = []
        with contextlib.suppress(BlockingIOError):
            while record := self.init.receive(wait=False):
                kinds.append(record.kind)
        return kinds


@pytest.fixture
def stand() -> Iterator[Stand]:
    before = open_descriptors()
    ours, theirs = Channel.pair(HOST.name, INIT.name)
    pid = os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
    inside, above, loop = Inside(pid, ours), Above(), Loop()
    stopped: list[bool] = []
    logged: list[str] = []
    terminal = SimpleNamespace(stop=lambda: stopped.append(True))
    log = SimpleNamespace(last_words=logged.append)
    command = Command(
        cast(Any, inside), cast(Any, terminal), cast(Any, loop), cast(Any, log), above
    )
    command.watch()
    yield Stand(command, above, loop, inside, theirs, stopped, logged)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    inside.child.forget()
    theirs.close()
    assert open_descriptors() == before


@pytest.fixture
def running(stand: Stand) -> Stand:
    """One whose COMMAND runs."""
    stand.command.prepare()
    stand.says(Record(Kind.READY))
    stand.command.run()
    assert stand.heard() == [Kind.PREPARE, Kind.RUN]
    assert stand.above.said == ["prepared"]
    stand.above.said.clear()
    return stand


def test_it_is_ready_only_once_it_was_told_to_be(stand: Stand) -> None:
    stand.says(Record(Kind.READY))
    (said,) = stand.above.said
    assert "is not its to send while starting" in str(said)


def test_how_command_ended_is_told_as_a_shell_has_it(running: Stand) -> None:
    running.says(Record(Kind.EXITED, detail=signal.SIGTERM))
    assert running.above.said == [128 + signal.SIGTERM]
    running.above.said.clear()
    running.says(Record(Kind.EXITED, detail=0))
    assert "not its to send" in str(running.above.said), "it ends once"


def test_why_it_could_not_be_run_is_told(running: Stand) -> None:
    running.says(Record(Kind.FATAL, text=text_of(HardspliceError("run", "COMMAND", "no"))))
    assert str(running.above.said[0]).startswith("cannot run true")


@pytest.mark.parametrize(
    "record",
    [
        Record(Kind.ACCEPT_PAUSED),
        Record(Kind.OPENED),
        Record(Kind.RUN),
        Record(Kind.NAMESPACES),
        Record(Kind.PASSED_ON),
        Record(Kind.CHECKED, 1),
        Record(Kind.STOPPED, fds=(0,)),
        Record(200),
    ],
    ids=str,
)
def test_what_is_not_its_to_say_is_not_believed(running: Stand, record: Record) -> None:
    before = open_descriptors()
    running.says(record)
    (said,) = running.above.said
    assert str(said).startswith("PID 1 of COMMAND: ")
    assert (running.heard(), running.stopped) == ([], [])
    assert open_descriptors() == before


def test_a_signal_that_is_passed_on_is_no_error(running: Stand) -> None:
    running.command.pass_on(signal.SIGTERM)
    running.says(Record(Kind.PASSED_ON, detail=signal.SIGTERM))
    ((seconds, look),) = running.loop.timers
    assert seconds == PASS_ON_SECONDS
    look()
    assert running.above.said == []
    assert running.heard() == [Kind.SIGNAL]
    running.command.end()
    assert running.inside.ended == [{}]


def test_one_that_does_not_pass_a_final_signal_on_ends_at_once(running: Stand) -> None:
    running.command.pass_on(signal.SIGWINCH)  # which nobody waits for
    assert running.loop.timers == []
    for number in sorted(FINAL):
        running.command.pass_on(number)
    running.says(Record(Kind.PASSED_ON))
    running.loop.timers[0][1]()
    (said,) = running.above.said
    assert "does not answer" in str(said)
    running.command.end()
    assert running.inside.ended == [{"patience": 0}]
    running.command.end()
    assert len(running.inside.ended) == 1


@pytest.mark.parametrize("is_stopped", [False, True])
def test_it_is_asked_whether_command_is_stopped_still(running: Stand, is_stopped: bool) -> None:
    running.says(Record(Kind.STOPPED))
    assert running.heard() == [Kind.CHECK_STOPPED]
    running.says(Record(Kind.CHECKED, int(is_stopped)))
    assert running.stopped == [True] * is_stopped
    assert running.above.said == []


def test_an_answer_from_before_sigcont_is_asked_for_again(running: Stand) -> None:
    """PID 1 has answered the first question before it passes SIGCONT on to COMMAND."""
    running.says(Record(Kind.STOPPED))
    running.command.pass_on(signal.SIGCONT)
    assert running.heard() == [Kind.CHECK_STOPPED, Kind.SIGNAL, Kind.CHECK_STOPPED]
    running.says(Record(Kind.CHECKED, 1), Record(Kind.PASSED_ON))
    assert running.stopped == []
    running.says(Record(Kind.CHECKED, 1))
    assert running.stopped == [True], "COMMAND has stopped once more"
    running.command.pass_on(signal.SIGCONT)
    assert running.heard() == [Kind.SIGNAL], "no question is open"
    assert running.above.said == []


def test_a_sigcont_that_has_arrived_is_passed_on_before_it_stops(running: Stand) -> None:
    running.says(Record(Kind.STOPPED))
    running.above.arrived.append(lambda: running.command.pass_on(signal.SIGCONT))
    running.says(Record(Kind.CHECKED, 1))
    assert running.stopped == []
    assert running.heard() == [Kind.CHECK_STOPPED, Kind.SIGNAL, Kind.CHECK_STOPPED]
    running.says(Record(Kind.PASSED_ON), Record(Kind.CHECKED, 0))
    assert running.stopped == []


def test_it_stops_once_however_often_it_was_asked(running: Stand) -> None:
    """The answers have waited while it was stopped."""
    running.says(Record(Kind.STOPPED), Record(Kind.STOPPED), Record(Kind.STOPPED))
    running.says(*[Record(Kind.CHECKED, 1)] * 3)
    assert running.stopped == [True]
    running.command.pass_on(signal.SIGCONT)
    running.says(Record(Kind.PASSED_ON), Record(Kind.STOPPED), Record(Kind.CHECKED, 1))
    assert running.stopped == [True, True]
    assert running.above.said == []


def test_the_end_of_pid_1_without_a_word_is_said(running: Stand) -> None:
    running.loop.callbacks[running.inside.pidfd]()
    assert running.above.said == [137]
    (line,) = running.logged
    assert "hs-init was killed" in line
    assert running.inside.pidfd not in running.loop.callbacks


def test_its_last_words_are_heard_at_its_end(running: Stand) -> None:
    running.init.send(Record(Kind.EXITED, detail=3 << 8))
    running.loop.callbacks[running.inside.pidfd]()
    assert running.above.said == [3, 137], "the first counts"
    assert running.logged == []


def test_nonsense_among_its_last_words_is_not_believed(running: Stand) -> None:
    running.init.send(Record(Kind.RUN))
    running.loop.callbacks[running.inside.pidfd]()
    assert str(running.above.said[0]).startswith("PID 1 of COMMAND: ")
    assert running.above.said[1:] == [137]


def test_it_is_listened_to_until_it_hangs_up(running: Stand) -> None:
    running.init.finish()
    running.loop.callbacks[running.inside.channel.fileno()]()
    assert running.inside.channel.fileno() not in running.loop.callbacks
    assert running.above.said == [], "that it ended comes by the pidfd"


def test_one_that_reads_nothing_keeps_nobody_waiting(running: Stand) -> None:
    for _ in range(1000):
        running.command.pass_on(signal.SIGWINCH)
    assert running.above.said == []
    assert running.heard()
