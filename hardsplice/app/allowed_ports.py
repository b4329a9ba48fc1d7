# SPDX-License-Identifier: GPL-2.0-or-later
"""The TCP ports that a direction may ever use, as far as the options limit them: for Landlock,
which doesn't know those of UDP. Pure.

A ruleset is a list of single ports, and every process has a copy of it. So a range with more than
MANY_PORTS is not listed, and then that kind of use is not limited at all.
"""

from __future__ import annotations

from hardsplice.app.options import Options
from hardsplice.model.direction import Direction
from hardsplice.model.forward import Auto
from hardsplice.model.protocol import Protocol

MANY_PORTS = 4096  # each takes a system call at the start, and some 100 bytes of kernel memory


def connected_to(options: Options, direction: Direction) -> frozenset[int] | None:
    """The ports that a direction's relays may come to connect to; None for any."""
    watched = {port for auto in _autos(options, direction) for port in auto.target_ports()}
    if (direction, Protocol.TCP) in options.any_port or len(watched) > MANY_PORTS:
        return None
    forwards = options.forwards(direction)
    named = {one.target_port for one in forwards if one.protocol is Protocol.TCP}
    return frozenset(watched | named)


def listened_on(options: Options, direction: Direction) -> frozenset[int] | None:
    """The ports that a direction may come to listen on after lock-down; None for any."""
    watched = {port for auto in _autos(options, direction) for port in auto.listening_ports()}
    if (direction, Protocol.TCP) in options.any_port or len(watched) > MANY_PORTS:
        return None
    return frozenset(watched)


def _autos(options: Options, direction: Direction) -> list[Auto]:
    return [one for one in options.auto(direction) if one.protocol is Protocol.TCP]
