# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules are loaded as Python would, from bytecode where it is of the source as it is."""

from __future__ import annotations

import os
import py_compile
import sys
from importlib.util import cache_from_source, module_from_spec
from pathlib import Path
from py_compile import PycInvalidationMode
from types import ModuleType

import pytest

from hardsplice import loading

NAME = "hardsplice.made_up"
COMPILED, WRITTEN = "WHICH = 'bytecode'\n", "WHICH = 'the source!'\n"


def loaded(folder: Path, name: str = NAME) -> ModuleType | None:
    spec = loading._Finder().find_spec(name, [str(folder)])
    if spec is None:
        return None
    module = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module's source, and bytecode with its time and size that can be told from it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "made_up.py"
    path.write_text(COMPILED)
    py_compile.compile(str(path))
    found = path.stat()
    path.write_text(WRITTEN[: len(COMPILED) - 2] + "'\n")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    return path


def test_bytecode_is_taken_where_time_and_size_are_the_sources(module: Path) -> None:
    made = loaded(module.parent)
    assert made is not None
    assert made.WHICH == "bytecode"
    assert made.__file__ == str(module)
    assert made.__cached__ == cache_from_source(str(module))


def older(module: Path) -> None:
    os.utime(module, (0, 0))


def longer(module: Path) -> None:
    found = module.stat()
    module.write_text(WRITTEN + "MORE = 1\n")
    os.utime(module, ns=(found.st_atime_ns, found.st_mtime_ns))


def of_another_python(module: Path) -> None:
    path = Path(cache_from_source(str(module)))
    path.write_bytes(b"ABCD" + path.read_bytes()[4:])


def by_hash(module: Path) -> None:
    """Which is to be compared with the source."""
    source = module.read_text()
    module.write_text(COMPILED)
    py_compile.compile(str(module), invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    module.write_text(source)


def cut_short(module: Path) -> None:
    path = Path(cache_from_source(str(module)))
    os.truncate(path, 20)
    older(module)  # of what is cut short but current, Python itself says that it is broken


def gone(module: Path) -> None:
    Path(cache_from_source(str(module))).unlink()


@pytest.mark.parametrize("how", [older, longer, of_another_python, by_hash, cut_short, gone])
def test_other_bytecode_is_not(module: Path, how: object) -> None:
    assert callable(how)
    how(module)
    made = loaded(module.parent)
    assert made is not None
    assert made.WHICH.startswith("the s")


def test_a_package_is_found_with_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "made_up"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    made = loaded(tmp_path)
    assert made is not None
    assert made.__path__ == [str(folder)]
    assert made.__package__ == NAME


def test_what_is_not_there_and_what_is_others_is_left_to_others(module: Path) -> None:
    assert loaded(module.parent, "hardsplice.nowhere") is None
    assert loaded(module.parent, "others.made_up") is None
    assert loaded(module, NAME) is None, "no folder, as within an archive"
    assert loading._Finder().find_spec("hardsplice", None) is None
