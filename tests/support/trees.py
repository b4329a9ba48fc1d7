# SPDX-License-Identifier: GPL-2.0-or-later
"""Other releases of Debian than this machine's, with engines (tools/engine_trees.py). What runs in
one has namespaces of its own, the network's too, and a folder of the test's at its usual path.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tools import clean_root, engine_trees
from tools.launch import CHECKOUT

# One hierarchy of cgroups, as newer engines want it, whatever this machine has; and what rootless
# networks want.
_BEGUN = """
umount --recursive --lazy /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir /dev/net; mknod -m 666 /dev/net/tun c 10 200
exec "$@"
"""


class Tree:
    """One of them, which a test doesn't change: what is written is in a folder of the test's."""

    def __init__(self, suite: str, folder: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to enter a tree")
        root = engine_trees.found(suite)
        if root is None:
            pytest.skip(f"there is no tree of {suite}: `make test-engines` makes it")
        self.root = root
        self.folder = folder

    def words(self, words: list[str]) -> list[str]:
        """A command that runs one in there as root, and ends with its parent."""
        begun = clean_root.command("sh", "-c", _BEGUN, "sh", *words)
        return clean_root.entering(self.root, *begun, layer=self.folder)

    def stage(self) -> Path:
        """A copy of the package, with bytecode; it takes the tree's own bindings of libseccomp."""
        staged = self.folder / "stage"
        shutil.copytree(_compiled(self.root).name, staged)
        staged.chmod(0o755)
        return staged


@functools.cache
def _compiled(root: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder with the package, compiled by a tree's Python; it goes when this process ends."""
    made = tempfile.TemporaryDirectory(prefix="hardsplice-tests-")
    folder = Path(made.name)
    for name in ("hardsplice", "policy"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / name, folder / name, ignore=ignored)
    words = clean_root.command("python3", "-m", "compileall", "-q", str(folder / "hardsplice"))
    subprocess.run(clean_root.entering(root, *words, layer=folder), check=True)
    for layer in ("upper", "work", "root"):
        shutil.rmtree(folder / layer)
    return made
