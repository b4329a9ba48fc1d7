# SPDX-License-Identifier: GPL-2.0-or-later
"""Which clean roots are kept, and for how long. What makes them here is a stand-in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tools import clean_root
from tools.clean_root import Recipe

DAY = 86400  # seconds
SMALL = Recipe("trixie", "buildd", ("debhelper",))
LARGE = Recipe("trixie", "buildd", ("debhelper", "lintian"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """What was made, in that order."""
    recipes: list[Recipe] = []

    def make(recipe: Recipe, folder: Path) -> None:
        folder.mkdir()
        os.utime(folder, (0, 0))
        recipes.append(recipe)

    monkeypatch.setattr(clean_root, "_make", make)
    return recipes


def test_recipes_of_one_release_keep_their_roots_side_by_side(
    made: list[Recipe], tmp_path: Path
) -> None:
    for _ in range(2):
        assert clean_root.kept(SMALL, tmp_path) != clean_root.kept(LARGE, tmp_path)
    assert made == [SMALL, LARGE]


@pytest.mark.parametrize(("days", "times"), [(13, 1), (15, 2)])
def test_a_root_is_made_anew_after_fourteen_days(
    days: int, times: int, made: list[Recipe], tmp_path: Path
) -> None:
    then = time.time() - days * DAY
    os.utime(clean_root.kept(SMALL, tmp_path), (then, then))
    now = clean_root.kept(SMALL, tmp_path)
    assert made == [SMALL] * times
    assert (time.time() - now.stat().st_mtime > DAY) == (times == 1)


def test_what_an_interrupted_one_left_is_no_root(made: list[Recipe], tmp_path: Path) -> None:
    (tmp_path / f"{SMALL.name()}.partial" / "etc").mkdir(parents=True)
    assert list(clean_root.kept(SMALL, tmp_path).iterdir()) == []
    assert made == [SMALL]
