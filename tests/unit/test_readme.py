# SPDX-License-Identifier: GPL-2.0-or-later
"""README.md's drawings say what the code does."""

from pathlib import Path

from hardsplice.relay import flow

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_diagram_of_a_direction_is_the_transition_table() -> None:
    assert f"```mermaid\n{flow.diagram()}\n```" in README


def test_every_module_has_its_place_in_the_map_of_the_house() -> None:
    package = Path(flow.__file__).parents[1]
    house = README.split("## The house")[1].split("Decisions that")[0]
    for path in package.rglob("*.py"):
        if not path.stem.startswith("__"):
            assert path.stem in house, path


def test_the_first_limit_is_what_servers_see_of_clients() -> None:
    limits = README.split("## Limits\n")[1].strip()
    assert limits.startswith("Servers see the loopback address, 127.0.0.1 or ::1, instead of")
