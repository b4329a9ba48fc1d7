# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan of the house: every import goes down, from a room to one below it, and none in a circle.

Imports for types count too: what a module can't be understood without, it depends on.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hardsplice

PACKAGE = Path(hardsplice.__file__).parent
# From the top.
ROOMS = (
    "app", "ctl", "cli", "control", "monitor", "relay", "command", "telemetry", "net", "sandbox",
    "ipc", "model", "kernel",
)  # fmt: skip
# Modules outside of the rooms: where an interpreter starts. Any room may know the package itself,
# and those that start one, how.
DOORS = ("__init__", "__main__", "isolated", "policy")
LINES = 400

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(name: str) -> Iterator[str]:
    """The modules that one imports anywhere, for types too."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hardsplice"):
            base = (node.module or "").removeprefix("hardsplice").removeprefix(".")
            for alias in node.names:
                module = f"{base}.{alias.name}".removeprefix(".")
                yield module if module in MODULES else base


IMPORTS = {name: {one for one in imports(name) if one and one != name} for name in MODULES}


def floor(name: str) -> int:
    return ROOMS.index(name.partition(".")[0])


def test_every_module_is_in_a_room_or_a_door() -> None:
    assert {name for name in MODULES if "." not in name} == {*ROOMS, *DOORS}


def test_no_import_goes_up() -> None:
    up = {
        (name, one)
        for name, found in IMPORTS.items()
        for one in found
        if name not in DOORS and one not in DOORS and floor(one) < floor(name)
    }
    assert up == set()


def test_no_import_goes_in_a_circle() -> None:
    assert list(TopologicalSorter(IMPORTS).static_order())


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_read_at_one_sitting(name: str) -> None:
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= LINES
