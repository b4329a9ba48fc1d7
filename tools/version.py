# SPDX-License-Identifier: GPL-2.0-or-later
"""Set the version in every place that names it:

    python -m tools.version VERSION

`hardsplice/__init__.py` has it; the RPM spec file, Debian's changelog and CHANGELOG.md repeat it,
and tests/packaging/test_release.py holds them together.
"""

from __future__ import annotations

import datetime as dt
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPEC = "packaging/rpm/hardsplice.spec"
_WHO = "hardsplice maintainers <maintainers@hardsplice.example>"
# The names of days and months that changelogs of packages have, in every locale.
_DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def _one(pattern: str, replacement: str, text: str) -> str:
    """The text with the one match replaced. ValueError if there isn't just one."""
    changed, count = re.subn(pattern, lambda _: replacement, text, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"{pattern!r} matches {count} times")
    return changed


def module(text: str, version: str, _: dt.datetime) -> str:
    """hardsplice/__init__.py."""
    return _one('^__version__ = ".*"$', f'__version__ = "{version}"', text)


def spec(text: str, version: str, time: dt.datetime) -> str:
    """The RPM spec file."""
    text = _one("^Version: .*$", f"Version:        {version}", text)
    date = f"{_DAYS[time.weekday()]} {_MONTHS[time.month - 1]} {time.day:02} {time.year}"
    entry = f"%changelog\n* {date} {_WHO} - {version}-1\n- Version {version}.\n"
    return _one("^%changelog$", entry, text)


def debian(text: str, version: str, time: dt.datetime) -> str:
    """Debian's changelog."""
    month = _MONTHS[time.month - 1]
    date = f"{_DAYS[time.weekday()]}, {time.day:02} {month} {time.year} {time:%H:%M:%S} +0000"
    head = f"hardsplice ({version}-1) unstable; urgency=medium"
    return f"{head}\n\n  * New upstream release.\n\n -- {_WHO}  {date}\n\n{text}"


def changes(text: str, version: str, time: dt.datetime) -> str:
    """CHANGELOG.md: what is unreleased is so no more."""
    heading = f"## [Unreleased]\n\n## [{version}] - {time:%Y-%m-%d}"
    return _one(r"^## \[Unreleased\]$", heading, text)


def current(root: Path) -> str:
    """The version of the sources in ``root``."""
    text = (root / "hardsplice/__init__.py").read_text(encoding="utf-8")
    (found,) = re.findall('^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(found)


PLACES: dict[str, Callable[[str, str, dt.datetime], str]] = {
    "hardsplice/__init__.py": module,
    SPEC: spec,
    "packaging/debian/changelog": debian,
    "CHANGELOG.md": changes,
}


def main() -> int:
    """Change the files."""
    if len(sys.argv) != 2 or not re.fullmatch(r"\d+\.\d+\.\d+", sys.argv[1]):
        print("usage: python -m tools.version MAJOR.MINOR.PATCH", file=sys.stderr)
        return 2
    now = dt.datetime.now(dt.UTC)
    changed = {ROOT / name: place for name, place in PLACES.items()}
    texts = {path: place(path.read_text(), sys.argv[1], now) for path, place in changed.items()}
    for path, text in texts.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
