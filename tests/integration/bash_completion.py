# SPDX-License-Identifier: GPL-2.0-or-later
"""What bash offers by the completions in packaging/, without the bash-completion package."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "packaging" / "completions"

_CODE = """
    compopt() { :; }    # there is no completion under way whose options it could set
    source "$1"; shift
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    "_$1"
    ((${#COMPREPLY[@]} == 0)) || printf '%s\\n' "${COMPREPLY[@]}"
"""


def offered(program: str, *words: str, cwd: Path | None = None) -> list[str]:
    """What is offered for the last of the words, which stand after the program's name."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    script = str(FOLDER / f"{program}.bash")
    done = subprocess.run(
        [bash, "--norc", "--noprofile", "-c", _CODE, "bash", script, program, *words],
        cwd=cwd, env={**os.environ, "LC_ALL": "C.UTF-8"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()
