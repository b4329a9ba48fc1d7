# SPDX-License-Identifier: GPL-2.0-or-later
"""What an interpreter loads to read the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_importing_the_command_line_is_light() -> None:
    """Start-up time: none of the packages that only later stages need, and no heavy ones."""
    code = "import sys, hardsplice.app.command_line; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    heavy = {
        "argparse",
        "ctypes",
        "getopt",
        "gettext",
        "socket",
        "subprocess",
        "tomllib",
        "logging",
        "typing",
        "pyseccomp",
        "prctl",
        "shutil",
    }
    assert not loaded & heavy
    assert {name for name in loaded if name.startswith("hardsplice")} == {
        "hardsplice",
        "hardsplice.app",
        "hardsplice.app.command_line",
        "hardsplice.app.option_table",
        "hardsplice.app.options",
        "hardsplice.cli",
        "hardsplice.kernel",
        "hardsplice.model",
        "hardsplice.model.identity",
        "hardsplice.kernel.hints",
        "hardsplice.kernel.record",
        "hardsplice.model.lifetimes",
        "hardsplice.cli.parsing",
        "hardsplice.kernel.ephemeral",
        "hardsplice.model.direction",
        "hardsplice.model.errors",
        "hardsplice.model.foreign",
        "hardsplice.model.forward",
        "hardsplice.model.protocol",
        "hardsplice.app.modes",
        "hardsplice.cli.output",
        "hardsplice.model.ports",
        "hardsplice.model.spec",
        "hardsplice.cli.values",
    }
