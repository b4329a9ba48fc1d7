# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's package, built once for all tests of a release, and clean roots with it.

Whoever asks for these tests asks for clean roots: it is an error if there can be none.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clean import BOOTED, NEEDED, ROOT, SUITES, TESTS, builder
from tools import clean_root, deb
from tools.clean_root import Recipe


@pytest.fixture(scope="session", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """A release of Debian."""
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of which nothing is kept: roots are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def built(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is built, in a folder."""
    folder = tmp_path_factory.mktemp(f"built-{suite}")
    root = clean_root.made(builder(suite), folder / "root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEB_BUILD_OPTIONS", "nocheck")
        deb.build_in(root, ROOT, folder / "dist")
    shutil.rmtree(root)
    yield folder / "dist"
    shutil.rmtree(folder)


def with_package(recipe: Recipe, built: Path, folder: Path) -> Path:
    """A clean root with the package and its tests in /srv."""
    root = clean_root.made(recipe, folder / "root")
    (package,) = built.glob("*.deb")
    shutil.copy(package, root / "srv/hardsplice.deb")
    shutil.copytree(TESTS, root / "srv/tests")
    return root


@pytest.fixture
def clean(suite: str, built: Path, folder: Path) -> Path:
    """One with what apt needs to install it offline."""
    return with_package(Recipe(suite, "minbase", BOOTED, NEEDED), built, folder)


SELINUX = (
    "kmod",
    "policycoreutils",
    "selinux-policy-default",
    "selinux-policy-dev",
    "selinux-utils",
)


@pytest.fixture
def clean_with_selinux(suite: str, built: Path, folder: Path) -> Path:
    """One with Debian's policy besides, and what modules are made with."""
    return with_package(Recipe(suite, "minbase", (*BOOTED, *SELINUX), NEEDED), built, folder)
