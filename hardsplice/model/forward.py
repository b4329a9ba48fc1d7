# SPDX-License-Identifier: GPL-2.0-or-later
"""A port that is forwarded: one value from where it is asked for, in an option or at run time, to
its end. Pure.
"""

from __future__ import annotations

from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from hardsplice.kernel.hints import TYPE_CHECKING
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction
from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import Address, Listen

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACKS: dict[int, Address] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}


class Source(Enum):
    """Who asked for a port."""

    OPTION = "option"
    AUTO = "auto"
    CONTROL = "control"
    NAMESPACE = "namespace"  # as CONTROL, from the namespace that is served


class Origin(Enum):
    """Whose choice a port's number is, and its listener."""

    NAMED = "named"  # whoever asked for the port chose the number
    FREE = "free"  # any that is free: the kernel chooses it when the listener is made
    PASSED = "passed"  # a socket unit: the service manager made the listener, and has it too


class Forward(NamedTuple):
    """A port that is forwarded: its listener, and where the listener's connections go."""

    direction: Direction
    #: None: every address, dual-stack. 0.0.0.0 and :: are every address of that family only.
    address: Address | None
    interface: str | None
    #: 0: one that is free, as long as the kernel has not chosen it.
    port: int
    #: None: the loopback of the client's family in the other namespace, then the other loopback.
    target: Address | None
    target_port: int
    #: False where no option names this port by number: it is skipped if it can't be bound.
    required: bool
    protocol: Protocol = Protocol.TCP
    source: Source = Source.OPTION
    origin: Origin = Origin.NAMED
    #: Its number, which no other port ever has. 0: what has not been numbered yet, as what is asked
    #: for at run time, or only watched for.
    id: int = 0

    @property
    def bind_address(self) -> str:
        """The address and the interface of its listener; nothing where any will do."""
        where = str(self.address or "")
        return f"{where}%{self.interface}" if self.interface else where

    @property
    def name(self) -> str:
        """Its listener as messages name it: "port 80", "127.0.0.1 port 80", "::1%eth0 port 80",
        "UDP port 53".
        """
        kind = "" if self.protocol is Protocol.TCP else f"{self.protocol.upper()} "
        if not self.port:
            where = f" of {self.bind_address}" if self.bind_address else ""
            return f"a free {kind}port{where}"
        return f"{self.bind_address} {kind}port {self.port}".strip()

    @property
    def where(self) -> str:
        """The same with its direction: "port 80 on the host"."""
        return f"{self.name} {self.direction.listens}"


class Auto(NamedTuple):
    """Ports that are forwarded while somebody listens on their targets."""

    direction: Direction
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
                    self.direction,
                    self.address,
                    self.interface,
                    port,
                    self.target,
                    target_port,
                    required=False,
                    protocol=self.protocol,
                    source=Source.AUTO,
                )

    def listening_ports(self) -> set[int]:
        """All ports that may come to be listened on."""
        return {port for run, _ in self.runs for port in run}

    def target_ports(self) -> set[int]:
        """All ports that may come to be connected to."""
        return {port + shift for run, shift in self.runs for port in run}


def overlap(one: Forward, other: Forward) -> bool:
    """Whether the kernel refuses to bind both, of one direction, where they have one port."""
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
