# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes and ends listeners for the registry of ports (registry.Worker), without any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward


@dataclass
class FakeWorker:
    """Does what it is told, unless a port is taken or all fails; at once, or, where there is a list
    for that, when a test says so.
    """

    taken: set[int] = field(default_factory=set)
    fails: HardspliceError | None = None
    done: list[tuple[str, int]] = field(default_factory=list)
    reset: list[int] = field(default_factory=list)  # ports whose flows were reset
    free: int = 40_000  # the port that is chosen where any will do
    later: list[Callable[[], None]] | None = None

    def add(
        self,
        forward: Forward,
        done: Callable[[HardspliceError | Forward], None],
        opened: Callable[[], int] | None = None,
    ) -> None:
        del opened

        def outcome() -> None:
            if self.fails is not None:
                done(self.fails)
            elif forward.port in self.taken:
                done(HardspliceError("listen on", f"port {forward.port}", "in use"))
            else:
                self.done.append(("add", forward.port))
                done(forward if forward.port else forward._replace(port=self.free))

        self.do(outcome)

    def remove(
        self, forward: Forward, *, reset_flows: bool, done: Callable[[HardspliceError | None], None]
    ) -> None:
        def outcome() -> None:
            if self.fails is None:
                self.done.append(("remove", forward.id))
                if reset_flows:
                    self.reset.append(forward.id)
            done(self.fails)

        self.do(outcome)

    def do(self, outcome: Callable[[], None]) -> None:
        if self.later is None:
            outcome()
        else:
            self.later.append(outcome)
