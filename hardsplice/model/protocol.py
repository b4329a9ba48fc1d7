# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocols whose ports can be told apart, and their numbers. Pure."""

from __future__ import annotations

from enum import StrEnum


class Protocol(StrEnum):
    """What a port is a port of: one number is two ports, 53/tcp and 53/udp. A member is the word
    that the log, JSON and metrics have for it.

    Everything that names a port says which it is. Each has relays of its own.
    """

    TCP = "tcp"
    UDP = "udp"

    @property
    def number(self) -> int:
        """What the kernel calls it (IPPROTO_TCP, IPPROTO_UDP: linux/in.h)."""
        return 6 if self is Protocol.TCP else 17


BY_NUMBER = {one.number: one for one in Protocol}
