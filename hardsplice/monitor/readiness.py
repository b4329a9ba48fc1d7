# SPDX-License-Identifier: GPL-2.0-or-later
"""The phases in which the host monitor gets ready, one after the other. Pure.

Each phase begins something and waits until others report that they have done it; after the last of
these the next phase begins. A phase that waits for nobody is over once it has begun.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from hardsplice.kernel.record import NamedTuple


class Phase(NamedTuple):
    """One phase."""

    name: str
    begin: Callable[[], None]
    waits_for: Collection[str] = ()  # who has to report before it is over


class Readiness:
    """Which phase it is in."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._left = list(phases)
        self._awaited: set[str] = set()
        self._is_beginning = False

    @property
    def is_complete(self) -> bool:
        """Whether the last phase has begun."""
        return not self._left

    def awaits(self, who: str) -> bool:
        """Whether the current phase waits for that report."""
        return who in self._awaited

    def start(self) -> None:
        """Begin with the first phase."""
        self._go_on()

    def arrived(self, who: str) -> None:
        """This one has done its part."""
        self._awaited.discard(who)
        self._go_on()

    def _go_on(self) -> None:
        """Begin phases until one has to wait. What one begins may be done before it returns."""
        if self._is_beginning:
            return
        self._is_beginning = True
        try:
            while self._left and not self._awaited:
                phase = self._left.pop(0)
                self._awaited = set(phase.waits_for)
                phase.begin()
        finally:
            self._is_beginning = False
