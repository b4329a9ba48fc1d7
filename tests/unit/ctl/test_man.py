# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplicectl's manual and completions against its parser."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from hardsplice.ctl.cli import build_parser, parse_args
from tests.integration.bash_completion import FOLDER
from tests.unit.ctl.parsers import ACTIONS, COMMANDS, subparsers

PACKAGING = Path(__file__).parents[3] / "packaging"
PAGE = PACKAGING / "man" / "hardsplicectl.1"
SOURCE = PAGE.read_text(encoding="ascii").replace("\\-", "-")


def every_parser() -> list[argparse.ArgumentParser]:
    found: list[argparse.ArgumentParser] = [build_parser()]
    for parser in found:
        found.extend(subparsers(parser).values())  # the list grows while it is walked
    return found


OPTIONS = {name for parser in every_parser() for a in parser._actions for name in a.option_strings}


def section(title: str) -> str:
    found = re.search(rf"^\.Sh {title}\n(.*?)(?=^\.Sh |\Z)", SOURCE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no section {title}"
    return found[1]


def test_the_manual_and_the_parser_have_the_same_options() -> None:
    mentioned = {"-" + name for name in re.findall(r"\bFl ([-\w]+)", SOURCE)}
    assert mentioned == OPTIONS | {"--control", "--audit"}  # the last two are hardsplice's


def test_the_manual_and_the_parser_have_the_same_commands() -> None:
    heads = re.findall(
        r"^\.It Cm (\w+)(?: (?:Op Cm )?(list|add|remove))?", section("COMMANDS"), re.MULTILINE
    )
    assert {command for command, _ in heads} == set(COMMANDS)
    assert {action for _, action in heads if action} == set(ACTIONS)


def test_the_examples_are_understood() -> None:
    lines = re.findall(r"^\.Dl \$ hardsplicectl (.*)$", SOURCE, re.MULTILINE)
    commands = {parse_args(shlex.split(line)).command for line in lines}
    assert commands >= {"ports", "top", "status"}


@pytest.mark.parametrize("name", ["_hardsplicectl", "hardsplicectl.fish"])
def test_the_other_shells_know_every_word(name: str) -> None:
    source = (FOLDER / name).read_text(encoding="ascii")
    for word in (*COMMANDS, *ACTIONS):
        assert re.search(rf"\b{word}\b", source), word
    for option in OPTIONS:
        spelled = option.lstrip("-")
        if name.endswith(".fish"):
            spelled = rf"-{'l' if option.startswith('--') else 's'} {spelled}\b"
        else:
            spelled = rf"{option}\b"
        assert re.search(spelled, source), option
