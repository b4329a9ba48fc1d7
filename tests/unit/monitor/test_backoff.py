# SPDX-License-Identifier: GPL-2.0-or-later
"""When a relay is started again, and how its end is told."""

from __future__ import annotations

import signal

import pytest

from hardsplice.kernel.status import describe_status
from hardsplice.monitor.backoff import DEATHS_MAX, DELAYS, WINDOW, Backoff, is_denial
from hardsplice.sandbox import tripwire

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


@pytest.mark.parametrize(
    ("status", "denied"),
    [
        (0, False),
        (signal.SIGKILL, False),
        (signal.SIGSYS, True),
        (signal.SIGSYS | 0x80, True),
        (tripwire.STATUS << 8, True),
        (1 << 8, False),
    ],
)
def test_whether_it_tried_what_it_may_not(status: int, denied: bool) -> None:
    assert is_denial(status) is denied
