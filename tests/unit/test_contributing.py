# SPDX-License-Identifier: GPL-2.0-or-later
"""What CONTRIBUTING.md and the tests' README name is there; so are the targets of make that any
page names, and what tests name in programs of their own, which no import fails for.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.support.sources import MODULES
from tests.unit.test_rooms import ROOMS

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
INDEX = (TESTS / "README.md").read_text(encoding="utf-8")
IMPORT = re.compile(r"from (hardsplice[\w.]*) import (\w[\w, ]*)")
TOPS = ("hardsplice", "tests", "policy", "packaging", "tools", "bench", ".ci")


def named(text: str) -> set[str]:
    """The paths that stand between backticks."""
    words = re.findall(r"`([^`\s]+)`", text)
    return {word for word in words if re.fullmatch(r"[\w.][\w./-]*", word) and "/" in word}


@pytest.mark.parametrize("path", sorted(named(CONTRIBUTING)))
def test_what_contributing_names_is_there(path: str) -> None:
    assert path.partition("/")[0] in TOPS
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", sorted(named(INDEX)))
def test_what_the_index_names_is_there(path: str) -> None:
    assert (TESTS / path).exists() or (ROOT / path).exists()


PAGES = sorted(
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("*/README.md")) if path.name != "CHANGELOG.md"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_target_of_make_that_a_page_names_is_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"^(?: {4})?make ([a-z][\w-]*)|`make ([a-z][\w-]*)", text, re.MULTILINE)
    assert {one or other for one, other in named} <= targets


def test_the_index_has_each_folder() -> None:
    folders = {path.name for path in TESTS.iterdir() if (path / "__init__.py").exists()}
    folders |= {path.parent.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")}
    assert folders <= {
        name.rstrip("/") for name in re.findall(r"^\| `(\w+/)` ", INDEX, re.MULTILINE)
    }


@pytest.mark.parametrize(("layer", "share"), [("unit", 0.7), ("integration", 0.6)])
def test_a_layer_mirrors_the_rooms(layer: str, share: float) -> None:
    """A folder is a room, or part of one, and most tests have the name of a module."""
    top = TESTS / layer
    parts = {name for name in MODULES if name in ROOMS or MODULES[name].stem == "__init__"}
    tests = [path.relative_to(top) for path in top.rglob("test_*.py")]
    folders = {path.parent for path in tests} - {Path()}
    assert {".".join(folder.parts) for folder in folders} <= parts
    modules = [".".join((*path.parent.parts, path.stem.removeprefix("test_"))) for path in tests]
    assert sum(name in MODULES for name in modules) > share * len(modules)


def test_what_programs_in_tests_import_is_there() -> None:
    """A program that can't start would be a failure that proves nothing, or even a success."""
    missing = [
        f"{path.relative_to(TESTS)}: {module}, {name}"
        for path in TESTS.rglob("*.py")
        for module, names in IMPORT.findall(path.read_text(encoding="utf-8"))
        for name in (one.split(" as ")[0].strip() for one in names.split(","))
        if not is_there(module, name)
    ]
    assert missing == []


def is_there(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name) or bool(
            importlib.import_module(f"{module}.{name}")
        )
    except ImportError:
        return False
