# SPDX-License-Identifier: GPL-2.0-or-later
"""COMMAND while it waits to be started."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from hardsplice.command import init


@pytest.mark.parametrize(
    ("code", "pid", "is_go"),
    [
        (0, 1, True),  # kill(2) by PID 1
        (0, 0, False),  # from outside, a shell's fg for one
        (0, 7, False),
        (-1, 1, False),  # sigqueue(3), which may claim any sender
        (0x80, 0, False),  # the kernel
    ],
)
def test_who_may_start_it(code: int, pid: int, is_go: bool) -> None:
    sent = SimpleNamespace(si_code=code, si_pid=pid, si_signo=signal.SIGCONT)
    assert init._is_go(sent) == is_go  # type: ignore[arg-type]
