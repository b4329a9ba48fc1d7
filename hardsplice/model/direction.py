# SPDX-License-Identifier: GPL-2.0-or-later
"""The two directions in which ports are forwarded, and what is where in each. Pure.

The relays of one direction and protocol are a group: they have the same listeners.
"""

from __future__ import annotations

from enum import StrEnum

from hardsplice.model.protocol import Protocol


class Direction(StrEnum):
    """Which way connections are forwarded. A member is the word that the log, JSON and metrics have
    for it.
    """

    INBOUND = "inbound"  # from the host to a server in the namespace
    OUTBOUND = "outbound"  # from the namespace to a server on the host

    def option(self, protocol: Protocol) -> str:
        """The option that asks for its ports of a protocol."""
        letter = "t" if protocol is Protocol.TCP else "u"
        return f"-{letter if self is Direction.INBOUND else letter.upper()}"

    @property
    def listens(self) -> str:
        """Where its listeners are, in the words of messages."""
        return "on the host" if self is Direction.INBOUND else "in the namespace"

    @property
    def connects(self) -> str:
        """Where its relays are, and connect, in the words of messages."""
        return self.opposite.listens

    @property
    def opposite(self) -> Direction:
        """The other direction."""
        return Direction.OUTBOUND if self is Direction.INBOUND else Direction.INBOUND


GroupKey = tuple[Direction, Protocol]
"""What the relays of one group carry."""


def group_name(direction: Direction, protocol: Protocol) -> str:
    """A group as messages name it: "inbound", "inbound UDP"."""
    return direction if protocol is Protocol.TCP else f"{direction} {protocol.upper()}"
