# SPDX-License-Identifier: GPL-2.0-or-later
"""What is released: the wheel, the sdist and the SBOM, in dist/ or the folder that is named.

    python -m tools.dist [FOLDER]

They are built from a copy of what git tracks, so that nothing else of a checkout gets into them,
and carry the time of the last commit: two builds of one commit are the same, byte for byte.
SOURCE_DATE_EPOCH, in seconds, names another time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import sbom

ROOT = Path(__file__).resolve().parents[1]
_MADE = {"__pycache__", ".venv", "build", "dist", "PKG-INFO"}
# As for any release whose time is not known: hatchling's own choice, 2020-02-02.
_NO_TIME = 1580601600
_BUILD = """
import sys
from hatchling.build import build_sdist, build_wheel
build_wheel(sys.argv[1])
build_sdist(sys.argv[1])
"""


def _git(root: Path, *words: str) -> str | None:
    """What git says of a checkout; None where there is no git, or no checkout of ``root``'s own."""
    if not (root / ".git").exists():
        return None
    # safe.directory: who builds isn't always who owns the checkout, and no hook is run here.
    command = ["git", "-c", f"safe.directory={root}", *words]
    return subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout


def tracked(root: Path) -> list[str]:
    """The files that belong to the project; all of them in an unpacked sdist."""
    listed = _git(root, "ls-files", "-z")
    if listed is not None:
        return sorted(name for name in listed.split("\0") if name and (root / name).exists())
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and _MADE.isdisjoint(path.relative_to(root).parts)
    )


def epoch(root: Path) -> int:
    """The time that goes into what is built, in seconds since 1970."""
    named = os.environ.get("SOURCE_DATE_EPOCH") or _git(root, "log", "-1", "--format=%ct")
    return int(named) if named else _NO_TIME


def build(root: Path, target: Path) -> list[Path]:
    """Build everything from the files of ``root``, into ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    seconds = epoch(root)
    with tempfile.TemporaryDirectory(prefix="hardsplice-dist-") as folder:
        source, made = Path(folder, "source"), Path(folder, "made")
        for name in tracked(root):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, source / name, follow_symlinks=False)
        made.mkdir()
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(seconds), "PYTHONPATH": ""}
        command = [sys.executable, "-c", _BUILD, str(made)]
        subprocess.run(command, cwd=source, env=environment, check=True)
        (made / sbom.name(source)).write_text(sbom.text(source, seconds), encoding="utf-8")
        for path in made.iterdir():
            path.chmod(0o644)  # whatever the umask is: they are there to be published
        return [Path(shutil.copy(path, target / path.name)) for path in sorted(made.iterdir())]


def main() -> int:
    """Say what was built."""
    for path in build(ROOT, Path(sys.argv[1]) if sys.argv[1:] else ROOT / "dist"):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
