# SPDX-License-Identifier: GPL-2.0-or-later
"""Policies for people and other programs: rule by rule with its reasons, as a table, as an OCI
runtime's object, for systemd; and a check of all of them.
"""

from __future__ import annotations

import ast
import textwrap
from functools import cache
from pathlib import Path

from hardsplice.kernel.hints import TYPE_CHECKING, Any
from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.model.errors import HardspliceError
from hardsplice.model.roles import POLICIES
from hardsplice.sandbox.policy.files import load_policy, policy_directory
from hardsplice.sandbox.policy.format import OUTSIDE
from hardsplice.sandbox.policy.model import (
    Comparison,
    Policy,
    notified,
    resolve,
    without_texts,
)
from hardsplice.sandbox.policy.table import policy_of
from hardsplice.sandbox.seccomp import compile_policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PACKAGE = Path(__file__).resolve().parents[2]


def show(policy: Policy, arch: str) -> str:
    """Every rule with its reasons."""
    lines = [*_heading(policy, arch), ""]
    for rule in policy.rules_for(arch):
        served = ", by the monitor" if rule.notify else ""
        lines.append(f"{rule.call}: {rule.condition() or 'any arguments'}{served}")
        where = ", ".join(rule.where) + (f" ({rule.source})" if rule.source else "")
        for key, text in (("why", rule.why), ("where", where), ("risk", rule.risk)):
            if text:
                lines += textwrap.wrap(
                    text, 96, initial_indent=f"    {key:7}", subsequent_indent=" " * 11
                )
        if rule.role != policy.role:
            lines.append(f"    from   {rule.role}.toml")
        lines.append("")
    return "\n".join(lines)


def table(policy: Policy, arch: str) -> str:
    """One line for each way in which a call may be made."""
    rows = [("CALL", "ARGUMENTS", "WHY")]
    rows += [
        (rule.call, " and ".join(map(str, alternative)) or "any", rule.why)
        for rule in sorted(policy.rules_for(arch), key=lambda rule: rule.call)
        for alternative in rule.when or ((),)
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    body = [f"{call:{widths[0]}}  {when:{widths[1]}}  {why}" for call, when, why in rows]
    return "\n".join([*_heading(policy, arch), "", *body, ""])


def _heading(policy: Policy, arch: str) -> list[str]:
    facts = [policy.summary, "Everything else kills the process."]
    facts.append(f"Capabilities kept: {', '.join(policy.capabilities) or 'none'}.")
    if policy.descriptors:
        fixed = ", ".join(f"{name} = {value}" for name, value in policy.descriptors.items())
        facts.append(f"Descriptors: {fixed}.")
    if policy.addresses:
        places = ", ".join(f"{name} = {value:#x}" for name, value in policy.addresses.items())
        facts.append(f"Addresses: {places}.")
    if arch in policy.notes:
        facts.append(policy.notes[arch])
    body = textwrap.wrap(" ".join(facts), 96, initial_indent="# ", subsequent_indent="# ")
    return [f"# {policy.role} on {arch}", *body]


def oci(policy: Policy, arch: str) -> dict[str, Any]:
    """The linux.seccomp object of the OCI runtime specification (config-linux.md).

    It can't express the low half of an argument, two comparisons of one argument, or a call that
    the monitor serves.
    """
    free: list[str] = []
    entries: list[dict[str, Any]] = []
    by_monitor = notified(policy, arch)
    for call, alternatives in sorted(resolve(policy, arch).items()):
        if call in by_monitor:
            continue
        if () in alternatives:
            free.append(call)
            continue
        for alternative in alternatives:
            once = {item.argument: item for item in alternative}  # the last word on each argument
            args = [_oci_argument(item) for item in once.values()]
            entries.append({"names": [call], "action": "SCMP_ACT_ALLOW", "args": args})
    if free:
        entries.insert(0, {"names": free, "action": "SCMP_ACT_ALLOW"})
    return {
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "architectures": [ARCHITECTURES[arch].oci],
        "syscalls": entries,
    }


def _oci_argument(item: Comparison) -> dict[str, Any]:
    if item.mask is None:
        operator = {"==": "SCMP_CMP_EQ", ">=": "SCMP_CMP_GE", "<": "SCMP_CMP_LT"}[item.operator]
        return {"index": item.argument, "value": item.value, "op": operator}
    # For this operator `value` is the mask, and `valueTwo` what is left of the argument.
    return {
        "index": item.argument,
        "value": item.mask,
        "valueTwo": item.value,
        "op": "SCMP_CMP_MASKED_EQ",
    }


def systemd(policy: Policy, arch: str) -> str:
    """A drop-in's lines for systemd.exec(5)."""
    names = textwrap.wrap(" ".join(sorted(resolve(policy, arch))), 80)
    return "\n".join(
        [
            f"# {policy.role} on {arch}: names only. systemd can't check arguments, so this",
            "# allows more than hardsplice's own filter; and it adds execve, exit and the like.",
            f"SystemCallArchitectures={ARCHITECTURES[arch].systemd}",
            *(f"SystemCallFilter={line}" for line in names),
            "",
        ]
    )


# --- checking -------------------------------------------------------------------------------------


def missing_functions(policy: Policy) -> tuple[tuple[str, str], ...]:
    """Pairs of a call and a function that its rule names in `where` but that does not exist.

    Nothing is imported: the sources are parsed, as importing some modules has effects.
    """
    return tuple(
        (rule.call, name)
        for rule in policy.rules
        for name in rule.where
        if name not in OUTSIDE and not _is_function(name)
    )


def _is_function(dotted: str) -> bool:
    parts = dotted.split(".")[1:]
    for length in range(len(parts) - 1, 0, -1):
        path = _PACKAGE.joinpath(*parts[:length])
        for source in (path.with_suffix(".py"), path / "__init__.py"):
            if source.is_file():
                return ".".join(parts[length:]) in _functions(source)
    return False


@cache
def _functions(source: Path) -> frozenset[str]:
    """The qualified names of all functions and methods in a file."""
    return frozenset(_walk(ast.parse(source.read_text(encoding="utf-8")), ""))


def _walk(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name
        elif isinstance(child, ast.ClassDef):
            yield from _walk(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.If | ast.Try):
            yield from _walk(child, prefix)


def check(roles: Iterable[str] = POLICIES) -> tuple[list[str], list[str]]:
    """What was checked, a line a role, and what is wrong, a line a mistake."""
    good, bad = [], []
    used = set(POLICIES)
    for role in roles:
        try:
            policy = load_policy(role)
            used.update(policy.include)
            sizes = [len(compile_policy(policy, arch)) // 8 for arch in ARCHITECTURES]
        except HardspliceError as failure:
            bad.append(str(failure))
            continue
        if policy_of(role) != without_texts(policy):
            bad.append(f"{role}: a start reads another one: make generate")
        missing = missing_functions(policy)
        bad += [f"{role}: {call}: where: there is no {name}" for call, name in missing]
        good.append(
            f"{role}: {len(policy.rules)} rules, {min(sizes)} to {max(sizes)} instructions"
            f" on {len(ARCHITECTURES)} architectures"
        )
    for path in sorted(policy_directory().glob("*.toml")):
        if path.stem not in used and set(roles) == set(POLICIES):
            bad.append(f"{path.name}: neither a role nor included by one")
    return good, bad
