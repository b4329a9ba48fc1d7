# SPDX-License-Identifier: GPL-2.0-or-later
"""What bash offers after hardsplicectl."""

from __future__ import annotations

import argparse

from hardsplice.ctl.cli import build_parser
from tests.integration.bash_completion import offered
from tests.unit.ctl.parsers import ACTIONS, COMMANDS


def complete(*words: str) -> set[str]:
    return set(offered("hardsplicectl", *words))


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings} - {"-h"}


def test_bash_offers_the_commands_and_the_options_of_each() -> None:
    assert complete("") == set(COMMANDS) | options_of(build_parser())
    for name, parser in COMMANDS.items():
        found = complete("--json", name, "")
        assert found == options_of(parser) | (set(ACTIONS) if name == "ports" else set())
    for name, parser in ACTIONS.items():
        assert complete("--socket", "x", "ports", name, "") == options_of(parser)
    assert complete("top", "--interval", "") == set()
