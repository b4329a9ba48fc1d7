# SPDX-License-Identifier: GPL-2.0-or-later
"""The ports that a direction may ever use, as far as the options limit them: for Landlock. Pure.

A ruleset is a list of single ports, and every process has a copy of it. So a range with more than
MANY_PORTS is not listed, and then that kind of use is not limited at all.
"""

from __future__ import annotations

from hardsplice.app.options import Options
from hardsplice.model.direction import Direction

MANY_PORTS = 4096  # each takes a system call at the start, and some 100 bytes of kernel memory


def connected_to(options: Options, direction: Direction) -> frozenset[int] | None:
    """The ports that a direction's relays may come to connect to; None for any."""
    autos = options.auto(direction)
    watched = {port for auto in autos for port in auto.target_ports()}
    if direction in options.any_port or len(watched) > MANY_PORTS:
        return None
    return frozenset(watched | {one.target_port for one in options.forwards(direction)})


def listened_on(options: Options, direction: Direction) -> frozenset[int] | None:
    """The ports that a direction may come to listen on after lock-down; None for any."""
    watched = {port for auto in options.auto(direction) for port in auto.listening_ports()}
    if direction in options.any_port or len(watched) > MANY_PORTS:
        return None
    return frozenset(watched)
