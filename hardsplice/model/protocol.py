# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocols whose ports can be told apart, and their numbers. Pure."""

from __future__ import annotations

from enum import StrEnum


class Protocol(StrEnum):
    """What a port is a port of: one number is two ports, 53/tcp and 53/udp. A member is the word
    that the log, JSON and metrics have for it.

    Everything that names a port says which it is. TCP alone is forwarded: no option, nobody at the
    control socket and no listener that is passed can ask for UDP, and no relay serves it. So UDP is
    for what tells ports apart, and for the tests of that.
    """

    TCP = "tcp"
    UDP = "udp"

    @property
    def number(self) -> int:
        """What the kernel calls it (IPPROTO_TCP, IPPROTO_UDP: linux/in.h)."""
        return 6 if self is Protocol.TCP else 17


BY_NUMBER = {one.number: one for one in Protocol}
