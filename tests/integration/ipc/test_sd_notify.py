# SPDX-License-Identifier: GPL-2.0-or-later
"""A service manager that does not read."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardsplice.ipc.sd_notify import Notifier
from tests.support.manager import notify_socket


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with notify_socket(tmp_path) as end:
        yield end


def test_a_manager_that_does_not_read_holds_nobody_up(manager: socket.socket) -> None:
    """In a process of its own, since the notifier takes a fixed number."""
    pid = os.fork()
    if pid == 0:
        told = Notifier(manager.getsockname())
        told.settle()
        for _ in range(10_000):
            told.say("WATCHDOG=1")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
