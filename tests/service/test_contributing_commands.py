# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of CONTRIBUTING.md work. What runs all tests is only asked whether make knows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.netns import Identity, can_make
from tests.support.product import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
OWN = ".venv/bin/"


def test_there_are_no_other_blocks() -> None:
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert COMMANDS
    assert all(command.startswith(("make ", OWN)) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works(command: str) -> None:
    if command.startswith("make "):
        command = command.replace("make ", "make --dry-run ")
    elif command.startswith(f"{OWN}python -m hardsplice --debug") and not can_make(
        Identity("root")
    ):
        pytest.skip("nobody may create namespaces on this machine")
    command = command.replace(OWN, f"{Path(sys.executable).parent}/")
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout or done.stderr or "check" in command
