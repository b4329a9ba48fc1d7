# SPDX-License-Identifier: GPL-2.0-or-later
"""A port that is forwarded: where its clients connect, and where their connections go. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import Address, Listen

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACKS: dict[int, Address] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}


@dataclass(frozen=True, slots=True)
class Forward:
    """One listener, and where its connections go."""

    #: None: every address, dual-stack. 0.0.0.0 and :: are every address of that family only.
    address: Address | None
    interface: str | None
    #: 0: one that is free; the kernel chooses it when the listener is made.
    port: int
    #: None: the loopback of the client's family in the other namespace, then the other loopback.
    target: Address | None
    target_port: int
    #: False where no option names this port by number: it is skipped if it can't be bound.
    required: bool
    protocol: Protocol = Protocol.TCP


@dataclass(frozen=True, slots=True)
class Auto:
    """Ports that are forwarded while somebody listens on their targets."""

    address: Address | None
    interface: str | None
    target: Address | None
    #: Runs of listening ports, and what their targets' numbers differ by.
    runs: tuple[tuple[range, int], ...]
    protocol: Protocol = Protocol.TCP

    def forwards(self, target_port: int) -> Iterator[Forward]:
        """What to listen on while a server listens on this port of the other namespace."""
        for run, shift in self.runs:
            port = target_port - shift
            if port in run:
                yield Forward(
                    self.address,
                    self.interface,
                    port,
                    self.target,
                    target_port,
                    required=False,
                    protocol=self.protocol,
                )

    def listening_ports(self) -> set[int]:
        """All ports that may come to be listened on."""
        return {port for run, _ in self.runs for port in run}

    def target_ports(self) -> set[int]:
        """All ports that may come to be connected to."""
        return {port + shift for run, shift in self.runs for port in run}


def overlap(one: Forward, other: Forward) -> bool:
    """Whether the kernel refuses to bind both where their ports have one number."""
    return one.protocol is other.protocol and meet(one, other)


def meet(one: Listen | Forward, other: Listen | Forward) -> bool:
    """Whether the kernel refuses to bind one port on both (inet_csk_bind_conflict)."""
    if None not in (one.interface, other.interface) and one.interface != other.interface:
        return False
    if one.address is None or other.address is None:
        return True
    if one.address.version != other.address.version:
        return False
    return one.address == other.address or (
        one.address.is_unspecified or other.address.is_unspecified
    )
