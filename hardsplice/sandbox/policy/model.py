# SPDX-License-Identifier: GPL-2.0-or-later
"""A policy once it is read, and its meaning in numbers on an architecture. Pure.

sandbox/policy/format.py has its written form; sandbox/seccomp.py and sandbox/policy/prelude.py turn
it into a filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from hardsplice.kernel.hints import Literal
from hardsplice.kernel.record import NamedTuple
from hardsplice.kernel.syscalls import INTS, constant, parameters

__all__ = [
    "Alternatives",
    "Comparison",
    "Condition",
    "MistakeError",
    "Operator",
    "Policy",
    "Rule",
    "comparisons",
    "notified",
    "resolve",
    "without_texts",
]

Operator = Literal["==", ">=", "<"]


class MistakeError(Exception):
    """An error in a policy; parse_policy adds which policy it is."""


class Condition(NamedTuple):
    """`parameter == value`, with a mask `parameter & mask == value`, or `parameter >= value` and
    `parameter < value`; symbolic, as written.
    """

    parameter: str
    mask: tuple[str, ...]  # names joined by |; empty for all bits
    operator: Operator
    value: tuple[str, ...]

    def __str__(self) -> str:
        mask = f" & {'|'.join(self.mask)}" if self.mask else ""
        return f"{self.parameter}{mask} {self.operator} {'|'.join(self.value)}"


class Rule(NamedTuple):
    """One system call that a role may make, on some architectures, in one of some ways."""

    call: str
    when: tuple[tuple[Condition, ...], ...]  # alternatives; each holds when all its conditions do
    why: str
    where: tuple[str, ...]  # dotted names of functions, or OUTSIDE
    source: str | None  # for OUTSIDE: what in there makes the call
    risk: str | None
    architectures: frozenset[str]
    role: str  # the policy that the rule was written in
    notify: bool = False  # not the kernel serves the call but the monitor (seccomp_unotify(2))

    def condition(self) -> str:
        """The conditions as text; empty when there are none."""
        return " or ".join(" and ".join(map(str, alternative)) for alternative in self.when)


class Policy(NamedTuple):
    """What one role may do."""

    role: str
    summary: str
    capabilities: tuple[str, ...]  # kept after lock-down; as a rule none
    descriptors: Mapping[str, int]  # file descriptors with a fixed number
    addresses: Mapping[str, int]  # of memory with a fixed place, and masks for them
    include: tuple[str, ...]
    notes: Mapping[str, str]  # by architecture: what a reader has to know
    rules: tuple[Rule, ...]  # those of the included policies come last

    def rules_for(self, arch: str) -> tuple[Rule, ...]:
        """The rules that apply on an architecture."""
        return tuple(rule for rule in self.rules if arch in rule.architectures)

    @property
    def words(self) -> dict[str, int]:
        """What its own words mean, besides the constants that every policy has."""
        return {**self.descriptors, **self.addresses}

    def settled(self, words: Mapping[str, int]) -> Policy:
        """The policy with other numbers for some of its words: those that set-up decides."""
        return self._replace(
            descriptors={name: words.get(name, n) for name, n in self.descriptors.items()},
            addresses={name: words.get(name, n) for name, n in self.addresses.items()},
        )


def without_texts(policy: Policy) -> Policy:
    """What a filter depends on."""
    rules = tuple(rule._replace(why="", where=(), source=None, risk=None) for rule in policy.rules)
    return policy._replace(summary="", notes=MappingProxyType({}), rules=rules)


class Comparison(NamedTuple):
    """A condition in numbers: `args[argument] & mask == value`, or another operator in the place of
    ``==``; no mask means all bits.
    """

    argument: int
    mask: int | None
    value: int
    operator: Operator = "=="
    is_int: bool = False  # the kernel takes the low 32 bits and no more


Alternatives = tuple[tuple[Comparison, ...], ...]


def resolve(policy: Policy, arch: str) -> dict[str, Alternatives]:
    """What the policy allows on an architecture, in numbers: by call, the ways to make it.

    A call that may be made in any way has one alternative without comparisons.
    """
    allowed: dict[str, Alternatives] = {}
    for rule in policy.rules_for(arch):
        ways: Alternatives = tuple(
            comparisons(rule.call, alternative, policy.words, arch)
            for alternative in rule.when or ((),)
        )
        together = (*allowed.get(rule.call, ()), *ways)
        allowed[rule.call] = ((),) if () in together else tuple(dict.fromkeys(together))
    return allowed


def notified(policy: Policy, arch: str) -> frozenset[str]:
    """The calls that the monitor serves, instead of the kernel."""
    return frozenset(rule.call for rule in policy.rules_for(arch) if rule.notify)


def comparisons(
    call: str, alternative: Iterable[Condition], words: Mapping[str, int], arch: str
) -> tuple[Comparison, ...]:
    names = parameters(call, arch)
    found: list[Comparison] = []
    for condition in alternative:
        if condition.parameter not in names:
            has = f"has {', '.join(names)}" if names else "is not in hardsplice/kernel/syscalls.py"
            raise MistakeError(f"no parameter {condition.parameter}: {call} {has}")
        index = names.index(condition.parameter)
        value = _number(condition.value, words, arch)
        mask = _number(condition.mask, words, arch) if condition.mask else None
        if mask is not None and value & ~mask:
            raise MistakeError(f"`{condition}` can't hold: the value has bits that the mask lacks")
        if any((other.argument, other.operator) == (index, condition.operator)
               for other in found):  # fmt: skip
            raise MistakeError(f"{condition.parameter} is compared twice")
        is_int = condition.operator != "==" and condition.parameter in INTS
        found.append(Comparison(index, mask, value, condition.operator, is_int))
    return tuple(sorted(found, key=lambda item: item.argument))


def _number(names: Iterable[str], words: Mapping[str, int], arch: str) -> int:
    number = 0
    for name in names:
        if name.isdigit():
            number |= int(name)
        elif name in words:
            number |= words[name]
        else:
            number |= constant(name, arch)
    return number
