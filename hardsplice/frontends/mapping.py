# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports as container engines name them, as forwards. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address, ip_address

from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError, quote
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.model.roles import RELAYS
from hardsplice.model.spec import LAST_PORT, Address

# Those that a relay forwards.
KNOWN = [one for one in Protocol if (Direction.INBOUND, one) in RELAYS]


def address(text: str, what: str) -> Address:
    """An address, of which ``what`` says whose it is; HardspliceError where it is none."""
    try:
        found = ip_address(text)
    except ValueError:
        raise HardspliceError("use", f"{what} {quote(text)}", "it is not an IP address") from None
    if isinstance(found, IPv6Address) and found.scope_id is not None:
        raise HardspliceError(
            "use", f"{what} {quote(text)}", "an address with a zone is not served"
        )
    return found


def protocol(text: str) -> Protocol:
    """A protocol by the word that engines have for it; HardspliceError where it isn't served."""
    if text not in KNOWN:
        reason = f"what is forwarded is {' and '.join(KNOWN)}"
        raise HardspliceError("forward", f"a port of protocol {quote(text)}", reason)
    return Protocol(text)


def port(number: object, what: str) -> int:
    """A port's number; HardspliceError where it is none."""
    is_number = isinstance(number, int) and not isinstance(number, bool)
    if not is_number or not 1 <= number <= LAST_PORT:  # type: ignore[operator]
        shown = quote(str(number))
        raise HardspliceError("use", f"{what} {shown}", f"a port is a number from 1 to {LAST_PORT}")
    return number  # type: ignore[return-value]


def inbound(
    protocol: Protocol, listen: Address | None, port: int, target: Address | None, target_port: int
) -> Forward:
    """A port of the host that leads to ``target``; without ``listen`` it is every address, of both
    families. It has no number yet.
    """
    return Forward(
        Direction.INBOUND, listen, None, port, target, target_port, required=True, protocol=protocol
    )


def numbered(forwards: Iterable[Forward]) -> Iterator[Forward]:
    """The same, numbered from 1 on."""
    for number, forward in enumerate(forwards, 1):
        yield forward._replace(id=number)
