# SPDX-License-Identifier: GPL-2.0-or-later
"""The listeners that set-up has opened, and in which places they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hardsplice.app.options import Options
from hardsplice.ipc import descriptors
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction
from hardsplice.model.forward import Forward, Origin, Source
from hardsplice.net.listeners import Bound


class Listening(NamedTuple):
    """What is listened on."""

    # With all that is forwarded: beside what they name what a socket unit passed, and what was
    # added at run time before a restart.
    options: Options
    opened: Mapping[Direction, Sequence[Bound]]

    def ports(self) -> list[Forward]:
        """The ports that are listened on."""
        return [one.forward for opened in self.opened.values() for one in opened]

    def free(self) -> list[Forward]:
        """Those that options ask for as any that is free, with their ports."""
        return [
            one for one in self.ports()
            if one.origin is Origin.FREE and one.source is Source.OPTION
        ]  # fmt: skip


def in_places(opened: Iterable[Bound]) -> list[Bound]:
    """Put a direction's listeners in the places that filters know them by."""
    placed = []
    for place, one in enumerate(opened, descriptors.FIRST_LISTENER):
        descriptors.move(one.fd, place)
        placed.append(Bound(one.forward, place))
    return placed
