# SPDX-License-Identifier: GPL-2.0-or-later
"""The Pythons of this machine that can run hardsplice: the sandbox has to fit each of them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

VARIABLE = "HARDSPLICE_TEST_PYTHONS"
"""More of them, separated by colons."""

_PROBE = """
import sys
assert sys.version_info >= (3, 11)
print("%d.%d" % sys.version_info[:2])
"""
_NAME = re.compile(r"python3(\.(1[1-9]|[2-9]\d))?")
_NEEDED = "from hardsplice.sandbox import libseccomp; libseccomp.load()"


def candidates() -> list[str]:
    """Programs that may be one: named in the environment, on PATH, or pyenv's."""
    named = [path for path in os.environ.get(VARIABLE, "").split(":") if path]
    folders = [Path(folder) for folder in os.get_exec_path() if folder]
    with contextlib.suppress(OSError):
        folders += sorted(Path.home().glob(".pyenv/versions/*/bin"))
    found: list[str] = []
    for folder in folders:
        if folder.parts[-2:] == (".pyenv", "shims"):
            continue  # scripts that look for the ones below, and take their time
        with contextlib.suppress(OSError):  # somebody else's
            names = sorted(path.name for path in folder.glob("python3*"))
            found += [str(folder / name) for name in names if _NAME.fullmatch(name)]
    return [sys.executable, *named, *found, "/usr/bin/python3"]


@cache
def found(source: str) -> Mapping[str, str]:
    """One of each version, by version, that finds what hardsplice needs in the folder ``source``,
    or has it.
    """
    return _by_version(_NEEDED + _PROBE, source)


@cache
def any_found() -> Mapping[str, str]:
    """One of each version, by version, whatever it lacks."""
    return _by_version(_PROBE, "")


def _by_version(probed: str, source: str) -> Mapping[str, str]:
    by_version: dict[str, str] = {}
    tried: set[str] = set()
    for path in candidates():
        is_known = Path(path).name.removeprefix("python") in by_version
        if is_known or path in tried or not os.access(path, os.X_OK):
            continue
        tried.add(path)
        environment = {**os.environ, "PYTHONPATH": source}
        try:
            probe = subprocess.run(
                [path, "-c", probed], env=environment, cwd="/",
                capture_output=True, text=True, check=False, timeout=20,
            )  # fmt: skip
        except OSError:
            continue
        if probe.returncode == 0:
            by_version.setdefault(probe.stdout.strip(), path)
    return by_version
