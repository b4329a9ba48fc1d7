# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplice with each combination of what it may find: a binding of libseccomp, and python-prctl
or none.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from tests.support.product import Program
from tools.launch import RUNTIME_MODULES

_DEBIAN = Path("/usr/lib/python3/dist-packages")
_BLOCKED = 'raise ModuleNotFoundError("No module named {0!r}", name={0!r})\n'


class Combination(NamedTuple):
    """Modules that provide, by hardsplice's own words for them."""

    library: str  # pyseccomp or seccomp
    prctl: str  # python-prctl or hardsplice itself

    @property
    def modules(self) -> set[str]:
        """What of others' can be imported."""
        return {self.library} | ({"prctl", "_prctl"} if self.prctl == "python-prctl" else set())

    def __str__(self) -> str:
        return f"{self.library}, {self.prctl}"


COMBINATIONS = [
    Combination(*both)
    for both in itertools.product(("pyseccomp", "seccomp"), ("python-prctl", "hardsplice itself"))
]


def origin(module: str) -> Path | None:
    """The file of a module for this Python, which a distribution may have put where a virtual
    environment doesn't look; None if there is none.
    """
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin)
    names = [module + suffix for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    return next(filter(Path.is_file, (_DEBIAN / name for name in (*names, f"{module}.py"))), None)


def lacking(combination: Combination) -> str:
    """What this machine lacks for a combination; empty where it has all."""
    missing = sorted(name for name in combination.modules if origin(name) is None)
    return f"this Python has no {', '.join(missing)}" if missing else ""


def fill(folder: Path, combination: Combination) -> None:
    """Have in ``folder``, which is to come first on the path, what a combination has; and in the
    place of the rest what says that it isn't installed.
    """
    for module in RUNTIME_MODULES:
        for found in folder.glob(f"{module}.*"):
            found.unlink()
        source = origin(module)
        if module in combination.modules and source is not None:
            shutil.copy(source, folder)
        else:
            (folder / f"{module}.py").write_text(_BLOCKED.format(module))
    for path in folder.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o644)


class Combined(Program):
    """hardsplice, staged, with a combination."""

    def __init__(self, combination: Combination) -> None:
        super().__init__()
        self.combination = combination

    def _places(self) -> tuple[tuple[str, bool], ...]:
        own = (sys.executable, os.path.realpath(sys.executable))
        return tuple((python, True) for python in own)

    def stage(self) -> Path:
        """The folder with the package, and with what the combination has."""
        is_new = self._stage is None
        folder = super().stage()
        if is_new:
            fill(folder, self.combination)
        return folder


class Distributed(Program):
    """hardsplice, staged, with what the distribution installed for its own Python."""

    def _places(self) -> tuple[tuple[str, bool], ...]:
        return (("/usr/bin/python3", True),)

    def stage(self) -> Path:
        """The folder with the package alone."""
        is_new = self._stage is None
        folder = super().stage()
        if is_new:
            for module in RUNTIME_MODULES:
                for found in folder.glob(f"{module}.*"):
                    found.unlink()
        return folder
