# SPDX-License-Identifier: GPL-2.0-or-later
"""Which signals are taken, and which COMMAND lacks."""

from __future__ import annotations

import signal

import pytest

from hardsplice.kernel.linux import SI_KERNEL
from hardsplice.kernel.signals import is_to_be_passed_on, taken

USER, QUEUE, TKILL = 0, -1, -6  # asm-generic/siginfo.h


@pytest.mark.parametrize("code", [USER, QUEUE, TKILL])
@pytest.mark.parametrize("leads", [False, True])
def test_what_somebody_sends_is_passed_on(code: int, leads: bool) -> None:
    for number in taken(has_command=True):
        assert is_to_be_passed_on(number, code, is_told_of_hangup=leads)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH])
@pytest.mark.parametrize("leads", [False, True])
def test_what_the_terminal_sends_to_its_group_is_not(number: signal.Signals, leads: bool) -> None:
    assert not is_to_be_passed_on(number, SI_KERNEL, is_told_of_hangup=leads)


def test_a_hangup_is_where_nobody_else_is_told() -> None:
    assert is_to_be_passed_on(signal.SIGHUP, SI_KERNEL, is_told_of_hangup=True)
    assert not is_to_be_passed_on(signal.SIGHUP, SI_KERNEL, is_told_of_hangup=False)


def test_a_timer_of_the_caller_s_is() -> None:
    """One that was set before exec(3), as by a program that gives others so long."""
    assert is_to_be_passed_on(signal.SIGALRM, SI_KERNEL, is_told_of_hangup=False)


def test_what_tells_of_oneself_and_what_stops_is_left_to_the_kernel() -> None:
    left = {signal.SIGSEGV, signal.SIGPIPE, signal.SIGSYS, signal.SIGTSTP, signal.SIGKILL}
    assert not left & set(taken(has_command=True))
    assert {signal.SIGRTMIN, signal.SIGRTMAX, signal.SIGPWR} <= set(taken(has_command=True))
    assert signal.SIGALRM not in taken(has_command=False)
