# SPDX-License-Identifier: GPL-2.0-or-later
"""Unit tests that start a process fail, in whichever way they do it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support.children import none_started


def fork() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


def fork_and_wait() -> None:
    os.waitpid(fork(), 0)


def spawn_and_wait() -> None:
    os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "--version"], {}), 0)


def run() -> None:
    subprocess.run(["true"], check=True)


@pytest.mark.parametrize("start", [fork, fork_and_wait, spawn_and_wait, run])
def test_a_process_is_noticed(start: Callable[[], object]) -> None:
    with pytest.raises(AssertionError, match="tests/integration"), none_started():
        start()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, 0)


def test_without_one_nothing_is() -> None:
    with none_started():
        os.getpid()
