# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplicectl's command line: its commands and their options as a table, from which the parser,
--help and the completions of three shells come (tools/generate.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hardsplice import __version__
from hardsplice.cli import subcommands
from hardsplice.cli.parsing import Option
from hardsplice.cli.values import number
from hardsplice.ctl.client import default_path
from hardsplice.kernel.hints import Any, NoReturn
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError, quote
from hardsplice.model.protocol import Protocol

INTERVAL_LEAST, INTERVAL_MOST = 0.1, 3600.0  # seconds
_LAST_ID = 10**9 - 1


def _port_id(text: str) -> int:
    value = number(text, 0, _LAST_ID)
    if value is None:
        raise HardspliceError(
            "parse", f"ID {quote(text)}", "it is not a number; see hardsplicectl ports"
        )
    return value


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not INTERVAL_LEAST <= value <= INTERVAL_MOST:
        reason = f"it is not a number of seconds from {INTERVAL_LEAST} to {INTERVAL_MOST:.0f}"
        raise HardspliceError("parse", f"--interval {quote(text)}", reason)
    return value


@dataclass(frozen=True, slots=True)
class Word:
    """What a command takes besides options: one word, or more."""

    value: str  # what it is called
    field: str
    parse: Callable[[str], Any] = str
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or what comes after it: an action."""

    name: str
    help: str
    options: tuple[Option, ...] = ()  # of those that set one field, one can be given
    words: tuple[Word, ...] = ()
    actions: tuple[Command, ...] = ()


# Options that may stand before the command and after it.
COMMON = (
    Option(
        ("--socket",),
        "hardsplice's control socket (default: $HARDSPLICE_CONTROL, else"
        " $XDG_RUNTIME_DIR/hardsplice.sock, else /run/hardsplice.sock)",
        "PATH",
        "socket",
        offers="file",
    ),
    Option(("--json",), "answer in JSON", field="json", default=False),
)
COMMANDS = (
    Command(
        "ports",
        "list, add and remove ports",
        actions=(
            Command("list", "list the ports (the default)"),
            Command(
                "add",
                "add the ports of a SPEC, see hardsplice(1)",
                options=tuple(
                    Option(
                        (direction.option(protocol),),
                        text,
                        field="group",
                        default=(Direction.INBOUND, Protocol.TCP),
                        const=(direction, protocol),
                    )
                    for direction, protocol, text in (
                        (
                            Direction.INBOUND,
                            Protocol.TCP,
                            "forward host ports to the namespace (the default)",
                        ),
                        (Direction.OUTBOUND, Protocol.TCP, "forward namespace ports to the host"),
                        (Direction.INBOUND, Protocol.UDP, "the same as -t, of UDP"),
                        (Direction.OUTBOUND, Protocol.UDP, "the same as -T, of UDP"),
                    )
                ),
                words=(Word("SPEC", "spec"),),
            ),
            Command(
                "remove",
                "remove the ports with these IDs",
                options=(
                    Option(
                        ("--reset",), "reset their connections, too", field="reset", default=False
                    ),
                ),
                words=(Word("ID", "ids", _port_id, repeats=True),),
            ),
        ),
    ),
    Command("status", "show the state"),
    Command("flows", "show the flows"),
    Command("metrics", "show the metrics, in Prometheus' format"),
    Command("audit", "show what each process may do"),
    Command(
        "top",
        "show the busiest connections, live; q quits",
        options=(
            Option(
                ("--interval",),
                "interval between two frames (default 1)",
                "SECONDS",
                "interval",
                default=1.0,
                parse=_interval,
            ),
        ),
    ),
    Command(
        "exporter",
        "serve only /metrics, to Prometheus",
        options=(
            Option(
                ("--listen",),
                "where to listen (default: listeners passed by a service manager)",
                "ADDRESS:PORT",
                "listen",
            ),
        ),
    ),
)


class Parser(subcommands.Parser):
    """An ArgumentParser whose errors are HardspliceErrors."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line."""
        raise HardspliceError("parse", "the command line", message, f"see {self.prog} --help")


def build_parser() -> Parser:
    """The parser, with its commands."""
    about = "Query a running hardsplice, and change its ports."
    parser = Parser(prog="hardsplicectl", description=about)
    _add_options(parser, COMMON)
    parser.add_argument("--version", action="version", version=f"hardsplicectl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        _add_command(commands, command)
    return parser


def _add_command(parsers: argparse._SubParsersAction[Any], command: Command) -> None:
    parser = parsers.add_parser(command.name, help=command.help)
    _add_options(parser, COMMON, are_given_before=True)
    _add_options(parser, command.options)
    for word in command.words:
        many = {"nargs": "+"} if word.repeats else {}
        parser.add_argument(word.field, metavar=word.value, type=word.parse, **many)
    if command.actions:
        names = "|".join(action.name for action in command.actions)
        actions = parser.add_subparsers(dest="action", metavar=names)
        for action in command.actions:
            _add_command(actions, action)


def _add_options(
    parser: argparse.ArgumentParser, options: Sequence[Option], *, are_given_before: bool = False
) -> None:
    """Options of a parser. Where they may have been given before the command, they have no default
    after it.
    """
    fields = dict.fromkeys(option.field for option in options)
    groups = {field: parser.add_mutually_exclusive_group() for field in fields}
    for option in options:
        default = argparse.SUPPRESS if are_given_before else option.default
        add, field, text = groups[option.field].add_argument, option.field, option.help
        if option.value:
            value, parse = option.value, option.parse
            add(*option.names, dest=field, metavar=value, type=parse, default=default, help=text)
        else:
            const = option.const
            add(
                *option.names,
                dest=field,
                action="store_const",
                const=const,
                default=default,
                help=text,
            )


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The command line's meaning. Raises HardspliceError, and SystemExit(0) after --help and
    --version.
    """
    given = build_parser().parse_args(argv)
    given.socket = given.socket or default_path()
    return given
