# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that are folders: another architecture's programs on this machine's own kernel.

That works where the kernel has the other system call ABI built in (i386 on x86-64). The guest has
namespaces of its own and its folder as root, by pivot_root(2): to a process in a chroot the kernel
refuses user namespaces, which a COMMAND needs. Run as a program, by root, this module does that and
becomes the guest.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from hardsplice.kernel import linux
from tests.arches import tap

ROOT = Path(__file__).parents[2]
SOURCES = "/srv"  # where the guest finds the sources
_PATIENCE = 600  # seconds
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_NAMESPACES = (
    linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
)


def stage(folder: Path) -> Path:
    """Gather in `folder` what a guest runs: hardsplice, its pure Python dependency, checks."""
    import pyseccomp

    leave = shutil.ignore_patterns("__pycache__")
    for name in ("hardsplice", "policy", "tests/arches"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    shutil.copy(pyseccomp.__file__, folder)
    (folder / "tests/policy").mkdir()
    shutil.copy(ROOT / "tests/policy/numbers.tsv", folder / "tests/policy")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def run(tree: Path, sources: Path, arch: str) -> tuple[tap.Report, str]:
    """Run the guest in `tree`; its report, and all that it printed. Needs root."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.arches.folder", tree, sources, arch],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    ) as guest:  # fmt: skip
        try:
            printed, _ = guest.communicate(timeout=_PATIENCE)
        finally:
            guest.kill()
    return tap.read(printed.splitlines()), printed


def _enter(tree: str, sources: str, arch: str) -> NoReturn:
    """Become the guest."""
    linux.unshare(_NAMESPACES)
    guest = os.fork()
    if guest:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(guest, 0)[1]) & 0xFF)
    linux.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount(tree, tree, None, linux.MS_BIND)
    linux.mount(sources, tree + SOURCES, None, linux.MS_BIND)
    os.chdir(tree)
    # The old root comes to lie on the new one, and is taken away from there: pivot_root(2), NOTES.
    if ctypes.CDLL(None, use_errno=True).pivot_root(b".", b".") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    linux.umount2(".", linux.MNT_DETACH)
    os.chdir("/")
    os.execve(
        "/usr/bin/python3",
        ["/usr/bin/python3", "-m", "tests.arches.guest", arch],
        {"PYTHONPATH": SOURCES, "LC_ALL": "C.UTF-8"},
    )


if __name__ == "__main__":
    _enter(*sys.argv[1:])
