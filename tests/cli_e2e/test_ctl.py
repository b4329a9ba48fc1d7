# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplicectl as a process: at a terminal, and with an output that takes nothing. What it asks
is a fake; tests/unit/ctl has the rest.
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stream import PATIENCE
from tests.unit.control.fake_world import FakeWorld
from tests.unit.ctl.fake_server import serving

COMMAND = [sys.executable, "-m", "hardsplice.ctl"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    with serving(tmp_path, monkeypatch) as world:
        yield world


def test_top_on_a_terminal_ends_by_q_and_leaves_it_as_it_was(world: FakeWorld) -> None:
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    command = [*COMMAND, "top", "--interval", "0.1"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        shown = b""
        while shown.count(b"\x1b[H") < 3:  # three frames
            shown += os.read(ours, 65536)
        os.write(ours, b"q")
        while not shown.endswith(b"\x1b[?25h\x1b[?1049l"):
            shown += os.read(ours, 65536)
        assert process.wait(PATIENCE) == 0
    assert shown.startswith(b"\x1b[?1049h\x1b[?25l")
    assert b"hardsplice 1.2.3" in shown
    assert termios.tcgetattr(theirs) == settings
    os.close(ours)
    os.close(theirs)


def test_a_reader_that_has_seen_enough_is_no_error(world: FakeWorld) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, "metrics"], stdout=write, stderr=subprocess.PIPE, check=False, timeout=PATIENCE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("words", [["status"], ["--json", "status"], ["top", "--interval", "0.1"]])
def test_an_answer_for_which_there_is_no_room_is_an_error(
    world: FakeWorld, words: list[str]
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "hardsplicectl: cannot write the answer: No space left on device\n"


@pytest.mark.parametrize("words", ["status", "--json status", "ports", "metrics"])
def test_an_answer_that_the_shell_wants_nothing_of_is_none(world: FakeWorld, words: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$@" {words} >&-', "sh", *COMMAND],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_locale_has_no_code_for_is_no_error(world: FakeWorld) -> None:
    world.lacking = ["\u65e5"]
    done = subprocess.run(
        [*COMMAND, "status"], capture_output=True, check=False,
        env={**os.environ, "LC_ALL": "en_US.ISO-8859-1", "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
