# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplicectl's commands, and the actions of those that have some, by name."""

from __future__ import annotations

import argparse

from hardsplice.ctl.cli import build_parser


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers below one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


COMMANDS = subparsers(build_parser())
ACTIONS = subparsers(COMMANDS["ports"])
