# SPDX-License-Identifier: GPL-2.0-or-later
"""The package's programs for container engines, as files that an engine executes."""

from __future__ import annotations

from pathlib import Path

_PROGRAM = """#!/usr/bin/python3 -I
import sys
sys.path.insert(0, "{stage}")
from hardsplice.frontends import programs
sys.exit(programs.{function}())
"""


def executable(path: Path, stage: Path, function: str) -> Path:
    """Write a program to ``path``: a function of frontends/programs.py, of the package in a folder
    that everybody can read, as a console script would start it.
    """
    path.write_text(_PROGRAM.format(stage=stage, function=function))
    path.chmod(0o755)
    return path
