# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's packages, source and binary, in dist/ or the folder that is named.

    python3 -m tools.deb [--suite SUITE | --sdist FILE] [FOLDER]

They are built of the sdist, which is made of what git tracks (tools/dist.py) if none is named, as
packages of the release that runs here, with its Python. With --suite they are built in a clean root
of another release (tools/clean_root.py; root's rights are needed) by an ordinary user without a
network, as Debian does. The sdist is made before that: hatchling's versions write its metadata in
different ways, and Debian's source package has the tarball that is released.
DEB_BUILD_OPTIONS is heeded: nocheck leaves the tests out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import clean_root, dist
from tools.version import current

ROOT = Path(__file__).resolve().parents[1]
DEBIAN = Path("packaging/debian")
_TOOLS = ("dpkg-buildpackage", "dpkg-checkbuilddeps")
_BUILT = "/home/builder/dist"


class CannotBuildError(Exception):
    """Why there are no packages; a line, or two."""


def needed(root: Path) -> list[str]:
    """The packages that a build needs, by their names alone."""
    control = (root / DEBIAN / "control").read_text()
    fields = re.findall(r"^Build-Depends[\w-]*:\n((?: .*\n)+)", control, re.MULTILINE)
    return [line.split()[0].rstrip(",") for field in fields for line in field.splitlines()]


def build(root: Path, target: Path, sdist: Path | None = None) -> list[Path]:
    """Build with what is installed here. Raises CannotBuildError."""
    if not all(map(shutil.which, _TOOLS)):
        raise CannotBuildError("there is no dpkg-buildpackage: install build-essential")
    asked = subprocess.run(
        ["dpkg-checkbuilddeps", root / DEBIAN / "control"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if asked.returncode != 0:
        lacking = asked.stderr.strip().rpartition("dependencies: ")[2]
        raise CannotBuildError(
            f"these packages are missing: {lacking}\n"
            "install them, or as root, with mmdebstrap: make deb SUITE=trixie (or bookworm)"
        )
    with tempfile.TemporaryDirectory(prefix="hardsplice-deb-") as folder:
        built = Path(folder, "built")
        built.mkdir()
        original = built / f"hardsplice_{current(root)}.orig.tar.gz"
        shutil.copy(sdist or released(root, Path(folder, "released")), original)
        original.chmod(0o644)  # also where hatchling makes it its owner's alone
        # dpkg-source packs the modes of what is unpacked here.
        subprocess.run(["tar", "--extract", "--file", original], cwd=built, umask=0o022, check=True)
        source = built / f"hardsplice-{current(root)}"
        shutil.copytree(source / DEBIAN, source / "debian")
        # The time of what is in the packages is that of their changelog.
        environment = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"}
        command = ["dpkg-buildpackage", "--no-sign"]
        if subprocess.run(command, cwd=source, env=environment, check=False).returncode != 0:
            raise CannotBuildError("dpkg-buildpackage failed: see above")
        target.mkdir(parents=True, exist_ok=True)
        files = sorted(path for path in built.iterdir() if path.is_file())
        return [Path(shutil.copy(path, target / path.name)) for path in files]


def released(root: Path, folder: Path) -> Path:
    """The sdist, made in ``folder``."""
    dist.build(root, folder)
    return folder / f"hardsplice-{current(root)}.tar.gz"


def builder(root: Path, suite: str, *more: str) -> clean_root.Recipe:
    """The root in which packages are built, with ``more`` packages."""
    return clean_root.Recipe(suite, "buildd", (*needed(root), *more))


def build_in(clean: Path, root: Path, target: Path) -> list[Path]:
    """Build in a root of its own. Raises CannotBuildError."""
    with tempfile.TemporaryDirectory(prefix="hardsplice-deb-") as folder:
        sdist = Path(shutil.copy(released(root, Path(folder)), clean / "srv"))
    sdist.chmod(0o644)
    options = os.environ.get("DEB_BUILD_OPTIONS")
    settings = {"DEB_BUILD_OPTIONS": options} if options else {}
    sources = f"/home/builder/hardsplice-{current(root)}"
    for place, *words in (
        ("/home/builder", "tar", "--extract", "--file", f"/srv/{sdist.name}"),
        (sources, "python3", "-m", "tools.deb", "--sdist", f"/srv/{sdist.name}", _BUILT),
    ):
        done = clean_root.run(
            clean, *words, folder=place, user=clean_root.BUILDER, environment=settings
        )
        print(done.stdout, end="", file=sys.stderr)
        if done.returncode != 0:
            raise CannotBuildError("it does not build: see above")
    target.mkdir(parents=True, exist_ok=True)
    files = sorted((clean / _BUILT.removeprefix("/")).iterdir())
    return [Path(shutil.copy(path, target / path.name)) for path in files]


def main() -> int:
    """Say what was built."""
    parser = argparse.ArgumentParser(prog="tools.deb", description="Build Debian's packages.")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--suite", help="in a clean root of this release of Debian")
    how.add_argument("--sdist", type=Path, help="of this file", metavar="FILE")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist")
    chosen = parser.parse_args()
    try:
        if chosen.suite:
            with tempfile.TemporaryDirectory(prefix="hardsplice-deb-") as folder:
                clean = clean_root.made(builder(ROOT, chosen.suite), Path(folder, "root"))
                files = build_in(clean, ROOT, chosen.folder)
        else:
            files = build(ROOT, chosen.folder, chosen.sdist)
    except (CannotBuildError, clean_root.UnavailableError) as reason:
        for line in f"cannot build packages: {reason}".splitlines():
            print(f"deb: {line}", file=sys.stderr)
        return 1
    for path in files:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
