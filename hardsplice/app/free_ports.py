# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports that were asked for as 0: any that is free. The kernel chooses the number when the listener
is bound, and that very socket is kept, so that nobody else can get it in between. Here it is noted
which ones those are, and whoever wants to know is told.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Sequence
from dataclasses import replace

from hardsplice.app.options import Options
from hardsplice.model.direction import Direction
from hardsplice.model.errors import tell
from hardsplice.model.ports import Forward
from hardsplice.net.listeners import chosen, describe
from hardsplice.telemetry.log import Level, Log


class FreePorts:
    """The free ports of the command line."""

    def __init__(self) -> None:
        self._asked: dict[tuple[Direction, int], Forward] = {}  # by the forward's index
        self._chosen: list[tuple[Direction, Forward]] = []

    def settle(
        self, options: Options, direction: Direction, opened: Sequence[tuple[int, int]]
    ) -> Options:
        """The options with the numbers that a direction's listeners have got."""
        forwards = list(options.forwards(direction))
        for index, fd in opened:
            asked = forwards[index]
            if not asked.port:
                self._asked[direction, index] = asked
                forwards[index] = chosen(asked, fd)
                self._chosen.append((direction, forwards[index]))
        if direction is Direction.INBOUND:
            return replace(options, inbound=tuple(forwards))
        return replace(options, outbound=tuple(forwards))

    def asked(self, options: Options, direction: Direction, index: int) -> Forward:
        """A forward as the command line has it."""
        return self._asked.get((direction, index)) or options.forwards(direction)[index]

    def log(self, log: Log) -> None:
        """Write them to the log."""
        for text in self._sentences():
            log.line(Level.INFO, text)

    def tell_people(self, log: Log) -> None:
        """Write them to standard error, for whoever starts us and sees no log."""
        if log.level >= Level.INFO:
            tell(f"hardsplice: {text}" for text in self._sentences())

    def _sentences(self) -> list[str]:
        return [
            f"listening on {describe(forward)} {direction.listens},"
            f" which leads to port {forward.target_port}"
            for direction, forward in self._chosen
        ]

    def tell_program(self, fd: int) -> None:
        """Write to --ready-fd: "inbound 40123 80" for each that was chosen, one a line, and an
        empty line at last. Its reader may be anybody, and isn't waited for.
        """
        lines = [f"{one} {forward.port} {forward.target_port}\n" for one, forward in self._chosen]
        text = "".join([*lines, "\n"]).encode()
        with contextlib.suppress(OSError):
            for start in range(0, len(text), select.PIPE_BUF):
                if not _has_room(fd):
                    break
                os.write(fd, text[start : start + select.PIPE_BUF])


def _has_room(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(0))
