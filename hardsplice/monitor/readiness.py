# SPDX-License-Identifier: GPL-2.0-or-later
"""How the host monitor gets ready: phases, one after the other. Pure.

Each phase begins something and waits until others have said that it is done; with the last of them
the next phase begins. What waits for nobody is over as soon as it has begun.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple


class Phase(NamedTuple):
    """One step on the way."""

    name: str
    begin: Callable[[], None]
    waits_for: Collection[str] = ()  # those who have to arrive before it is over


class Readiness:
    """Where it stands."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._left = list(phases)
        self._awaited: set[str] = set()
        self._is_beginning = False

    @property
    def is_complete(self) -> bool:
        """Whether the last phase has begun."""
        return not self._left

    def awaits(self, who: str) -> bool:
        """Whether the phase that it is in waits for that one."""
        return who in self._awaited

    def start(self) -> None:
        """Begin with the first phase."""
        self._go_on()

    def arrived(self, who: str) -> None:
        """One that is waited for is there."""
        self._awaited.discard(who)
        self._go_on()

    def _go_on(self) -> None:
        """Begin phases until one has to wait. What a phase begins may be done at once."""
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
