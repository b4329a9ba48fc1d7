# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m hardsplice.policy: show, check and export what each role may ask of the kernel.

    show    a policy as it applies to an architecture, rule by rule, with its reasons
    check   all policies: their form, their functions, and that they compile for all architectures
    export  a policy as a table (text), as raw BPF in the architecture's byte order (bpf), as the
            linux.seccomp object of an OCI runtime configuration (oci), or for systemd (systemd)

Results go to standard output, messages to standard error.
"""

from __future__ import annotations

from hardsplice import isolated

if __name__ == "__main__":
    isolated.begin("hardsplice.policy")  # before anything else is imported

import argparse
import ast
import json
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hardsplice import output
from hardsplice.book import TARGETS_A_PORT, place_for
from hardsplice.descriptors import FIRST_LISTENER
from hardsplice.errors import Failure, quote, tell
from hardsplice.policyfile import OUTSIDE
from hardsplice.policymodel import Comparison, Policy, asked, resolve
from hardsplice.seccomp import ROLES, compile_policy, load_policy, native_arch, policy_directory
from hardsplice.syscalls import ARCHITECTURES, DIRECT
from hardsplice.values import number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["check", "main", "missing_functions", "oci", "show", "systemd", "table"]

_PACKAGE = Path(__file__).resolve().parent


# --- the forms in which a policy is shown ---------------------------------------------------------


def show(policy: Policy, arch: str) -> str:
    """Every rule with its reasons."""
    lines = [*_heading(policy, arch), ""]
    for rule in policy.rules_for(arch):
        served = ", by the monitor" if rule.ask else ""
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

    It has no word for the low half of an argument, none for two looks at one argument, and none for
    a call that the monitor serves.
    """
    free: list[str] = []
    entries: list[dict[str, Any]] = []
    by_monitor = asked(policy, arch)
    for call, alternatives in sorted(resolve(policy, arch).items()):
        if call in by_monitor:
            continue
        if () in alternatives:
            free.append(call)
            continue
        for alternative in alternatives:
            once = {item.index: item for item in alternative}  # the last word on each argument
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
        return {"index": item.index, "value": item.value, "op": operator}
    # For this operator `value` is the mask, and `valueTwo` what is left of the argument.
    return {
        "index": item.index,
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


def check(roles: Iterable[str] = ROLES) -> tuple[list[str], list[str]]:
    """What was checked, a line a role, and what is wrong, a line a mistake."""
    good, bad = [], []
    used = set(ROLES)
    for role in roles:
        try:
            policy = load_policy(role)
            used.update(policy.include)
            sizes = [len(compile_policy(policy, arch)) // 8 for arch in ARCHITECTURES]
        except Failure as failure:
            bad.append(str(failure))
            continue
        missing = missing_functions(policy)
        bad += [f"{role}: {call}: where: there is no {name}" for call, name in missing]
        good.append(
            f"{role}: {len(policy.rules)} rules, {min(sizes)} to {max(sizes)} instructions"
            f" on {len(ARCHITECTURES)} architectures"
        )
    for path in sorted(policy_directory().glob("*.toml")):
        if path.stem not in used and set(roles) == set(ROLES):
            bad.append(f"{path.name}: neither a role nor included by one")
    return good, bad


# --- the command ----------------------------------------------------------------------------------


class _Parser(output.Parser):
    def error(self, message: str) -> NoReturn:
        raise Failure("understand", "the command line", message, f"try: {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m hardsplice.policy", description="Show, check and export seccomp policies."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="show|check|export")
    for name, text in (
        ("show", "a policy with its reasons"),
        ("check", "check policies"),
        ("export", "a policy in another form"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--role", choices=ROLES, required=name != "check")
        if name != "check":
            command.add_argument("--arch", choices=ARCHITECTURES, help="default: this machine's")
            command.add_argument(
                "--listeners",
                metavar="N",
                type=_listeners,
                help="as it is in force for so many listeners, behind which connections begin",
            )
        if name == "export":
            formats = ("text", "bpf", "oci", "systemd")
            command.add_argument("--format", choices=formats, default="text")
    return parser


def _listeners(text: str) -> int:
    value = number(text, 0, 1 << 20)
    if value is None:
        raise Failure("use", f"--listeners {quote(text)}", "it is no number of listeners")
    return value


def _check_command(role: str | None) -> int:
    good, bad = check([role] if role else ROLES)
    for line in good:
        print(line)
    for line in bad:
        print(f"hardsplice: {line}", file=sys.stderr)
    return 1 if bad else 0


def _export(policy: Policy, arch: str, form: str) -> None:
    if form == "bpf":
        if sys.stdout.isatty():
            raise Failure("write", "a binary", "standard output is a terminal", "redirect it")
        sys.stdout.buffer.write(compile_policy(policy, arch))
    elif form == "oci":
        print(
            "hardsplice: a runtime compares all 64 bits of a descriptor, of which the kernel takes"
            " 32, so that this allows more than hardsplice's own filter",
            file=sys.stderr,
        )
        if arch in DIRECT:
            print(
                f"hardsplice: on {arch} the runtime's libseccomp lets socket calls through"
                " socketcall(2) too, and their arguments can't be checked there",
                file=sys.stderr,
            )
        print(json.dumps(oci(policy, arch), indent=2))
    else:
        print({"text": table, "systemd": systemd}[form](policy, arch), end="")


def _settled(policy: Policy, arch: str, listeners: int) -> Policy:
    """The policy as set-up has it on an architecture, for so many listeners."""
    words = place_for(TARGETS_A_PORT * listeners, arch).words
    return policy.settled({**words, "FLOWS": FIRST_LISTENER + listeners})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    try:
        options = _parser().parse_args(arguments)
        if options.command == "check":
            return _check_command(options.role)
        policy = load_policy(options.role)
        arch = options.arch or native_arch()
        if options.listeners is not None:
            policy = _settled(policy, arch, options.listeners)
        if options.command == "show":
            print(show(policy, arch), end="")
        else:
            _export(policy, arch, options.format)
        sys.stdout.flush()
    except Failure as failure:
        for line in failure.lines():
            print(line, file=sys.stderr)
        return 1
    except OSError as error:
        lost = output.lost(error, "the policy")
        tell(lost.lines() if lost else ())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
