# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplicectl's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from hardsplice import __version__
from hardsplice.cli import subcommands
from hardsplice.cli.values import number
from hardsplice.ctl.client import default_path
from hardsplice.model.direction import Direction
from hardsplice.model.errors import Failure, quote

INTERVAL_LEAST, INTERVAL_MOST = 0.1, 3600.0  # seconds
_LAST_ID = 10**9 - 1


class Parser(subcommands.Parser):
    """An ArgumentParser whose errors are Failures."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line."""
        raise Failure("parse", "the command line", message, f"see {self.prog} --help")


def _common(parser: argparse.ArgumentParser, *, top: bool) -> None:
    """Options that may stand before the command and after it."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=None if top else argparse.SUPPRESS,
        help="hardsplice's control socket (default: $HARDSPLICE_CONTROL, else"
        " $XDG_RUNTIME_DIR/hardsplice.sock, else /run/hardsplice.sock)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        default=False if top else argparse.SUPPRESS,
        help="answer in JSON",
    )


def build_parser() -> Parser:
    """The parser, with its commands."""
    about = "Ask a running hardsplice, and change its ports."
    parser = Parser(prog="hardsplicectl", description=about)
    _common(parser, top=True)
    parser.add_argument("--version", action="version", version=f"hardsplicectl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    ports = commands.add_parser("ports", help="list, add and remove ports")
    _common(ports, top=False)
    actions = ports.add_subparsers(dest="action", metavar="list|add|remove")
    _common(actions.add_parser("list", help="list them (the default)"), top=False)
    add = actions.add_parser("add", help="add those of a SPEC, as hardsplice(1) has it")
    _common(add, top=False)
    direction = add.add_mutually_exclusive_group()
    for value, text in (
        (Direction.INBOUND, "host ports, to the namespace (the default)"),
        (Direction.OUTBOUND, "namespace ports, to the host"),
    ):
        direction.add_argument(
            value.option,
            dest="direction",
            action="store_const",
            const=value,
            default=Direction.INBOUND,
            help=text,
        )
    add.add_argument("spec", metavar="SPEC")
    remove = actions.add_parser("remove", help="remove those with these IDs")
    _common(remove, top=False)
    remove.add_argument("--reset", action="store_true", help="reset their connections too")
    remove.add_argument("ids", metavar="ID", nargs="+", type=_port_id)

    for name, text in (
        ("status", "how it is"),
        ("flows", "the connections that there are"),
        ("metrics", "what it counts, for Prometheus"),
        ("audit", "what each of its processes may do"),
    ):
        _common(commands.add_parser(name, help=text), top=False)
    top = commands.add_parser("top", help="the busiest connections, live; q ends it")
    _common(top, top=False)
    top.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_interval,
        default=1.0,
        help="between two frames (default 1)",
    )
    exporter = commands.add_parser("exporter", help="serve /metrics to Prometheus, and no more")
    _common(exporter, top=False)
    exporter.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        help="where (else on the listeners that a service manager passes)",
    )
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The command line's meaning. Raises Failure, and SystemExit(0) after --help and --version."""
    given = build_parser().parse_args(argv)
    given.socket = given.socket or default_path()
    return given


def _port_id(text: str) -> int:
    value = number(text, 0, _LAST_ID)
    if value is None:
        raise Failure("parse", f"ID {quote(text)}", "it is not a number; see hardsplicectl ports")
    return value


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not INTERVAL_LEAST <= value <= INTERVAL_MOST:
        reason = f"it is not a number of seconds from {INTERVAL_LEAST} to {INTERVAL_MOST:.0f}"
        raise Failure("parse", f"--interval {quote(text)}", reason)
    return value
