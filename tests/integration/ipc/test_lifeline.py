# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from hardsplice.ipc import lifeline


def forked(live: Callable[[], None]) -> int:
    """A child that does this and then waits for signals; its PID."""
    pid = os.fork()
    if pid == 0:
        live()
        while True:
            signal.pause()
    return pid


def hanging(read: int, write: int, then: Callable[[], None] = lambda: None) -> int:
    """A child that hangs on a line and has stopped; its PID."""

    def live() -> None:
        os.close(write)
        then()
        lifeline.hang_on(read)
        os.kill(os.getpid(), signal.SIGSTOP)

    pid = forked(live)
    os.waitpid(pid, os.WUNTRACED)
    return pid


def test_a_process_ends_when_its_line_is_let_go_of_even_while_it_is_stopped() -> None:
    read, write = lifeline.pair()
    pid = hanging(read, write)
    os.close(read)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.close(write)
    assert os.waitpid(pid, 0) == (pid, signal.SIGKILL)


def test_and_when_whoever_holds_it_is_killed() -> None:
    read, write = lifeline.pair()
    pid = hanging(read, write)
    holder = forked(lambda: os.close(read))
    os.close(read)
    os.close(write)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert os.waitpid(pid, 0) == (pid, signal.SIGKILL)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root to change user")
def test_across_users() -> None:
    """As root: the holder becomes one user, who hangs on the line another."""
    read, write = lifeline.pair()
    pid = hanging(read, write, lambda: os.setresuid(1000, 1000, 1000))

    def hold() -> None:
        os.close(read)
        os.setresuid(65534, 65534, 65534)
        os.kill(os.getpid(), signal.SIGSTOP)

    holder = forked(hold)
    os.waitpid(holder, os.WUNTRACED)
    os.close(read)
    os.close(write)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert os.waitpid(pid, 0) == (pid, signal.SIGKILL)


def test_a_line_that_was_let_go_of_before_ends_it_at_once() -> None:
    read, write = lifeline.pair()
    os.close(write)
    pid = forked(lambda: lifeline.hang_on(read))
    assert os.waitpid(pid, 0)[1] != 0
    os.close(read)


def test_letting_go_twice_is_letting_go_once() -> None:
    """The number may be another descriptor's by then."""
    read, write = lifeline.pair()
    hold = lifeline.Hold(write)
    hold.let_go()
    assert os.dup2(read, write) == write
    hold.let_go()
    os.fstat(write)
    os.close(write)
    os.close(read)
