# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract over every way there is: UDP itself first, as its oracle, then through hardsplice.

All ways run all the cases but the long ones, which watch for idleness; two ways, which differ in
everything, run them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from tests.conftest import identity_named
from tests.relay_udp import contract, contract_absence, contract_bound, contract_segments
from tests.support.datagram_paths import DIRECT, SPLICED, Direct, Path, Service, Spliced
from tests.support.product import Program

PARTS = (contract, contract_absence, contract_bound, contract_segments)
_ALL = ("direct-ipv4", "inbound-ipv4-root", "outbound-dual6-user")


@pytest.fixture(scope="module")
def ways(program: Program) -> Iterator[Callable[[str], Path]]:
    """The ways of support/datagram_paths.py by name, each made when it is first asked for."""
    services: dict[tuple[str, bool], Service] = {}
    direct: dict[str, Direct] = {}

    def way(name: str) -> Path:
        start, kind, *who = name.split("-")
        if start == "direct":
            if name not in direct:
                direct[name] = Direct(kind, identity_named("user"))
            return direct[name]
        which = who[0], kind.startswith("frag")
        if which not in services:
            services[which] = Service(program, identity_named(who[0]), ethernet=which[1])
        return Spliced(services[which], kind, inbound=start == "inbound")

    yield way
    for service in services.values():
        service.close()
    for oracle in direct.values():
        oracle.close()


def _belongs(way: str, name: str) -> bool:
    """Whether a case says something of its own on this way."""
    run = contract.CASES[name]
    if name in contract.LONG:
        return way in _ALL
    if "-dual" in way:  # who is answered from where; segments are those of ipv4 and ipv6
        return run.__module__ != contract_segments.__name__
    if "-frag" in way:
        return run.__module__ == contract_segments.__name__ or name in contract.SIZES
    return name not in contract.WILDCARD


def _runs() -> list[tuple[str, str]]:
    return [
        (way, name) for way in (*DIRECT, *SPLICED) for name in contract.CASES if _belongs(way, name)
    ]


@pytest.mark.parametrize(("way", "name"), _runs())
def test_contract(ways: Callable[[str], Path], way: str, name: str) -> None:
    """Each case holds, and clients after it get their own answers only. Long ones watch for
    idleness, which the end of an earlier case's flow would disturb half a minute later.
    """
    with ways(way).lane(fresh=name in contract.LONG) as lane:
        contract.CASES[name](lane)
        contract.successors(lane)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_has_entered_its_cases(part: ModuleType) -> None:
    """Which they do when they are imported."""
    assert part.__name__ in {run.__module__ for run in contract.CASES.values()}
