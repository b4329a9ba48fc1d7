# SPDX-License-Identifier: GPL-2.0-or-later
"""Which ports are joined with which: all SPECs of one option, turned into listeners.

`spec` reads each SPEC by itself; here they are laid together, because three rules need the whole:
an exclusion wins whichever SPEC it stands in, a listener has one target, and a port asked for by
number has precedence over one that `all` brings.

Pure: text in, `Forward`s out, and Failure for everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import combinations
from typing import TYPE_CHECKING

from hardsplice.errors import Failure, quote
from hardsplice.spec import ALL, ANYWHERE, LAST_PORT, Address, Entry, Listen, Refusal, Spec, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Address", "Forward", "parse"]

_WILDCARDS: dict[int, Address] = {4: IPv4Address("0.0.0.0"), 6: IPv6Address("::")}
_LOOPBACKS: dict[int, Address] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}


@dataclass(frozen=True, slots=True)
class Forward:
    """One listener, and where its connections go."""

    #: None: every address, dual-stack. 0.0.0.0 and :: are every address of that family only.
    address: Address | None
    interface: str | None
    port: int
    #: None: the loopback of the client's family in the other namespace, then the other loopback.
    target: Address | None
    target_port: int
    #: False where no option names this port by number: it is skipped if it can't be bound.
    required: bool


def parse(
    specs: Sequence[str],
    *,
    ephemeral: tuple[int, int],
    option: str,
    families: Sequence[int] = (4, 6),
) -> list[Forward]:
    """The listeners that all SPECs of one option ask for together.

    `ephemeral` is the first and the last port that the kernel hands out by itself, which are in
    neither `all` nor what exclusions leave over. `families` are the versions of IP in use: with
    one alone, an address of the other is refused, and wildcards and default targets are narrowed
    to it. `option` is the option's name in messages.

    The order is that of the listening addresses' first mention, then by port. Raises Failure.
    """
    if "none" in specs:
        other = next((spec for spec in specs if spec != "none"), None)
        if other is not None:
            reason = "'none' means no ports at all; leave out one of the two"
            raise Failure("combine", f"{option} none with {option} {quote(other)}", reason)
        return []
    parsed = []
    for text in specs:
        try:
            spec = read(text)
            _check_families(spec, families)
        except Refusal as refusal:
            raise Failure("parse", f"{option} {quote(text)}", str(refusal)) from None
        parsed.append(spec)
    try:
        return _lay_together(parsed, ephemeral, families)
    except Refusal as refusal:
        raise Failure("parse", option, str(refusal)) from None


def _check_families(spec: Spec, families: Sequence[int]) -> None:
    for address in (spec.listen.address, *(entry.target for entry in spec.entries)):
        if address is not None and address.version not in families:
            raise Refusal(
                f"'{address}' is IPv{address.version}, which -{families[0]} rules out; "
                f"leave out -{families[0]}, or write an IPv{families[0]} address"
            )


def _lay_together(
    specs: Sequence[Spec], ephemeral: tuple[int, int], families: Sequence[int]
) -> list[Forward]:
    excluded = {port for spec in specs for ports in spec.excluded for port in ports}
    groups: dict[Listen, list[Entry]] = {}
    for spec in specs:
        listen = _narrow(spec.listen, families)
        group = groups.setdefault(listen, [])
        entries = spec.entries or ((ALL,) if _stands_alone(spec, specs, families) else ())
        group += entries
    everything = [
        port
        for port in range(1, LAST_PORT + 1)
        if not ephemeral[0] <= port <= ephemeral[1] and port not in excluded
    ]
    loopback = _LOOPBACKS[families[0]] if len(families) == 1 else None
    tables = {}
    for listen, group in groups.items():
        table = _named(listen, group, excluded, loopback)
        _add_all(table, listen, group, everything, loopback)
        tables[listen] = table
    for one, other in combinations(tables, 2):
        if _overlap(one, other):
            _settle(one, tables[one], other, tables[other])
    return [forward for table in tables.values() for _, forward in sorted(table.items())]


def _narrow(listen: Listen, families: Sequence[int]) -> Listen:
    if listen.address is None and len(families) == 1:
        return Listen(_WILDCARDS[families[0]], listen.interface)
    return listen


def _stands_alone(spec: Spec, specs: Iterable[Spec], families: Sequence[int]) -> bool:
    """Whether exclusions mean "all others", or only narrow what other SPECs ask for.

    Whoever lists some ports and excludes one in a second SPEC doesn't mean to open all others.
    So without a listening address exclusions are a request of their own only where no SPEC names
    a port, and with one where none does at that address.
    """
    listen = _narrow(spec.listen, families)
    return not any(
        other.entries and (spec.listen == ANYWHERE or _narrow(other.listen, families) == listen)
        for other in specs
    )


def _named(
    listen: Listen,
    group: Iterable[Entry],
    excluded: set[int],
    loopback: Address | None,
) -> dict[int, Forward]:
    """The ports that are given by number, each with one target."""
    table: dict[int, Forward] = {}
    for entry in group:
        target = entry.target if entry.target is not None else loopback
        for port in entry.ports or ():
            if port in excluded:
                continue
            forward = Forward(
                listen.address, listen.interface, port, target, port + entry.shift, True
            )
            present = table.setdefault(port, forward)
            if present is not forward and present != forward:
                reason = (
                    f"port {port} on {listen} would have two targets, {_target(present)} "
                    f"and {_target(forward)}; leave out one"
                )
                raise Refusal(reason)
    return table


def _add_all(
    table: dict[int, Forward],
    listen: Listen,
    group: Iterable[Entry],
    everything: Iterable[int],
    loopback: Address | None,
) -> None:
    """Add what `all` brings and no entry names by number."""
    first: Entry | None = None
    for entry in group:
        if entry.ports is not None:
            continue
        if first is None:
            first = entry
        elif entry.target != first.target:
            reason = f"all ports on {listen} would have two targets; leave out one"
            raise Refusal(reason)
    if first is None:
        return
    target = first.target if first.target is not None else loopback
    for port in everything:
        if port not in table:
            table[port] = Forward(listen.address, listen.interface, port, target, port, False)


def _overlap(one: Listen, other: Listen) -> bool:
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


def _settle(
    one: Listen,
    one_table: dict[int, Forward],
    other: Listen,
    other_table: dict[int, Forward],
) -> None:
    """Where two listening addresses overlap, let a port given by number win over `all`'s."""
    for port in sorted(one_table.keys() & other_table.keys()):
        required = (one_table[port].required, other_table[port].required)
        if required == (True, True):
            reason = f"port {port} is wanted on {one} and on {other}, which overlap; leave out one"
            raise Refusal(reason)
        if required == (True, False):
            del other_table[port]
        elif required == (False, True):
            del one_table[port]


def _target(forward: Forward) -> str:
    return f"{forward.target or 'loopback'} port {forward.target_port}"
