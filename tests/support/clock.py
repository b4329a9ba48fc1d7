# SPDX-License-Identifier: GPL-2.0-or-later
"""A clock that a test moves."""

from __future__ import annotations


class FakeClock:
    """What the module ``time`` is to a module that waits or has deadlines."""

    def __init__(self) -> None:
        self.now = 1000.0  # seconds

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
