# SPDX-License-Identifier: GPL-2.0-or-later
"""Which ports are forwarded to which: all SPECs of one option, turned into listeners.

`spec` reads each SPEC by itself; here they are laid together, because three rules need the whole:
an exclusion wins whichever SPEC it stands in, a listener has one target, and a port asked for by
number has precedence over one that `all` brings.

Pure: text in, `Forward`s out, and HardspliceError for everything else.
"""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address, IPv6Address
from itertools import combinations

from hardsplice.kernel.hints import TYPE_CHECKING
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction, GroupKey
from hardsplice.model.errors import HardspliceError, quote
from hardsplice.model.forward import LOOPBACKS, Auto, Forward, Origin, Source, meet
from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import (
    ALL,
    ANYWHERE,
    FREE,
    LAST_PORT,
    Address,
    Entry,
    Inherited,
    Listen,
    Spec,
    SpecError,
    read,
    read_inherited,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Layout", "lay_out", "parse", "parse_inherited", "single"]

_WILDCARDS: dict[int, Address] = {4: IPv4Address("0.0.0.0"), 6: IPv6Address("::")}


class Layout(NamedTuple):
    """What all SPECs of one option ask for together."""

    forwards: list[Forward]
    autos: list[Auto]


def parse(
    specs: Sequence[str],
    direction: Direction,
    *,
    ephemeral: tuple[int, int],
    versions: Sequence[int] = (4, 6),
    protocol: Protocol = Protocol.TCP,
) -> list[Forward]:
    """As `lay_out`, for SPECs that name their ports: `auto` is a HardspliceError."""
    layout = lay_out(specs, direction, ephemeral=ephemeral, versions=versions, protocol=protocol)
    if layout.autos:
        reason = "'auto' can't be asked for here; name the ports"
        raise HardspliceError("parse", direction.option(protocol), reason)
    return layout.forwards


def lay_out(
    specs: Sequence[str],
    direction: Direction,
    *,
    ephemeral: tuple[int, int],
    versions: Sequence[int] = (4, 6),
    first: int = 1,
    protocol: Protocol = Protocol.TCP,
) -> Layout:
    """The listeners that all SPECs of the option of a direction and a protocol ask for together,
    numbered from ``first`` on.

    `ephemeral` is the first and the last port that the kernel hands out by itself, which are in
    neither `all` nor what exclusions leave over. `versions` are those of IP in use: with
    one alone, an address of the other is refused, and wildcards and default targets are narrowed
    to it.

    The order is that of the listening addresses' first mention, then by port. Raises
    HardspliceError.
    """
    option = direction.option(protocol)
    if "none" in specs:
        other = next((spec for spec in specs if spec != "none"), None)
        if other is not None:
            reason = "'none' means no ports at all; leave out one of the two"
            raise HardspliceError("combine", f"{option} none with {option} {quote(other)}", reason)
        return Layout([], [])
    parsed = []
    for text in specs:
        try:
            spec = read(text, protocol)
            _check_versions(spec, versions)
        except SpecError as refusal:
            raise HardspliceError("parse", f"{option} {quote(text)}", str(refusal)) from None
        parsed.append(spec)
    try:
        return _lay_together(parsed, (direction, protocol), ephemeral, versions, first)
    except SpecError as refusal:
        raise HardspliceError("parse", option, str(refusal)) from None


def single(
    direction: Direction,
    listen: Listen,
    port: int,
    target: Address | None,
    target_port: int,
    source: Source,
    *,
    versions: Sequence[int],
    in_use: Sequence[int],
    protocol: Protocol = Protocol.TCP,
) -> Forward:
    """The listener for a single request at run time; it has no number yet.

    `versions` are those of IP that it is to have, `in_use` those in use. Raises SpecError.
    """
    _check_addresses((listen.address, target), in_use)
    if listen.address is not None and listen.address.version not in versions:
        raise SpecError(f"'{listen.address}' is not IPv{versions[0]}")
    listen = _narrow(listen, versions)
    if target is None and len(in_use) == 1:
        target = LOOPBACKS[in_use[0]]
    return Forward(
        direction,
        listen.address,
        listen.interface,
        port,
        target,
        target_port,
        required=True,
        protocol=protocol,
        source=source,
        origin=Origin.NAMED if port else Origin.FREE,
    )


def parse_inherited(
    specs: Sequence[str], protocol: Protocol = Protocol.TCP, *, versions: Sequence[int] = (4, 6)
) -> list[Inherited]:
    """What SPECs of a protocol's option ask for that take passed listeners, all on the host. Raises
    HardspliceError.
    """
    option = Direction.INBOUND.option(protocol)
    read_ones = []
    for text in specs:
        try:
            one = read_inherited(text, protocol)
            _check_addresses((one.target,), versions)
        except SpecError as refusal:
            raise HardspliceError("parse", f"{option} {quote(text)}", str(refusal)) from None
        read_ones.append(one)
    named = [name for one in read_ones for name in one.names]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        reason = "two of them want it; leave out one"
        raise HardspliceError("combine", f"{option} inherit:{twice} with itself", reason)
    if sum(not one.names for one in read_ones) > 1:
        reason = "each takes all that no other one names; leave out all but one"
        raise HardspliceError("combine", f"several {option} inherit without a name", reason)
    return read_ones


def _check_versions(spec: Spec, versions: Sequence[int]) -> None:
    addresses = (spec.listen.address, *(entry.target for entry in spec.entries))
    _check_addresses(addresses, versions)


def _check_addresses(addresses: Iterable[Address | None], versions: Sequence[int]) -> None:
    for address in addresses:
        if address is not None and address.version not in versions:
            raise SpecError(
                f"'{address}' is IPv{address.version}, which -{versions[0]} rules out; "
                f"leave out -{versions[0]}, or write an IPv{versions[0]} address"
            )


class _Leads(NamedTuple):
    """What is known of a port that has no number yet."""

    target: Address | None
    port: int  # the target's
    required: bool


def _lay_together(
    specs: Sequence[Spec],
    group_key: GroupKey,
    ephemeral: tuple[int, int],
    versions: Sequence[int],
    first: int,
) -> Layout:
    direction, protocol = group_key
    excluded = {port for spec in specs for ports in spec.excluded for port in ports}
    groups: dict[Listen, list[Entry]] = {}
    watched: dict[Listen, list[Entry]] = {}
    for spec in specs:
        listen = _narrow(spec.listen, versions)
        group = (watched if spec.auto else groups).setdefault(listen, [])
        entries = spec.entries or ((ALL,) if _stands_alone(spec, specs, versions) else ())
        group += entries
    asked = [entry for group in (*groups.values(), *watched.values()) for entry in group]
    everything = []
    if any(entry.ports is None for entry in asked):
        everything = [
            port
            for port in range(1, LAST_PORT + 1)
            if not ephemeral[0] <= port <= ephemeral[1] and port not in excluded
        ]
    loopback = LOOPBACKS[versions[0]] if len(versions) == 1 else None
    free = _take_free(groups, loopback)
    if free and (
        lost := [port for port in range(ephemeral[0], ephemeral[1] + 1) if port in excluded]
    ):
        reason = f"~{lost[0]} excludes what port 0 may come to be; leave out one of the two"
        raise SpecError(reason)
    tables = {}
    for listen, group in groups.items():
        table = _named(listen, group, excluded, loopback)
        _add_all(table, listen, group, everything, loopback)
        tables[listen] = table
    for one, other in combinations(tables, 2):
        if meet(one, other):
            _settle(one, tables[one], other, tables[other])
    numbers = itertools.count(first)
    forwards = [
        Forward(
            direction, listen.address, listen.interface, port, leads.target, leads.port,
            leads.required, protocol, id=next(numbers),
        )
        for listen, table in tables.items()
        for port, leads in sorted(table.items())
    ]  # fmt: skip
    # Last, so that no free one is a port that another entry names.
    forwards += [
        Forward(
            direction, listen.address, listen.interface, 0, leads.target, leads.port,
            leads.required, protocol, origin=Origin.FREE, id=next(numbers),
        )
        for listen, leads in free
    ]  # fmt: skip
    return Layout(
        forwards,
        [
            _watch(group_key, listen, group, excluded, everything, loopback)
            for listen, group in watched.items()
        ],
    )


def _take_free(
    groups: Mapping[Listen, list[Entry]], loopback: Address | None
) -> list[tuple[Listen, _Leads]]:
    """Take the entries that ask for free ports out of their groups: each is a listener apart."""
    free = []
    for listen, group in groups.items():
        for entry in [one for one in group if one.ports == FREE]:
            group.remove(entry)
            target = entry.target if entry.target is not None else loopback
            free.append((listen, _Leads(target, entry.shift, required=True)))
    return free


def _watch(
    group_key: GroupKey,
    listen: Listen,
    group: Sequence[Entry],
    excluded: set[int],
    everything: Sequence[int],
    loopback: Address | None,
) -> Auto:
    """What `auto` comes to at one listening address."""
    targets = {}
    if any(entry.ports is None for entry in group):
        targets = dict(zip(everything, everything, strict=True))
    for port, leads in _named(listen, group, excluded, loopback).items():
        targets[port] = leads.port
    direction, protocol = group_key
    return Auto(direction, listen.address, listen.interface, loopback, _runs(targets), protocol)


def _runs(targets: Mapping[int, int]) -> tuple[tuple[range, int], ...]:
    """Ports and their targets' ports as runs with one shift each."""
    firsts = [port for port in sorted(targets) if targets.get(port - 1) != targets[port] - 1]
    runs = []
    for first in firsts:
        last, shift = first, targets[first] - first
        while targets.get(last + 1) == last + 1 + shift:
            last += 1
        runs.append((range(first, last + 1), shift))
    return tuple(runs)


def _narrow(listen: Listen, versions: Sequence[int]) -> Listen:
    if listen.address is None and len(versions) == 1:
        return Listen(_WILDCARDS[versions[0]], listen.interface)
    return listen


def _stands_alone(spec: Spec, specs: Iterable[Spec], versions: Sequence[int]) -> bool:
    """Whether exclusions mean "all others", or only narrow what other SPECs ask for.

    Ports in one SPEC and an exclusion in a second one aren't meant to open all others.
    So without a listening address exclusions are a request of their own only where no SPEC names
    a port, and with one where none does at that address.
    """
    listen = _narrow(spec.listen, versions)
    return not any(
        other.entries and (spec.listen == ANYWHERE or _narrow(other.listen, versions) == listen)
        for other in specs
    )


def _named(
    listen: Listen,
    group: Iterable[Entry],
    excluded: set[int],
    loopback: Address | None,
) -> dict[int, _Leads]:
    """The ports that are given by number, each with one target."""
    table: dict[int, _Leads] = {}
    for entry in group:
        target = entry.target if entry.target is not None else loopback
        for port in entry.ports or ():
            if port in excluded:
                continue
            leads = _Leads(target, port + entry.shift, required=True)
            present = table.setdefault(port, leads)
            if present != leads:
                reason = (
                    f"port {port} on {listen} would have two targets, {_target(present)} "
                    f"and {_target(leads)}; leave out one"
                )
                raise SpecError(reason)
    return table


def _add_all(
    table: dict[int, _Leads],
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
            raise SpecError(reason)
    if first is None:
        return
    target = first.target if first.target is not None else loopback
    for port in everything:
        if port not in table:
            table[port] = _Leads(target, port, required=False)


def _settle(
    one: Listen,
    one_table: dict[int, _Leads],
    other: Listen,
    other_table: dict[int, _Leads],
) -> None:
    """Where two listening addresses overlap, let a port given by number win over `all`'s."""
    for port in sorted(one_table.keys() & other_table.keys()):
        required = (one_table[port].required, other_table[port].required)
        if required == (True, True):
            reason = f"port {port} is wanted on {one} and on {other}, which overlap; leave out one"
            raise SpecError(reason)
        if required == (True, False):
            del other_table[port]
        elif required == (False, True):
            del one_table[port]


def _target(leads: _Leads) -> str:
    return f"{leads.target or 'loopback'} port {leads.port}"
