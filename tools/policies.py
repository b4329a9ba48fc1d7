# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of hardsplice/sandbox/policy/rules.py, from the files of policies."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.sandbox.policy.files import load_policy, policy_directory
from hardsplice.sandbox.policy.model import Policy, Rule

_WIDTH = 100 - 4  # of a line, less the table's margin
_ALL = len(ARCHITECTURES)


def table() -> list[str]:
    """A line or more for each rule of each file."""
    return [line for path in sorted(policy_directory().glob("*.toml")) for line in _file(path.stem)]


def _file(role: str) -> Iterator[str]:
    policy = load_policy(role)
    include, capabilities = (" ".join(names) for names in (policy.include, policy.capabilities))
    words = [_words(some) for some in _own_words(policy)]
    rules = [line for rule in policy.rules if rule.role == role for line in _rule(rule)]
    yield f'"{role}": ('
    yield from _literal(include, "    ")
    yield from _joined("    ", [f'"{capabilities}",', *words])
    yield from ["    (", *rules, "    ),"] if rules else ["    (),"]
    yield "),"


def _own_words(policy: Policy) -> Iterator[dict[str, int]]:
    """Its words, without those that it has by including others."""
    for kind in ("descriptors", "addresses"):
        theirs: dict[str, int] = {}
        for name in policy.include:
            theirs |= getattr(load_policy(name), kind)
        ours = dict(getattr(policy, kind))
        yield {name: number for name, number in ours.items() if name not in theirs}


def _words(words: dict[str, int]) -> str:
    return "{" + ", ".join(f'"{name}": {number:#x}' for name, number in words.items()) + "},"


def _rule(rule: Rule) -> Iterator[str]:
    only = " ".join(sorted(rule.architectures)) if len(rule.architectures) < _ALL else ""
    begin = f'        ("{rule.call}", {rule.notify}, "{only}", ('
    ways = [" and ".join(map(str, way)) for way in rule.when]
    whole = begin + " ".join(f'"{way}",' for way in ways) + ")),"
    if len(whole) <= _WIDTH:
        yield whole
        return
    *lines, last = (line for way in ways for line in _literal(way, "            "))
    yield from [begin, *lines, f"{last})),"]


def _literal(text: str, margin: str) -> Iterator[str]:
    """One text, in as many literals as it takes."""
    lines = textwrap.wrap(text, _WIDTH - len(margin) - 9, break_on_hyphens=False) or [""]
    literals = [*(f'"{line} "' for line in lines[:-1]), f'"{lines[-1]}"']
    if len(literals) > 1:
        literals[0], literals[-1] = f"({literals[0]}", f"{literals[-1]})"
    literals[-1] += ","
    yield from (margin + one for one in literals)


def _joined(margin: str, parts: list[str]) -> list[str]:
    """Python in as few lines as there is room in, each with the margin."""
    text = " ".join(parts)
    wrapped = textwrap.wrap(text, _WIDTH - len(margin), break_on_hyphens=False)
    return [margin + line for line in wrapped]
