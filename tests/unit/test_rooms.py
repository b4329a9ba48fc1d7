# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan of the house: every import goes down, from a room to one below it, and none in a circle.

Imports for types count too: what a module can't be understood without, it depends on.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest

from tests.support.sources import MODULES, parsed

# From the top.
ROOMS = (
    "frontends", "app", "ctl", "cli", "control", "monitor", "relay", "command", "telemetry", "net",
    "sandbox", "ipc", "model", "kernel",
)  # fmt: skip
# Modules outside of the rooms: where an interpreter starts.
DOORS = ("__init__", "__main__", "isolated", "loading", "policy")
# Who, apart from doors, may import one: the package's own name and version anybody.
KNOWN_DOORS = {
    ("isolated", "ctl.__main__"), ("isolated", "frontends.programs"), ("loading", "isolated"),
}  # fmt: skip
LINES = 400


def imports(name: str, source: str | None = None) -> Iterator[str]:
    """The modules that one imports anywhere, for types too; "" is the package itself."""
    tree = parsed(MODULES[name]) if source is None else ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "hardsplice":
                    yield alias.name.partition(".")[2]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import hides which room it is from"
            if (node.module or "").partition(".")[0] != "hardsplice":
                continue
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                module = f"{base}.{alias.name}".removeprefix(".")
                yield module if module in MODULES else base


IMPORTS = {name: {one for one in imports(name) if one and one != name} for name in MODULES}


def floor(name: str) -> int:
    return ROOMS.index(name.partition(".")[0])


def going_up(name: str, found: set[str]) -> set[tuple[str, str]]:
    """The imports of a module that don't go down."""
    if name in DOORS:
        return set()
    return {
        (name, one) for one in found
        if (one in DOORS and (one, name) not in KNOWN_DOORS)
        or (one not in DOORS and floor(one) < floor(name))
    }  # fmt: skip


def test_every_module_is_in_a_room_or_a_door() -> None:
    assert {name for name in MODULES if "." not in name} == {*ROOMS, *DOORS}


def test_no_import_goes_up() -> None:
    assert set().union(*(going_up(name, found) for name, found in IMPORTS.items())) == set()


@pytest.mark.parametrize(
    "line",
    [
        "import hardsplice.app.start",
        "import hardsplice.monitor.host as host",
        "from hardsplice.net import listeners",
        "from hardsplice.policy import main",
        "def later():\n    import hardsplice.isolated",
    ],
)
def test_one_that_goes_up_is_found(line: str) -> None:
    assert going_up("kernel.files", set(imports("kernel.files", line)))


def test_a_relative_import_is_none() -> None:
    with pytest.raises(AssertionError, match="relative"):
        list(imports("kernel.files", "from ..monitor import host"))


def test_no_import_goes_in_a_circle() -> None:
    assert list(TopologicalSorter(IMPORTS).static_order())


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_read_at_one_sitting(name: str) -> None:
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= LINES
