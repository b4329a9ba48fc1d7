# SPDX-License-Identifier: GPL-2.0-or-later
"""Unit tests that start a process fail, in whichever way they do it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In a process of its own, which has no children yet.
PROGRAM = """
import os, subprocess, sys
from tests.support.children import none_started
with none_started():
    {}
"""


@pytest.mark.parametrize(
    ("what", "is_noticed"),
    [
        ("os.fork() or os._exit(0)", True),
        ("os.waitpid(os.fork() or os._exit(0), 0)", True),
        ("os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)", True),
        ("subprocess.run(['true'])", True),
        ("os.getpid()", False),
    ],
)
def test_a_process_is_noticed(what: str, is_noticed: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{}", what, 1)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ("belongs into tests/integration" in done.stderr) == is_noticed, done.stderr
    assert (done.returncode == 0) != is_noticed
