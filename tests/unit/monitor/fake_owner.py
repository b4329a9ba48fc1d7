# SPDX-License-Identifier: GPL-2.0-or-later
"""What supervisors and groups report to (owner.Owner, group.Owner), and a loop that never runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Above:
    """Remembers what it was told."""

    said: list[Any] = field(default_factory=list)
    others: tuple[int, ...] = ()  # places of listeners that other groups have

    def relay_ready(self) -> None:
        self.said.append("ready")

    def relay_alive(self) -> None:
        self.said.append("alive")

    def accept_paused(self) -> None:
        self.said.append("yields")

    def relay_drained(self) -> None:
        self.said.append("drained")

    relays_ready, relays_alive, relays_drained = relay_ready, relay_alive, relay_drained

    def relay_lost(self, *words: str | None) -> None:
        """A supervisor says the reason and the next step, a group the protocol before them."""
        self.said.append(words[-2] if len(words) > 2 else words[0])

    def foreign_places(self, _: object) -> tuple[int, ...]:
        return self.others

    def places_of_others(self, _: object) -> tuple[int, ...]:
        return self.others

    def note(self, *said: object) -> None:
        """A supervisor says what a note carries, a group the protocol before that."""
        self.said.append(said)

    def flow_ended(self, end: int, row: bytes) -> None:
        self.said.append((end, row))


@dataclass
class Timers:
    """Remembers what is due, and when."""

    due: list[Any] = field(default_factory=list)
    numbered: list[Any] = field(default_factory=list)

    def add(self, *_: object) -> None:
        pass

    def remove(self, *_: object) -> None:
        pass

    def after(self, seconds: float, callback: object) -> int:
        self.numbered.append((seconds, callback))
        self.due.append(self.numbered[-1])
        return len(self.numbered) - 1

    def cancel(self, number: int) -> None:
        self.due = [one for one in self.due if one is not self.numbered[number]]
