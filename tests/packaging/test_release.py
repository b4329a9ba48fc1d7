# SPDX-License-Identifier: GPL-2.0-or-later
"""What is released: the same bytes from every build, nothing but the project's files, each under a
license that is known, and one version everywhere.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardsplice import __version__
from tools import dist, sbom, version

ROOT = Path(__file__).parents[2]
TIME = "1764201600"
WHEEL = f"hardsplice-{__version__}-py3-none-any.whl"
SDIST = f"hardsplice-{__version__}.tar.gz"


def build(source: Path, target: Path, umask: int = 0o022, **settings: str) -> dict[str, str]:
    """Build what is released of a checkout; each file's checksum."""
    settings = {"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": TIME, **settings}
    subprocess.run(
        [sys.executable, "-m", "tools.dist", str(target)],
        cwd=source, env=settings, umask=umask, check=True, timeout=100, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in target.iterdir()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of its own, with a file beside that git doesn't know."""
    folder = tmp_path_factory.mktemp("somewhere else") / "checkout"
    for name in dist.tracked(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
        os.utime(folder / name, (1, 1))
    for words in (["init", "--quiet"], ["add", "--all", "--force"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    (folder / "hardsplice" / "stray.py").touch()
    (folder / "packaging" / "stray").touch()
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, folder)
    return folder


def packed(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive if not member.isdir()}


def test_two_builds_are_the_same_wherever_and_by_whom_they_are_made(
    built: Path, checkout: Path, tmp_path: Path
) -> None:
    other = {"LC_ALL": "C", "TZ": "Pacific/Kiritimati", "HOME": "/nowhere", "PYTHONHASHSEED": "7"}
    first = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in built.iterdir()}
    assert set(first) == {WHEEL, SDIST, f"hardsplice-{__version__}.cdx.json"}
    assert build(checkout, tmp_path, umask=0o077, **other) == first


def test_what_is_built_carries_the_time_that_is_named(built: Path) -> None:
    with tarfile.open(built / SDIST) as archive:
        assert {member.mtime for member in archive} == {int(TIME)}
    with zipfile.ZipFile(built / WHEEL) as archive:
        assert {member.date_time[:3] for member in archive.infolist()} == {(2025, 11, 27)}


def test_without_a_named_time_it_is_the_last_commits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert dist.epoch(tmp_path) == dist._NO_TIME
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    subprocess.run(
        ["git", *identity, "commit", "--quiet", "--allow-empty", "--message", "empty"],
        cwd=tmp_path, env={**os.environ, "GIT_COMMITTER_DATE": f"{TIME} +0000"}, check=True,
    )  # fmt: skip
    assert dist.epoch(tmp_path) == int(TIME)


def test_the_sdist_is_what_git_tracks_and_nothing_else(built: Path, checkout: Path) -> None:
    assert packed(built / SDIST) - {"PKG-INFO"} == set(dist.tracked(ROOT))
    assert not any("stray" in name for name in dist.tracked(checkout))


def test_an_unpacked_sdist_builds_the_same(built: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "--extract", "--file", built / SDIST], cwd=tmp_path, check=True)
    (source,) = tmp_path.iterdir()
    again = build(source, tmp_path / "dist")
    assert again[WHEEL] == hashlib.sha256((built / WHEEL).read_bytes()).hexdigest()
    assert again[SDIST] == hashlib.sha256((built / SDIST).read_bytes()).hexdigest()


# --- licenses ---


def test_every_file_has_a_license_and_a_holder(checkout: Path) -> None:
    command = [sys.executable, "-m", "reuse", "lint"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_license_that_is_shown_is_the_one_that_is_named() -> None:
    shown = (ROOT / "LICENSE").read_text()
    assert shown == (ROOT / "LICENSES/GPL-2.0-or-later.txt").read_text()
    assert project()["license"] == "GPL-2.0-or-later"


# --- the SBOM ---


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="module")
def bom(built: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((built / sbom.name(ROOT)).read_text())
    return found


def test_the_sbom_has_what_cyclonedx_requires(bom: dict[str, Any]) -> None:
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.6", 1)
    digit = "[0-9a-f]"
    uuid = f"urn:uuid:{digit}{{8}}-{digit}{{4}}-5{digit}{{3}}-[89ab]{digit}{{3}}-{digit}{{12}}"
    assert re.fullmatch(uuid, bom["serialNumber"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", bom["metadata"]["timestamp"])
    all_of_it = [bom["metadata"]["component"], *bom["components"]]
    for one in all_of_it:
        assert one["type"] in ("application", "library")
        assert one["name"]
        assert re.fullmatch(r"pkg:(pypi|generic)/[a-z0-9-]+(@[\w.]+)?", one["purl"])
        (named,) = one["licenses"]
        assert named.keys() in ({"license"}, {"expression"})
    references = [one["bom-ref"] for one in all_of_it]
    assert len(set(references)) == len(references)
    assert {one["ref"] for one in bom["dependencies"]} == set(references)
    assert all(set(one["dependsOn"]) <= set(references) for one in bom["dependencies"])


def test_the_sbom_names_every_dependency_and_what_these_need(bom: dict[str, Any]) -> None:
    extras = {
        k: v
        for k, v in project()["optional-dependencies"].items()
        if k not in sbom._DEVELOPERS_ONLY
    }
    lines = [*project()["dependencies"], *(line for extra in extras.values() for line in extra)]
    wanted = {re.split(r"[^\w.-]", line)[0] for line in lines}
    named = {one["name"] for one in bom["components"]}
    assert wanted <= named
    assert named == set(sbom.KNOWN)
    (whole,) = (one for one in bom["dependencies"] if one["ref"].endswith(f"@{__version__}"))
    assert whole["dependsOn"] == sorted(
        one["purl"] for one in bom["components"] if one["name"] in wanted | set(sbom._ALWAYS)
    )


def test_the_sbom_of_wheel_and_sdist_has_a_range_of_what_they_need(bom: dict[str, Any]) -> None:
    """They contain none of it."""
    (found,) = (one for one in bom["components"] if one["name"] == "pyseccomp")
    assert found["properties"] == [{"name": "hardsplice:versions", "value": ">=0.1.2"}]
    assert not any("version" in one or "hashes" in one for one in bom["components"])


def test_a_dependency_whose_license_is_not_known_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "hardsplice").mkdir()
    shutil.copy(ROOT / "hardsplice/__init__.py", tmp_path / "hardsplice")
    text = (ROOT / "pyproject.toml").read_text()
    changed = text.replace("dependencies = [", 'dependencies = [\n    "stranger>=1",', 1)
    (tmp_path / "pyproject.toml").write_text(changed)
    with pytest.raises(KeyError, match="stranger"):
        sbom.text(tmp_path, 0)


# --- the version ---


def named_in(text: Callable[[str], str]) -> dict[str, str | None]:
    """The version that each place names."""
    patterns = {
        "hardsplice/__init__.py": r'^__version__ = "(.+)"$',
        "packaging/rpm/hardsplice.spec": r"^Version: +(\S+)$",
        "packaging/debian/changelog": r"\Ahardsplice \((.+)-1\) ",
    }
    logged = re.search(r"^%changelog\n\* .* - (\S+)-1$", text(version.SPEC), re.MULTILINE)
    found = {path: re.search(one, text(path), re.MULTILINE) for path, one in patterns.items()}
    found["the spec file's log"] = logged
    return {path: match and match[1] for path, match in found.items()}


def test_every_place_names_this_version() -> None:
    assert "version" in project()["dynamic"]
    named = named_in(lambda path: (ROOT / path).read_text())
    assert set(named.values()) == {__version__}, named


def test_a_new_version_is_set_in_every_place() -> None:
    time = dt.datetime(2031, 3, 7, 8, 9, 10, tzinfo=dt.UTC)
    texts = {
        path: place((ROOT / path).read_text(), "7.8.9", time)
        for path, place in version.PLACES.items()
    }
    assert set(named_in(texts.__getitem__).values()) == {"7.8.9"}
    assert "## [Unreleased]\n\n## [7.8.9] - 2031-03-07\n" in texts["CHANGELOG.md"]
    assert " Fri, 07 Mar 2031 08:09:10 +0000\n" in texts["packaging/debian/changelog"]
    assert "* Fri Mar 07 2031 " in texts[version.SPEC]


def test_packages_for_distributions_name_our_page() -> None:
    home = project()["urls"]["Homepage"]
    spec = (ROOT / "packaging/rpm/hardsplice.spec").read_text()
    assert re.search(rf"^URL: +{re.escape(home)}$", spec, re.MULTILINE)
