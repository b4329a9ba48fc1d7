# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that was started: it is heard to its end, ends when it is to, and nothing is left."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from hardsplice.ipc import child, lifeline
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.child import Child
from hardsplice.ipc.messages import Kind, MalformedError, Record
from hardsplice.model.errors import HardspliceError, error_of
from hardsplice.model.roles import HOST, OUTBOUND_RELAY
from tests.support.descriptors import open_descriptors
from tests.support.product import can_bind
from tests.support.stream import PATIENCE

Life = Callable[[Channel], NoReturn]
LONG = 1000  # seconds


@pytest.fixture
def started() -> Iterator[Callable[[Life], Child]]:
    """Starts a child; none is left behind, and no descriptor."""
    before = open_descriptors()
    made: list[Child] = []

    def start(life: Life) -> Child:
        made.append(Child(*child.fork(HOST.name, OUTBOUND_RELAY.name, life)))
        return made[-1]

    yield start
    for one in made:
        with contextlib.suppress(OSError):
            one.kill()
            one.wait()
        one.forget()
    assert open_descriptors() == before


def leaves(theirs: Channel) -> NoReturn:
    """Leaves when it is asked to."""
    theirs.receive()
    os._exit(3)


def stays(_: Channel) -> NoReturn:
    time.sleep(LONG)
    os._exit(0)


def test_one_that_is_asked_leaves_and_one_that_does_not_is_killed(
    started: Callable[[Life], Child],
) -> None:
    one, other = started(leaves), started(stays)
    one.hang_up()
    assert os.waitstatus_to_exitcode(one.end(10)) == 3
    began = time.monotonic()
    assert other.end(0.05) == signal.SIGKILL
    assert 0.05 <= time.monotonic() - began < 5


def test_whether_it_has_ended(started: Callable[[Life], Child]) -> None:
    one = started(leaves)
    assert not one.has_ended()
    assert one.reap() == 0, "it is there still"
    one.hang_up()
    assert one.has_ended(10)
    status = one.reap()
    assert status is not None
    assert os.waitstatus_to_exitcode(status) == 3
    assert one.reap() is None, "it was waited for"
    one.kill()  # and that is no error


def test_its_first_word_is_waited_for_or_its_end(started: Callable[[Life], Child]) -> None:
    def speaks(theirs: Channel) -> NoReturn:
        theirs.send(Record(Kind.READY))
        time.sleep(LONG)
        os._exit(0)

    assert started(speaks).first_word() == Record(Kind.READY)
    silent = started(leaves)
    silent.hang_up()
    assert silent.first_word() is None


def test_an_end_without_a_word_is_noticed_though_others_hold_the_channel(
    started: Callable[[Life], Child],
) -> None:
    def forks(theirs: Channel) -> NoReturn:
        if os.fork() == 0:
            theirs.receive()  # until the end of file
        os._exit(0)

    assert started(forks).first_word() is None


def test_its_last_words_are_heard_after_its_end(started: Callable[[Life], Child]) -> None:
    def speaks(theirs: Channel) -> NoReturn:
        for kind in (Kind.READY, Kind.ACCEPT_PAUSED, Kind.FATAL):
            theirs.send(Record(kind))
        os._exit(0)

    one = started(speaks)
    one.wait()
    assert [record.kind for record in one.last_words()] == [
        Kind.READY,
        Kind.ACCEPT_PAUSED,
        Kind.FATAL,
    ]
    assert list(one.last_words()) == []


def test_last_words_that_are_not_its_to_say_are_malformed(started: Callable[[Life], Child]) -> None:
    def speaks(theirs: Channel) -> NoReturn:
        theirs.send(Record(Kind.ACCEPT_PAUSED))
        theirs.send(Record(Kind.RUN))
        os._exit(0)

    one = started(speaks)
    one.wait()
    said = one.last_words()
    assert next(said).kind == Kind.ACCEPT_PAUSED
    with pytest.raises(MalformedError):
        next(said)


def test_one_that_is_told_to_leave_is_heard_meanwhile(started: Callable[[Life], Child]) -> None:
    def speaks(theirs: Channel) -> NoReturn:
        theirs.receive()
        theirs.send(Record(Kind.ACCEPT_PAUSED))
        os._exit(0)

    one = started(speaks)
    heard: list[Record | None] = []

    def take() -> bool:
        heard.append(one.channel.receive(wait=False))
        return heard[-1] is not None

    one.hang_up()
    one.receive_until_end(10, take)
    assert heard[0] == Record(Kind.ACCEPT_PAUSED)
    assert one.has_ended()
    silent = started(stays)
    began = time.monotonic()
    silent.receive_until_end(0.05, take)
    assert time.monotonic() - began < 5


def test_what_ends_it_early_is_told(started: Callable[[Life], Child]) -> None:
    def fails() -> int:
        raise HardspliceError("listen on", "port 80", "it is taken")

    one = started(lambda theirs: child.live(fails, theirs, "run", "a relay"))
    record = one.first_word()
    assert record is not None
    assert str(error_of(record.text)) == "cannot listen on port 80: it is taken"
    assert os.waitstatus_to_exitcode(one.wait()) == 1


def test_where_there_can_be_no_process_nothing_is_left() -> None:
    before = open_descriptors()

    def none() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with pytest.raises(BlockingIOError):
        child.fork(HOST.name, OUTBOUND_RELAY.name, stays, none)
    assert open_descriptors() == before


def test_one_that_is_given_up_ends_with_its_line_if_it_does_not_by_itself() -> None:
    before = open_descriptors()
    hanging, held = lifeline.pair()

    def hangs(theirs: Channel) -> NoReturn:
        os.close(held)
        lifeline.hang_on(hanging)
        theirs.send(Record(Kind.READY))
        time.sleep(LONG)
        os._exit(0)

    pid, channel = child.fork(HOST.name, OUTBOUND_RELAY.name, hangs)
    os.close(hanging)
    one = Child(pid, channel, lifeline.Hold(held))
    assert one.first_word() == Record(Kind.READY)
    assert set(one.descriptors) == {one.pidfd, channel.fileno(), held}
    one.give_up(0.1)
    with pytest.raises(ChildProcessError):
        one.wait()
    one.give_up(LONG)  # again is no error, and takes no time
    os.close(one.pidfd)
    assert open_descriptors() == before


def test_one_that_is_given_up_ends_what_it_has_started_before() -> None:
    """A listener, for one, is free afterwards; whatever it still had to say is discarded."""
    before = open_descriptors()
    hanging, held = lifeline.pair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def starts_another(theirs: Channel) -> NoReturn:
            os.close(held)
            lifeline.hang_on(hanging)
            other = os.fork()
            if other == 0:
                time.sleep(LONG)
            for _ in range(3):
                theirs.send(Record(Kind.READY, fds=(listener.fileno(),)))
            while theirs.receive():
                pass
            time.sleep(0.1)
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
            os._exit(0)

        pid, channel = child.fork(HOST.name, OUTBOUND_RELAY.name, starts_another)
    os.close(hanging)
    one = Child(pid, channel, lifeline.Hold(held))
    assert not can_bind("127.0.0.1", port)
    one.give_up(PATIENCE)
    assert can_bind("127.0.0.1", port)
    os.close(one.pidfd)
    assert open_descriptors() == before
