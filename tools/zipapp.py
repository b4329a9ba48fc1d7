# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplice as one file, dist/hardsplice.pyz or in the folder that is named: a zip archive that
Python 3.11 or newer runs where libseccomp is.

    python -m tools.zipapp [FOLDER]

It holds the package with its policies, and pyseccomp from this environment, each with its license.
Beside it hardsplice.pyz.cdx.json is its SBOM, with the version of that pyseccomp.
Only what git tracks gets into it; nothing is compressed, and the time is that of the last commit,
or SOURCE_DATE_EPOCH: two builds of one commit are the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import io
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

from tools import dist, sbom

ROOT = Path(__file__).resolve().parents[1]
# -I: nothing of the user's runs before hardsplice starts an interpreter of its own.
_FIRST_LINE = b"#!/usr/bin/python3 -I\n"
_START = "packaging/zipapp/__main__.py"
_EARLIEST = 315532800  # 1980-01-01, seconds: no time in a zip archive is before


class CannotBuildError(Exception):
    """Why there is no archive; a line."""


def build(root: Path, target: Path) -> list[Path]:
    """Build the archive from the files of ``root``, into ``target``, and its SBOM. Raises
    CannotBuildError.
    """
    version, others = _pyseccomp()
    files = {**_own(root), **others}
    seconds = dist.epoch(root)
    stamp = time.gmtime(max(seconds, _EARLIEST))[:6]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as made:
        for name, contents in sorted(files.items()):
            entry = zipfile.ZipInfo(name, stamp)
            entry.create_system = 3  # Unix
            entry.external_attr = 0o100644 << 16
            made.writestr(entry, contents)
    target.mkdir(parents=True, exist_ok=True)
    path = target / "hardsplice.pyz"
    made_of = _FIRST_LINE + archive.getvalue()
    path.write_bytes(made_of)
    path.chmod(0o755)
    contained = {"pyseccomp": sbom.Contained(version, _sha256(others["pyseccomp.py"]))}
    bom = path.with_name(f"{path.name}.cdx.json")
    bom.write_text(sbom.text(root, seconds, contained, _sha256(made_of)), encoding="utf-8")
    bom.chmod(0o644)
    return [path, bom]


def _sha256(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def _own(root: Path) -> dict[str, bytes]:
    """hardsplice's files by their names in the archive, which are those of a wheel."""
    places = {_START: "__main__.py", "LICENSE": "licenses/hardsplice"}
    for name in dist.tracked(root):
        path = Path(name)
        if path.parts[0] == "hardsplice" and path.suffix == ".py":
            places[name] = name
        elif path.match("policy/*.toml"):
            places[name] = f"hardsplice/policies/{path.name}"
    return {place: (root / name).read_bytes() for name, place in places.items()}


def _pyseccomp() -> tuple[str, dict[str, bytes]]:
    """Its version, and its files by their names in the archive."""
    try:
        found = metadata.distribution("pyseccomp")
    except metadata.PackageNotFoundError:
        raise CannotBuildError("cannot find pyseccomp: pip install pyseccomp") from None
    places = {"pyseccomp.py": "pyseccomp.py", "LICENSE": "licenses/pyseccomp"}
    return found.version, {
        places[file.name]: file.read_binary() for file in found.files or () if file.name in places
    }


def main() -> int:
    """Say what was built."""
    try:
        for path in build(ROOT, Path(sys.argv[1]) if sys.argv[1:] else ROOT / "dist"):
            print(path)
    except CannotBuildError as reason:
        print(f"zipapp: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
