# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests under the Pythons, C libraries and libseccomps of Debian's releases.

    python3 -m tools.pythons [--suite SUITE]... [--as root|user]... [--] [WORD...]

Each run is pytest's, in a clean root (tools/clean_root.py; root's rights and, the first time, the
network are needed), with a copy of what git tracks, and nothing that isn't a package of the
release: its Python, its bindings of libseccomp and prctl(2). WORDs are pytest's; without any, the
folders of tests that need nothing else are run. Root's run has the tests of an ordinary user too;
in `user` one is who runs the tests. What is in a root is that of the day on which it was made,
at most 14 days ago: to have a newer sid, remove root-sid-apt-* from ~/.cache/hardsplice.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import clean_root, dist
from tools.clean_root import BUILDER, Recipe

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("trixie", "sid")  # Python 3.13 with glibc 2.41, and 3.14 with 2.43 as this is written
FOLDERS = (
    "tests/unit",
    "tests/integration",
    "tests/policy",
    "tests/cli_e2e",
    "tests/relay",
    "tests/sandbox",
)
PACKAGES = (
    "bash-completion", "curl", "gcc", "git", "groff-base", "iproute2", "libc6-dev", "libcap2-bin",
    "man-db", "procps", "python3", "python3-hypothesis", "python3-prctl",
    "python3-prometheus-client", "python3-pytest", "python3-pytest-timeout", "python3-seccomp",
    "strace", "util-linux", "util-linux-extra",
)  # fmt: skip
_USERS = {"root": 0, "user": BUILDER}
_SOURCE = "/src"
# The shell is the PID namespace's first process, in place of pytest: it takes orphans.
_BELOW_PID_1 = ("sh", "-c", '"$@"; exit $?', "sh")
_PYTEST = ("python3", "-B", "-m", "pytest", "-p", "no:cacheprovider")


def run(suite: str, users: list[str], words: list[str]) -> bool:
    """Run the tests in a suite as each of these users; whether all pass. Raises
    clean_root.UnavailableError.
    """
    with tempfile.TemporaryDirectory(prefix="hardsplice-pythons-") as folder:
        root = clean_root.made(Recipe(suite, "apt", PACKAGES), Path(folder, "root"))
        for name in dist.tracked(ROOT):
            copy = root / _SOURCE.lstrip("/") / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy, follow_symlinks=False)
        passed = [_passes(root, suite, user, words) for user in users]  # none is left out
        return all(passed)


def _passes(root: Path, suite: str, user: str, words: list[str]) -> bool:
    print(f"--- {suite}, as {user} ---", flush=True)
    owner = f"{_USERS[user]}:{_USERS[user]}"
    subprocess.run(["chown", "--recursive", owner, root / _SOURCE.lstrip("/")], check=True)
    command = clean_root.command(*_BELOW_PID_1, *_PYTEST, *words, user=_USERS[user])
    entered = clean_root.entering(root, *command, folder=_SOURCE)
    return subprocess.run(entered, stdin=subprocess.DEVNULL, check=False).returncode == 0


def main() -> int:
    """Run them; 1 if any fails."""
    parser = argparse.ArgumentParser(prog="python3 -m tools.pythons")
    parser.add_argument("--suite", action="append", choices=SUITES)
    parser.add_argument("--as", dest="users", action="append", choices=_USERS)
    parser.add_argument("words", nargs="*", metavar="WORD", help="of pytest's command line")
    given = parser.parse_args()
    try:
        passed = [
            run(suite, given.users or list(_USERS), given.words or list(FOLDERS))
            for suite in given.suite or SUITES
        ]
    except clean_root.UnavailableError as reason:
        print(f"pythons: {reason}", file=sys.stderr)
        return 1
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
