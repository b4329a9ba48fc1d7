# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports that were requested as 0: any free one. The kernel chooses the number when the listener is
bound, and that socket is kept, so that no other process can take the port in between. The chosen
ports are collected and reported here.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Sequence

from hardsplice.model.errors import print_lines
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.telemetry.log import Level, Log


def write_log(free: Sequence[Forward], log: Log) -> None:
    """Write them to the log."""
    for text in _sentences(free):
        log.line(Level.INFO, text)


def print_to_stderr(free: Sequence[Forward], log: Log) -> None:
    """Write them to standard error, for whoever starts us and sees no log."""
    if log.level >= Level.INFO:
        print_lines(f"hardsplice: {text}" for text in _sentences(free))


def _sentences(free: Sequence[Forward]) -> list[str]:
    return [
        f"listening on {forward.where}, which leads to port {forward.target_port}"
        for forward in free
    ]


def lines_of(free: Sequence[Forward]) -> bytes:
    """What is written to --ready-fd: "inbound 40123 80" for each that was chosen, one a line, with
    " udp" at its end for one of UDP; and an empty line at last.
    """
    lines = [
        f"{one.direction} {one.port} {one.target_port}"
        f"{'' if one.protocol is Protocol.TCP else f' {one.protocol}'}\n"
        for one in free
    ]
    return "".join([*lines, "\n"]).encode()


def write_report(text: bytes, fd: int) -> None:
    """Write it there. Its reader may be anybody, and isn't waited for."""
    with contextlib.suppress(OSError):
        for start in range(0, len(text), select.PIPE_BUF):
            if not _has_room(fd):
                break
            os.write(fd, text[start : start + select.PIPE_BUF])


def _has_room(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(0))
