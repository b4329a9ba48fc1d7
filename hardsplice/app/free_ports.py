# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports that were requested as 0: any free one. The kernel chooses the number when the listener is
bound, and that socket is kept, so that no other process can take the port in between. The chosen
ports are collected and reported here.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from hardsplice.app.options import Options
from hardsplice.model.direction import Direction
from hardsplice.model.errors import tell
from hardsplice.model.forward import Forward
from hardsplice.net.listeners import chosen, describe
from hardsplice.telemetry.log import Level, Log


class FreePorts(NamedTuple):
    """The free ports of the command line, as far as they have been chosen."""

    asked: Mapping[tuple[Direction, int], Forward] = MappingProxyType({})
    """Those forwards as the command line has them, by their indexes."""
    chosen: tuple[tuple[Direction, Forward], ...] = ()

    def settle(
        self, options: Options, direction: Direction, opened: Sequence[tuple[int, int]]
    ) -> tuple[Options, FreePorts]:
        """The options with the numbers that a direction's listeners have got, and all free ports
        that have been chosen now.
        """
        forwards = list(options.forwards(direction))
        asked = {
            (direction, index): forwards[index] for index, _ in opened if not forwards[index].port
        }
        found = []
        for index, fd in opened:
            if (direction, index) in asked:
                forwards[index] = chosen(forwards[index], fd)
                found.append((direction, forwards[index]))
        free = FreePorts({**self.asked, **asked}, (*self.chosen, *found))
        return options.with_forwards(direction, forwards), free

    def as_asked(self, options: Options, direction: Direction, index: int) -> Forward:
        """A forward as the command line has it."""
        return self.asked.get((direction, index)) or options.forwards(direction)[index]

    def log(self, log: Log) -> None:
        """Write them to the log."""
        for text in self._sentences():
            log.line(Level.INFO, text)

    def tell_people(self, log: Log) -> None:
        """Write them to standard error, for a caller that doesn't see the log."""
        if log.level >= Level.INFO:
            tell(f"hardsplice: {text}" for text in self._sentences())

    def _sentences(self) -> list[str]:
        return [
            f"listening on {describe(forward)} {direction.listens},"
            f" which leads to port {forward.target_port}"
            for direction, forward in self.chosen
        ]

    def tell_program(self, fd: int) -> None:
        """Write to --ready-fd: "inbound 40123 80" for each that was chosen, one a line, and an
        empty line at last. Its reader may be anybody, and isn't waited for.
        """
        lines = [f"{one} {forward.port} {forward.target_port}\n" for one, forward in self.chosen]
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
