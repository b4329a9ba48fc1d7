# SPDX-License-Identifier: GPL-2.0-or-later
"""Clean roots for tests: the one in which Debian's package is built, and what is done in the one in
which it is installed. tests/packaging/conftest.py makes them.
"""

from __future__ import annotations

from pathlib import Path

from tools import clean_root, deb
from tools.clean_root import Recipe

ROOT = Path(__file__).parents[2]
TESTS = ROOT / deb.DEBIAN / "tests"
SUITES = ("bookworm", "trixie")
# What a system has, and what the package recommends; and what it depends on.
BOOTED = (
    "apparmor",
    "bash-completion",
    "dbus",
    "iproute2",
    "libnss-systemd",
    "man-db",
    "procps",
    "systemd-sysv",
)
NEEDED = ("python3", "python3-seccomp")
APT = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet=2", "--yes")
INSTALL = (*APT, "--no-install-recommends", "install", "/srv/hardsplice.deb")


def builder(suite: str) -> Recipe:
    """Where it is built, checked and tried by autopkgtest."""
    return deb.builder(ROOT, suite, "autopkgtest", "lintian", *BOOTED)


def succeeds(root: Path, *words: str, user: int = 0) -> str:
    """What a command in a root says that has to succeed."""
    done = clean_root.run(root, *words, user=user, timeout=300)
    assert done.returncode == 0, done.stdout
    return done.stdout
