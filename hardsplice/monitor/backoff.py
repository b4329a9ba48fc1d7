# SPDX-License-Identifier: GPL-2.0-or-later
"""When to restart a relay that died: with growing delays, and finally no more; and whether it died
of something forbidden.

Pure: wait statuses and times in, decisions out.
"""

from __future__ import annotations

import os
import signal
from collections import deque

from hardsplice.sandbox import tripwire

DEATHS_MAX = 8  # in WINDOW seconds; the next one ends the program
WINDOW = 10.0
# Seconds before the first, second ... restart; then the last one again
DELAYS = (0.0, 0.05, 0.1, 0.2, 0.4)


class Backoff:
    """When to restart a process that died."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()

    def delay(self, now: float) -> float | None:
        """Seconds to wait after a death at ``now``; None when it has died too often."""
        while self._deaths and now - self._deaths[0] > WINDOW:
            self._deaths.popleft()
        self._deaths.append(now)
        count = len(self._deaths)
        return None if count > DEATHS_MAX else DELAYS[min(count, len(DELAYS)) - 1]


def is_denial(status: int) -> bool:
    """Whether a relay ended because it tried what its filter or sandbox/tripwire.py forbids, from
    its wait status.
    """
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGSYS
    return os.WEXITSTATUS(status) == tripwire.STATUS
