# SPDX-License-Identifier: GPL-2.0-or-later
"""The form of a policy file: parsing and checking. No input or output.

The form is described in policy/README.md. It is strict: an unknown key, an unknown constant, a rule
without a reason or a condition that can't hold is an error that names the rule, so a policy that
loads means what it says.
"""

from __future__ import annotations

import re
import types
from functools import cache

from hardsplice.kernel.hints import TYPE_CHECKING, Any, cast
from hardsplice.kernel.syscalls import ARCHITECTURES, CAPABILITIES, CONSTANTS, RISKY, differ
from hardsplice.model.errors import HardspliceError
from hardsplice.sandbox.policy.model import (
    Condition,
    MistakeError,
    Operator,
    Policy,
    Rule,
    comparisons,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["OUTSIDE", "parse_policy"]

# What needs a call when no function of hardsplice does: the rule then names its `source`.
OUTSIDE = ("libc", "interpreter")

_FUNCTION = re.compile(r"hardsplice(\.[A-Za-z_]\w*)+")
_CALL = re.compile(r"[a-z_][a-z0-9_]*")
_VALUE = r"[A-Z0-9_]+(?:\s*\|\s*[A-Z0-9_]+)*"
_CONDITION = re.compile(
    rf"(?P<parameter>[a-z_0-9]+)(?:\s*&\s*(?P<mask>{_VALUE})\s*(?===))?\s*"
    rf"(?P<operator>==|>=|<)\s*(?P<value>{_VALUE})"
)


def parse_policy(text: str, role: str, read: Callable[[str], str]) -> Policy:
    """The policy that ``text`` is, with the rules that it includes; ``read`` gives another's text.

    Includes have one level: a policy names all the files that its rules come from.
    """
    own = _parse_file(text, role)
    others = [_parse_file(read(name), name) for name in own.include]
    try:
        return _join(own, others)
    except MistakeError as error:
        raise _policy_error(role, error) from None


def _policy_error(role: str, error: Exception) -> HardspliceError:
    return HardspliceError("load", f"the policy {role}.toml", str(error))


@cache
def _parse_file(text: str, role: str) -> Policy:
    """A policy with its own rules only. Kept, since more than one policy includes it."""
    import tomllib

    try:
        return _policy(tomllib.loads(text), role)
    except (MistakeError, tomllib.TOMLDecodeError) as error:
        raise _policy_error(role, error) from None


def _join(own: Policy, others: Sequence[Policy]) -> Policy:
    descriptors, addresses = dict(own.descriptors), dict(own.addresses)
    for other in others:
        for name in other.include:
            if name not in own.include:
                raise MistakeError(f"include: {other.role}.toml needs {name}.toml: name it too")
        for kind, ours, theirs in (
            ("descriptors", descriptors, other.descriptors),
            ("addresses", addresses, other.addresses),
        ):
            for name, number in theirs.items():
                if ours.setdefault(name, number) != number:
                    raise MistakeError(f"{kind}: {name} is {number} in {other.role}.toml")
        for rule in other.rules:
            _no_repetition(own.rules, rule)
    notes: dict[str, str] = {}
    for policy in (own, *others):
        for arch, note in policy.notes.items():
            notes[arch] = f"{notes[arch]} {note}" if arch in notes else note
    return own._replace(
        notes=types.MappingProxyType(notes),
        descriptors=types.MappingProxyType(descriptors),
        addresses=types.MappingProxyType(addresses),
        rules=(*own.rules, *(rule for other in others for rule in other.rules)),
    )


def _policy(table: dict[str, Any], role: str) -> Policy:
    known = {
        *("role", "summary", "capabilities", "descriptors", "addresses", "include", "rule"),
        *ARCHITECTURES,
    }
    _no_others(table, known, "policy")
    if table.get("role") != role:
        raise MistakeError(f"role: should be {role!r}, the name of the file")
    descriptors = dict(_numbers(table, "descriptors"))
    addresses = dict(_numbers(table, "addresses"))
    words = {**descriptors, **addresses}
    rules = list(_rules(table, "rule", frozenset(ARCHITECTURES), role, words))
    notes = {}
    for arch in ARCHITECTURES:
        section = _table(table, arch)
        _no_others(section, {"note", "rule"}, f"[{arch}]")
        if "note" in section:
            notes[arch] = _text(section, "note", f"[{arch}]")
        rules += _rules(section, f"{arch}.rule", frozenset({arch}), role, words)
    if not rules and not table.get("include"):
        raise MistakeError("there is neither a [[rule]] nor an include")
    _no_duplicates(rules)
    return Policy(
        role=role,
        summary=_text(table, "summary", "policy"),
        capabilities=_capabilities(table),
        descriptors=types.MappingProxyType(descriptors),
        addresses=types.MappingProxyType(addresses),
        include=_strings(table, "include"),
        notes=types.MappingProxyType(notes),
        rules=tuple(rules),
    )


def _rules(
    table: Mapping[str, Any],
    title: str,
    architectures: frozenset[str],
    role: str,
    words: Mapping[str, int],
) -> Iterable[Rule]:
    entries = table.get("rule", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise MistakeError(f"rules are written as [[{title}]]")
    for number, entry in enumerate(entries, 1):
        location = f"[[{title}]] number {number}"
        call = _text(entry, "call", location)
        location += f" ({call})"
        if not _CALL.fullmatch(call):
            raise MistakeError(f"{location}: call: not the name of a system call")
        known = {"call", "when", "why", "where", "source", "risk", "notify"}
        _no_others(entry, known | ({"except"} if len(architectures) > 1 else set()), location)
        rule = Rule(
            call=call,
            when=tuple(_alternative(text, location) for text in _strings(entry, "when", location)),
            why=_text(entry, "why", location),
            where=_where(entry, location),
            source=_text(entry, "source", location) if "source" in entry else None,
            risk=_text(entry, "risk", location) if "risk" in entry else None,
            architectures=architectures - _excepted(entry, location),
            role=role,
            notify=_is_notified(entry, location),
        )
        _check_rule(rule, words, location)
        yield rule


def _is_notified(entry: Mapping[str, Any], location: str) -> bool:
    value = entry.get("notify", False)
    if not isinstance(value, bool):
        raise MistakeError(f"{location}: notify: neither true nor false")
    return value


def _check_rule(rule: Rule, words: Mapping[str, int], location: str) -> None:
    """What can be said about a rule without libseccomp."""
    if any(name in OUTSIDE for name in rule.where) != (rule.source is not None):
        raise MistakeError(
            f"{location}: source: goes with where = {' or '.join(OUTSIDE)}, and only with it"
        )
    if rule.call in RISKY and rule.risk is None:
        raise MistakeError(
            f"{location}: risk: missing; say what a taken-over process could do with {rule.call}"
        )
    for alternative in rule.when:
        names = [name for item in alternative for name in (*item.mask, *item.value)]
        for name in names:
            if not (name.isdigit() or name in CONSTANTS or name in words):
                raise MistakeError(
                    f"{location}: when: unknown constant {name} (hardsplice/kernel/syscalls.py)"
                )
        checked = sorted(rule.architectures)
        for arch in checked if differ(rule.call, names) else checked[:1]:
            try:
                comparisons(rule.call, alternative, words, arch)
            except MistakeError as mistake:
                raise MistakeError(f"{location}: when: {mistake}") from None


def _alternative(text: str, location: str) -> tuple[Condition, ...]:
    conditions = []
    for part in re.split(r"\s+and\s+", text.strip()):
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise MistakeError(
                f"{location}: when: can't read {part!r}; write `parameter == A|B`,"
                " `parameter & MASK == A`, `parameter >= A` or `parameter < A`, joined with `and`"
            )
        names = {
            key: re.split(r"\s*\|\s*", match[key]) if match[key] else []
            for key in ("mask", "value")
        }
        operator = cast("Operator", match["operator"])
        conditions.append(
            Condition(match["parameter"], tuple(names["mask"]), operator, tuple(names["value"]))
        )
    return tuple(conditions)


def _where(entry: Mapping[str, Any], location: str) -> tuple[str, ...]:
    names = _strings(entry, "where", location)
    if not names:
        raise MistakeError(f"{location}: where: missing")
    for name in names:
        if name not in OUTSIDE and not _FUNCTION.fullmatch(name):
            raise MistakeError(
                f"{location}: where: {name!r} is neither {' nor '.join(OUTSIDE)}"
                " nor the dotted name of a function"
            )
    return names


def _excepted(entry: Mapping[str, Any], location: str) -> frozenset[str]:
    names = _strings(entry, "except", location)
    for name in names:
        if name not in ARCHITECTURES:
            raise MistakeError(f"{location}: except: unknown architecture {name!r}")
    if len(set(names)) in (0, len(ARCHITECTURES)) and "except" in entry:
        raise MistakeError(f"{location}: except: names none or all of the architectures")
    return frozenset(names)


def _numbers(table: Mapping[str, Any], kind: str) -> Iterable[tuple[str, int]]:
    """The words of the section ``kind``, each with its number."""
    one = {"descriptors": "a descriptor", "addresses": "an address"}[kind]
    for name, number in _table(table, kind).items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 64:
            raise MistakeError(f"{kind}: {name} is not {one}'s number")
        if name in CONSTANTS or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            raise MistakeError(f"{kind}: {name} can't be the name of {one}")
        yield name, number


def _capabilities(table: Mapping[str, Any]) -> tuple[str, ...]:
    if "capabilities" not in table:
        raise MistakeError("capabilities: missing; write [] for none")
    names = _strings(table, "capabilities")
    for name in names:
        if name not in CAPABILITIES:
            raise MistakeError(f"capabilities: unknown capability {name!r}")
    if len(names) > 1:
        raise MistakeError("capabilities: a process may keep one at most")
    return names


def _no_duplicates(rules: Sequence[Rule]) -> None:
    """Refuse two rules of one file that say the same, and one that makes another pointless."""
    for index, rule in enumerate(rules):
        ways = set(map(frozenset, rule.when))
        if len(ways) < len(rule.when):
            raise MistakeError(f"the rule for {rule.call} has one condition twice")
        for other in rules[:index]:
            if not rule.when and other.call == rule.call and _overlap(rule, other):
                raise MistakeError(f"two rules for {rule.call}, one of them without a condition")
        _no_repetition(rules[:index], rule)


def _no_repetition(rules: Iterable[Rule], other: Rule) -> None:
    """Refuse rules that add nothing to another one."""
    for rule in rules:
        if rule.call != other.call or not _overlap(rule, other):
            continue
        if not other.when:
            raise MistakeError(
                f"two rules for {rule.call}, the one in {other.role}.toml without a condition"
            )
        if set(map(frozenset, rule.when)) & set(map(frozenset, other.when)):
            raise MistakeError(
                f"two rules for {rule.call} with the same condition ({other.role}.toml)"
            )


def _overlap(rule: Rule, other: Rule) -> bool:
    return bool(rule.architectures & other.architectures)


def _no_others(table: Mapping[str, Any], known: set[str], location: str) -> None:
    for key in table:
        if key not in known:
            raise MistakeError(f"{location}: unknown key {key!r}")


def _text(table: Mapping[str, Any], key: str, location: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip():
        raise MistakeError(
            f"{location}: {key}: missing" if value is None else f"{location}: {key}: not a text"
        )
    return " ".join(value.split())


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise MistakeError(f"{key}: not a table")
    return value


def _strings(table: Mapping[str, Any], key: str, location: str = "policy") -> tuple[str, ...]:
    """A list of texts; a single text stands for a list of one."""
    value = table.get(key, [])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise MistakeError(f"{location}: {key}: neither a text nor a list of texts")
    return tuple(values)
