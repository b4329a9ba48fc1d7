# SPDX-License-Identifier: GPL-2.0-or-later
"""What README.md and DESIGN.md draw is what the code does."""

import re
from pathlib import Path

from hardsplice.app import stages
from hardsplice.relay.tcp import rules
from tests.support.sources import PACKAGE
from tests.unit.test_rooms import ROOMS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
DESIGN = (Path(__file__).parents[2] / "DESIGN.md").read_text(encoding="utf-8")


def test_the_diagram_of_a_direction_is_the_transition_table() -> None:
    assert f"```mermaid\n{rules.diagram()}\n```" in DESIGN


def test_the_map_of_the_house_names_its_rooms_from_the_top_and_modules_that_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)/` \|.*\| (.*) \|$", README, re.MULTILINE)
    assert tuple(room for room, _ in rows) == ROOMS
    for room, begin in rows:
        for name in re.findall(r"`([\w/]+\.py)`", begin):
            assert (PACKAGE / room / name).is_file(), name


def test_the_first_limit_is_what_servers_see_of_clients() -> None:
    limits = README.split("## Limits\n")[1].strip()
    assert limits.startswith("Servers see the loopback address, 127.0.0.1 or ::1, instead of")


def test_the_stages_are_those_of_the_start() -> None:
    (named,) = re.findall(r"^    (parse(?: → \w+)+)$", DESIGN, re.MULTILINE)
    assert re.findall(r"^    (\w+)  ", stages.__doc__ or "", re.MULTILINE) == named.split(" → ")
