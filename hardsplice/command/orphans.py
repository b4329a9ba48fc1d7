# SPDX-License-Identifier: GPL-2.0-or-later
"""Children that hardsplice didn't start: those of a program that became this process by exec(3),
and orphans, if this is PID 1 or a subreaper. They have to be reaped when they end.

Our own children are reaped by the code that started them, so this only checks which child has ended
(WNOWAIT), and reaps by number.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Container

from hardsplice.ipc.loop import Alarm, Loop

_AGAIN_SECONDS = 0.2  # until one of ours that stands before others has been waited for


class Orphans:
    """Reaps ended children that aren't ours."""

    def __init__(self, loop: Loop, ours: Callable[[], Container[int]]) -> None:
        """``ours`` returns the children that other code waits for."""
        self._ours = ours
        self._later = Alarm(loop, self.reap)

    def reap(self) -> None:
        """Reap all that can be reaped now."""
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid in self._ours():
                    self._later.set(_AGAIN_SECONDS)
                    return
                os.waitpid(found.si_pid, 0)
