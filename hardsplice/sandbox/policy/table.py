# SPDX-License-Identifier: GPL-2.0-or-later
"""Policies as a start reads them: what a filter depends on, without what is written for readers.
It is made from the files of policies (make generate), which take far longer to read and to check.
"""

from __future__ import annotations

from functools import cache
from types import MappingProxyType

from hardsplice.kernel.hints import cast
from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.sandbox.policy.model import Condition, Operator, Policy, Rule
from hardsplice.sandbox.policy.rules import FILES, Line

__all__ = ["policy_of"]

_EVERY = frozenset(ARCHITECTURES)


def policy_of(role: str) -> Policy:
    """The policy of a role. Its texts are empty; all else is as its file has it."""
    include, capabilities, own_descriptors, own_addresses, _ = FILES[role]
    descriptors, addresses = {**own_descriptors}, {**own_addresses}
    rules = [*_rules(role)]
    for name in include.split():
        _, _, more_descriptors, more_addresses, _ = FILES[name]
        descriptors |= more_descriptors
        addresses |= more_addresses
        rules += _rules(name)
    return Policy(
        role=role,
        summary="",
        capabilities=tuple(capabilities.split()),
        descriptors=MappingProxyType(descriptors),
        addresses=MappingProxyType(addresses),
        include=tuple(include.split()),
        notes=MappingProxyType({}),
        rules=tuple(rules),
    )


@cache
def _rules(role: str) -> tuple[Rule, ...]:
    """Those of one file. Kept, since more than one policy includes it."""
    *_, lines = FILES[role]
    return tuple(_rule(role, line) for line in lines)


def _rule(role: str, line: Line) -> Rule:
    call, notify, only, ways = line
    return Rule(
        call=call,
        when=tuple(tuple(map(_condition, way.split(" and "))) for way in ways),
        why="",
        where=(),
        source=None,
        risk=None,
        architectures=frozenset(only.split()) if only else _EVERY,
        role=role,
        notify=notify,
    )


def _condition(text: str) -> Condition:
    """The condition that str() makes this of."""
    parameter, *masked, operator, value = text.split(" ")
    mask = tuple(masked[1].split("|")) if masked else ()
    return Condition(parameter, mask, cast("Operator", operator), tuple(value.split("|")))
