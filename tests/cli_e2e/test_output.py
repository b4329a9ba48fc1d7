# SPDX-License-Identifier: GPL-2.0-or-later
"""What commands answer where standard output takes no more, or is not there."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.product import ROOT
from tests.support.stream import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
COMMANDS = {
    "hardsplice --help": "hardsplice: cannot write the answer",
    "hardsplice --version": "hardsplice: cannot write the answer",
    "hardsplice.ctl --help": "hardsplicectl: cannot write the answer",
    "hardsplice.ctl --version": "hardsplicectl: cannot write the answer",
    "hardsplice.ctl ports add --help": "hardsplicectl: cannot write the answer",
    "hardsplice.policy --help": "hardsplice: cannot write the answer",
    "hardsplice.policy show --role relay": "hardsplice: cannot write the policy",
    "hardsplice.policy export --role relay": "hardsplice: cannot write the policy",
}


def answer(words: str, redirection: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *words.split()]
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS:-$?}}', "bash", *command],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS)
def test_no_room_is_one_line_and_an_error(words: str) -> None:
    done = answer(words, ">/dev/full")
    told = f"{COMMANDS[words]}: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, told)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_reader_who_has_seen_enough_is_told_nothing(words: str) -> None:
    done = answer(words, "| :")
    assert done.returncode in (0, 1)  # whoever was faster
    assert done.stderr == ""


@pytest.mark.parametrize("words", [one for one in COMMANDS if ".policy" not in one])
def test_who_has_closed_it_wants_no_answer(words: str) -> None:
    done = answer(words, ">&-")
    assert (done.returncode, done.stderr) == (0, "")


# --- Ctrl-C while a command is still being loaded ---

# In the place of the interpreter's own signal: begin() is the first that a command does.
EARLY = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
from hardsplice import isolated
restore = isolated.restore_environment
def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    restore()
isolated.restore_environment = interrupted
isolated.begin(sys.argv[1])
"""


@pytest.mark.parametrize("module", ["hardsplice.__main__", "hardsplice.ctl.__main__"])
def test_an_early_interrupt_ends_it_as_any_other_program(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY, str(ROOT), module, "--help"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_nor_is_one_that_comes_later_an_exception(tmp_path: Path) -> None:
    """In the isolated interpreter, before it is known what runs in there."""
    (tmp_path / "interrupted.py").write_text(
        "import os, signal\ndef main():\n    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    folder = f"hardsplice={tmp_path}"
    script = str(ROOT / "hardsplice" / "isolated.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", folder, script, "interrupted"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
