# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports that lead to each other: one client would cause connections until all descriptors are used.
Pure.

Such a loop is certain if a target is on the loopback interface, or at the address of a listener.
Whether another address leads back to us can't be known before it happens (relay/tcp/accepting.py,
*Loops*). Of two targets that are tried one after the other the first counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv6Address

from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import LOOPBACKS, Forward
from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import Address

_Visit = tuple[Forward, int]  # a client's, by a version of IP


def _plain(address: Address) -> Address:
    """An IPv4 address that is written as one of IPv6 is that of IPv4."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _first_target(forward: Forward, version: int) -> Address:
    """The address that a client is connected to first."""
    return LOOPBACKS[version] if forward.target is None else _plain(forward.target)


def _takes(listener: Forward, address: Address) -> bool:
    """Whether a connection to that address, from within its namespace, certainly comes there."""
    if listener.interface not in (None, "lo"):
        return False
    if listener.address is None:
        return address.is_loopback
    own = _plain(listener.address)
    if own.version != address.version:
        return False
    return own == address or (own.is_unspecified and address.is_loopback)


class Loops:
    """All listeners of both directions, and which leads to which."""

    def __init__(self, listeners: Iterable[Forward]) -> None:
        self._by_port: dict[tuple[Direction, Protocol, int], list[Forward]] = {}
        for forward in listeners:
            key = forward.direction, forward.protocol, forward.port
            self._by_port.setdefault(key, []).append(forward)

    def _after(self, visit: _Visit) -> Iterator[_Visit]:
        forward, version = visit
        address = _first_target(forward, version)
        there = forward.direction.opposite, forward.protocol, forward.target_port
        for listener in self._by_port.get(there, ()):
            if _takes(listener, address):
                yield listener, address.version

    def through(self, start: Forward) -> Sequence[Forward]:
        """The ports that lead from this one back to it, this one first; none where there is no such
        way.
        """
        versions = (4, 6) if start.address is None else (_plain(start.address).version,)
        came_from: dict[_Visit, _Visit] = {}
        waiting: list[_Visit] = [(start, version) for version in versions]
        while waiting:
            visit = waiting.pop()
            for following in self._after(visit):
                if following[0] == start:
                    way = [visit]
                    while way[-1] in came_from:
                        way.append(came_from[way[-1]])
                    return [listener for listener, _ in reversed(way)]
                if following not in came_from:
                    came_from[following] = visit
                    waiting.append(following)
        return ()


def loop_error(way: Sequence[Forward]) -> HardspliceError:
    """Why the ports of a loop can't be had."""
    forward, *others = way
    names = [one.where for one in (*others, forward)]
    without = f"{forward.direction.option(forward.protocol)} ~{forward.port}"
    hint = f"leave out one of them, as with {without}, or have one lead elsewhere"
    reason = f"that is a loop, by way of {', then '.join(names)}"
    return HardspliceError("forward", forward.where, reason, hint)


def check(forward: Forward, ports: Iterable[Forward]) -> None:
    """Raises HardspliceError where one more listener, beside those that there are, would be in a
    loop.
    """
    others, there = list(ports), forward.direction.opposite
    if not any(one.port == forward.target_port for one in others if one.direction is there):
        return  # as a rule: nobody is where it leads to
    if way := Loops([*others, forward]).through(forward):
        raise loop_error(way)


def refuse(listeners: Sequence[Forward]) -> None:
    """Raises HardspliceError where one of the listeners is in a loop."""
    loops = Loops(listeners)
    for forward in listeners:
        if way := loops.through(forward):
            raise loop_error(way)
