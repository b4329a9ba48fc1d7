# SPDX-License-Identifier: GPL-2.0-or-later
"""Which ports are forwarded to which: all SPECs of one option, turned into listeners.

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

from hardsplice.model.errors import Failure, quote
from hardsplice.model.forward import LOOPBACKS, Auto, Forward, meet
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
    Refusal,
    Spec,
    read,
    read_inherited,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Layout", "lay_out", "parse", "parse_inherited", "single"]

_WILDCARDS: dict[int, Address] = {4: IPv4Address("0.0.0.0"), 6: IPv6Address("::")}


@dataclass(frozen=True, slots=True)
class Layout:
    """What all SPECs of one option ask for together."""

    forwards: list[Forward]
    autos: list[Auto]


def parse(
    specs: Sequence[str],
    *,
    ephemeral: tuple[int, int],
    option: str,
    families: Sequence[int] = (4, 6),
) -> list[Forward]:
    """As `lay_out`, for SPECs that name their ports: `auto` is a Failure."""
    layout = lay_out(specs, ephemeral=ephemeral, option=option, families=families)
    if layout.autos:
        reason = "'auto' can't be asked for here; name the ports"
        raise Failure("parse", option, reason)
    return layout.forwards


def lay_out(
    specs: Sequence[str],
    *,
    ephemeral: tuple[int, int],
    option: str,
    families: Sequence[int] = (4, 6),
) -> Layout:
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
        return Layout([], [])
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


def single(
    listen: Listen,
    port: int,
    target: Address | None,
    target_port: int,
    *,
    versions: Sequence[int],
    families: Sequence[int],
    protocol: Protocol = Protocol.TCP,
) -> Forward:
    """The listener for a single request at run time.

    `versions` are those of IP that it is to have, `families` those in use. Raises Refusal.
    """
    _check_addresses((listen.address, target), families)
    if listen.address is not None and listen.address.version not in versions:
        raise Refusal(f"'{listen.address}' is not IPv{versions[0]}")
    listen = _narrow(listen, versions)
    if target is None and len(families) == 1:
        target = LOOPBACKS[families[0]]
    return Forward(listen.address, listen.interface, port, target, target_port, True, protocol)


def parse_inherited(
    specs: Sequence[str], *, option: str, families: Sequence[int] = (4, 6)
) -> list[Inherited]:
    """What the SPECs of an option ask for that take passed listeners. Raises Failure."""
    read_ones = []
    for text in specs:
        try:
            one = read_inherited(text)
            _check_addresses((one.target,), families)
        except Refusal as refusal:
            raise Failure("parse", f"{option} {quote(text)}", str(refusal)) from None
        read_ones.append(one)
    named = [name for one in read_ones for name in one.names]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        reason = "two of them want it; leave out one"
        raise Failure("combine", f"{option} inherit:{twice} with itself", reason)
    if sum(not one.names for one in read_ones) > 1:
        reason = "each takes all that no other one names; leave out all but one"
        raise Failure("combine", f"several {option} inherit without a name", reason)
    return read_ones


def _check_families(spec: Spec, families: Sequence[int]) -> None:
    addresses = (spec.listen.address, *(entry.target for entry in spec.entries))
    _check_addresses(addresses, families)


def _check_addresses(addresses: Iterable[Address | None], families: Sequence[int]) -> None:
    for address in addresses:
        if address is not None and address.version not in families:
            raise Refusal(
                f"'{address}' is IPv{address.version}, which -{families[0]} rules out; "
                f"leave out -{families[0]}, or write an IPv{families[0]} address"
            )


def _lay_together(
    specs: Sequence[Spec], ephemeral: tuple[int, int], families: Sequence[int]
) -> Layout:
    excluded = {port for spec in specs for ports in spec.excluded for port in ports}
    groups: dict[Listen, list[Entry]] = {}
    watched: dict[Listen, list[Entry]] = {}
    for spec in specs:
        listen = _narrow(spec.listen, families)
        group = (watched if spec.auto else groups).setdefault(listen, [])
        entries = spec.entries or ((ALL,) if _stands_alone(spec, specs, families) else ())
        group += entries
    asked = [entry for group in (*groups.values(), *watched.values()) for entry in group]
    everything = []
    if any(entry.ports is None for entry in asked):
        everything = [
            port
            for port in range(1, LAST_PORT + 1)
            if not ephemeral[0] <= port <= ephemeral[1] and port not in excluded
        ]
    loopback = LOOPBACKS[families[0]] if len(families) == 1 else None
    free = _take_free(groups, loopback)
    if free and (
        lost := [port for port in range(ephemeral[0], ephemeral[1] + 1) if port in excluded]
    ):
        reason = f"~{lost[0]} excludes what port 0 may come to be; leave out one of the two"
        raise Refusal(reason)
    tables = {}
    for listen, group in groups.items():
        table = _named(listen, group, excluded, loopback)
        _add_all(table, listen, group, everything, loopback)
        tables[listen] = table
    for one, other in combinations(tables, 2):
        if meet(one, other):
            _settle(one, tables[one], other, tables[other])
    return Layout(
        # Last, so that no free one is a port that another entry names.
        [forward for table in tables.values() for _, forward in sorted(table.items())] + free,
        [
            _watch(listen, group, excluded, everything, loopback)
            for listen, group in watched.items()
        ],
    )


def _take_free(groups: Mapping[Listen, list[Entry]], loopback: Address | None) -> list[Forward]:
    """Take the entries that ask for free ports out of their groups: each is a listener apart."""
    free = []
    for listen, group in groups.items():
        for entry in [one for one in group if one.ports == FREE]:
            group.remove(entry)
            target = entry.target if entry.target is not None else loopback
            free.append(Forward(listen.address, listen.interface, 0, target, entry.shift, True))
    return free


def _watch(
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
    for port, forward in _named(listen, group, excluded, loopback).items():
        targets[port] = forward.target_port
    return Auto(listen.address, listen.interface, loopback, _runs(targets))


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


def _narrow(listen: Listen, families: Sequence[int]) -> Listen:
    if listen.address is None and len(families) == 1:
        return Listen(_WILDCARDS[families[0]], listen.interface)
    return listen


def _stands_alone(spec: Spec, specs: Iterable[Spec], families: Sequence[int]) -> bool:
    """Whether exclusions mean "all others", or only narrow what other SPECs ask for.

    Ports in one SPEC and an exclusion in a second one aren't meant to open all others.
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
