# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitors' loop: whoever is busy, the others have their turn. All of it is counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from hardsplice.ipc.loop import EVENTS_A_PASS, Alarm, Loop

ENOUGH = 1000  # calls after which a loop that should have turned to others has not


class Pipes:
    """Pipes whose reading ends are ready for ever."""

    def __init__(self) -> None:
        self.open: list[int] = []

    def ready(self) -> int:
        """One more."""
        read, write = os.pipe()
        os.write(write, b"\n")
        self.open += (read, write)
        return read

    def close(self) -> None:
        for fd in self.open:
            os.close(fd)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = Pipes()
    yield made
    made.close()


def counted(loop: Loop, what: Callable[[], None]) -> Callable[[], None]:
    """``what``, which ends the loop once it has been called too often."""
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        if calls > ENOUGH:
            loop.stop(1)
            raise AssertionError("nobody else had a turn")
        what()

    return call


def test_a_timer_that_is_set_again_at_once_leaves_room_for_descriptors(pipes: Pipes) -> None:
    loop = Loop()

    def again() -> None:
        loop.after(0, busy)

    busy = counted(loop, again)
    again()
    loop.add(pipes.ready(), lambda: loop.stop(0))
    assert loop.run() == 0


def test_a_timer_set_in_the_past_waits_for_the_next_pass_too(pipes: Pipes) -> None:
    loop = Loop()

    def again() -> None:
        loop.after(-1, busy)

    busy = counted(loop, again)
    again()
    loop.add(pipes.ready(), lambda: loop.stop(0))
    assert loop.run() == 0


def test_timers_that_multiply_do_not_make_a_pass_endless(pipes: Pipes) -> None:
    loop = Loop()
    runs = 0

    def two_more() -> None:
        nonlocal runs
        runs += 1
        loop.after(0, double)
        loop.after(0, double)

    double = counted(loop, two_more)
    passes = 0

    def count() -> None:
        nonlocal passes
        passes += 1
        if passes == 5:
            loop.stop(0)

    loop.add(pipes.ready(), count)
    loop.after(0, double)
    assert loop.run() == 0
    assert runs <= 1 + 2 + 4 + 8 + 16


def test_a_descriptor_that_is_always_ready_leaves_room_for_timers(pipes: Pipes) -> None:
    loop = Loop()
    loop.add(pipes.ready(), counted(loop, lambda: None))
    loop.after(0, lambda: loop.stop(0))
    assert loop.run() == 0


def test_each_of_many_descriptors_has_its_turn_before_any_has_a_third(pipes: Pipes) -> None:
    """More are ready than one pass takes."""
    loop = Loop()
    turns: dict[int, int] = {}

    def turn(fd: int) -> None:
        turns[fd] = turns.get(fd, 0) + 1
        if turns[fd] == 3:
            loop.stop(0)

    for _ in range(3 * EVENTS_A_PASS + 1):
        fd = pipes.ready()
        loop.add(fd, lambda fd=fd: turn(fd))  # type: ignore[misc]
    loop.run()
    assert len(turns) == 3 * EVENTS_A_PASS + 1


def test_timers_run_in_the_order_of_their_time() -> None:
    loop = Loop()
    said: list[str] = []
    loop.after(0.002, lambda: said.append("late"))
    loop.after(0, lambda: said.append("first"))
    loop.after(0, lambda: said.append("second"))
    loop.after(0.003, lambda: loop.stop(0))
    loop.run()
    assert said == ["first", "second", "late"]


def test_what_was_removed_is_not_called_even_if_it_was_ready(pipes: Pipes) -> None:
    loop = Loop()
    fds = (pipes.ready(), pipes.ready())
    called: list[int] = []

    def only(fd: int) -> None:
        called.append(fd)
        for one in fds:
            if one != fd:
                loop.remove(one)
        loop.after(0, lambda: loop.stop(0))

    for fd in fds:
        loop.add(fd, lambda fd=fd: only(fd))  # type: ignore[misc]
    loop.run()
    assert len(set(called)) == 1


def test_an_alarm_that_is_set_often_is_one_timer() -> None:
    loop = Loop()
    rung: list[int] = []
    alarm = Alarm(loop, lambda: rung.append(1))
    for _ in range(ENOUGH):
        alarm.set(0)
    loop.after(0.001, lambda: loop.stop(0))
    loop.run()
    assert rung == [1]


def test_an_alarm_can_be_set_again_by_what_it_calls() -> None:
    loop = Loop()
    rung: list[int] = []

    def again() -> None:
        rung.append(1)
        if len(rung) == 3:
            loop.stop(0)
        alarm.set(0)

    alarm = Alarm(loop, again)
    alarm.set(0)
    loop.run()
    assert len(rung) == 3


def test_a_timer_that_was_cancelled_neither_calls_nor_wakes(pipes: Pipes) -> None:
    loop, calls = Loop(), list[str]()
    cancelled = [loop.after(seconds, lambda: calls.append("cancelled")) for seconds in (0, 3600)]
    loop.after(0, lambda: calls.append("kept"))
    cancelled.append(loop.after(0, lambda: calls.append("cancelled")))
    for one in cancelled:
        loop.cancel(one)
    loop.add(pipes.ready(), lambda: loop.stop(0) if calls else None)
    assert loop.run() == 0
    assert calls == ["kept"]
    assert loop._timers == [], "it would wait without a limit"


def test_a_timer_can_be_cancelled_in_the_pass_in_which_it_is_due() -> None:
    loop, calls = Loop(), list[str]()
    numbers: list[int] = []
    loop.after(0, lambda: loop.cancel(numbers[0]))
    numbers.append(loop.after(0, lambda: calls.append("cancelled")))
    loop.after(0, lambda: loop.stop(0))
    assert loop.run() == 0
    assert (calls, loop._cancelled) == ([], set())


def test_an_alarm_that_was_cancelled_can_be_set_again() -> None:
    loop, calls = Loop(), list[int]()
    alarm = Alarm(loop, lambda: calls.append(1))
    alarm.cancel()
    alarm.set(3600)
    alarm.cancel()
    alarm.set(0)
    alarm.set(0)
    loop.after(0, lambda: loop.stop(0))
    assert loop.run() == 0
    assert calls == [1]
