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
import json
import sys

from hardsplice.cli import output, subcommands
from hardsplice.cli.values import number
from hardsplice.ipc.descriptors import FIRST_LISTENER
from hardsplice.kernel.hints import TYPE_CHECKING, NoReturn
from hardsplice.kernel.syscalls import ARCHITECTURES, DIRECT
from hardsplice.model.errors import HardspliceError, print_lines, quote
from hardsplice.model.roles import POLICIES
from hardsplice.sandbox.address_book import TARGETS_A_PORT, area_for
from hardsplice.sandbox.policy.files import load_policy
from hardsplice.sandbox.policy.forms import check, oci, show, systemd, table
from hardsplice.sandbox.policy.model import Policy
from hardsplice.sandbox.seccomp import compile_policy, native_arch

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Parser(subcommands.Parser):
    def error(self, message: str) -> NoReturn:
        raise HardspliceError("understand", "the command line", message, f"try: {self.prog} --help")


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
        command.add_argument("--role", choices=POLICIES, required=name != "check")
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
        raise HardspliceError("use", f"--listeners {quote(text)}", "it is no number of listeners")
    return value


def _check_command(role: str | None) -> int:
    good, bad = check([role] if role else POLICIES)
    for line in good:
        print(line)
    for line in bad:
        print(f"hardsplice: {line}", file=sys.stderr)
    return 1 if bad else 0


def _export(policy: Policy, arch: str, form: str) -> None:
    if form == "bpf":
        if sys.stdout.isatty():
            raise HardspliceError(
                "write", "a binary", "standard output is a terminal", "redirect it"
            )
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
    words = area_for(TARGETS_A_PORT * listeners, arch).words
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
    except HardspliceError as failure:
        for line in failure.lines():
            print(line, file=sys.stderr)
        return 1
    except OSError as error:
        lost = output.lost(error, "the policy")
        print_lines(lost.lines() if lost else ())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
