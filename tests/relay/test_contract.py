# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract over every way there is: plain TCP first, as its oracle, then through hardsplice.

All ways run all the cases but the long ones, which watch for idleness or move much; they look at
the same engine whatever the way, so two ways, which differ in everything, run them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from tests.relay import contract, contract_breaks, contract_urgent
from tests.support.paths import DIRECT, SPLICED, Path

_ALL = ("direct-ipv4", "inbound-ipv4-root", "outbound-ipv6-user")


def _runs() -> list[tuple[str, str]]:
    return [
        (way, name)
        for way in (*DIRECT, *SPLICED)
        for name in contract.CASES
        if way in _ALL or name not in contract.LONG
    ]


@pytest.mark.parametrize(("way", "name"), _runs())
def test_contract(ways: Callable[[str], Path], way: str, name: str) -> None:
    """Each case holds, and connections after it carry their own bytes only."""
    with ways(way).lane() as lane:
        contract.CASES[name](lane)
        contract.successors(lane)


@pytest.mark.parametrize("part", [contract, contract_breaks, contract_urgent])
def test_each_part_has_entered_its_cases(part: ModuleType) -> None:
    """Which they do when they are imported."""
    assert part.__name__ in {run.__module__ for run in contract.CASES.values()}
