# SPDX-License-Identifier: GPL-2.0-or-later
"""One PID file, one instance: who has it, who only seems to, and what is left of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardsplice.app import pidfile
from hardsplice.app.pidfile import PidFile, remove_left
from hardsplice.model.errors import HardspliceError

# Somebody else, who has a lock: how, flags, the path. Ends with its standard input.
_HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[3], int(sys.argv[2]))
getattr(fcntl, sys.argv[1])(fd, int(sys.argv[4]))
print("has it", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(path: Path, kind: str, how: int, flags: int = os.O_RDONLY) -> Iterator[None]:
    words = [sys.executable, "-I", "-c", _HOLDER, kind, str(flags), str(path), str(how)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"has it\n"
        yield


def let_go(file: PidFile) -> None:
    os.close(file.held)
    with contextlib.suppress(OSError):
        os.close(file.fd)


def test_it_is_written_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    file = PidFile(str(path))
    assert path.read_text() == ""
    file.write()
    assert path.read_text() == f"{os.getpid()}\n"
    let_go(file)


def test_a_stale_one_is_no_obstacle_whoevers_number_it_has(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    for text in ("999999999\n", f"{os.getppid()}\n", "no number", "", "1\n"):
        path.write_text(text)
        file = PidFile(str(path))
        assert path.read_text() == text, "until all is ready"
        file.write()
        assert path.read_text() == f"{os.getpid()}\n"
        let_go(file)


def test_of_two_that_start_the_second_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.touch()
    with holder(path, "lockf", fcntl.LOCK_EX, os.O_RDWR), pytest.raises(HardspliceError) as raised:
        PidFile(str(path))
    assert str(raised.value) == (
        f"cannot write PID file {path}: another instance has it, one that is about to start"
    )
    assert raised.value.hint is not None
    let_go(PidFile(str(path)))


def test_while_one_runs_the_second_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pid"
    path.write_text("4711\n")
    monkeypatch.setattr(pidfile, "_is_ours", lambda pid: pid == 4711)
    before = len(os.listdir("/proc/self/fd"))
    with holder(path, "flock", fcntl.LOCK_EX), pytest.raises(HardspliceError, match="process 4711"):
        PidFile(str(path))
    assert path.read_text() == "4711\n"
    assert len(os.listdir("/proc/self/fd")) == before
    let_go(PidFile(str(path)))


@pytest.mark.parametrize(
    ("kind", "how"),
    [("flock", fcntl.LOCK_EX), ("flock", fcntl.LOCK_SH), ("lockf", fcntl.LOCK_SH)],
)
def test_a_strangers_lock_is_neither_waited_for_nor_an_instance(
    tmp_path: Path, kind: str, how: int
) -> None:
    """Those that somebody can have who may read the file: nobody else's start depends on them."""
    path = tmp_path / "pid"
    path.write_text(f"{os.getppid()}\n")
    with holder(path, kind, how):
        file = PidFile(str(path))
        file.write()
        assert path.read_text() == f"{os.getpid()}\n"
        let_go(file)


def test_one_that_is_removed_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pid"
    path.touch()
    claim = PidFile._claim
    rounds: list[int] = []

    def removed(self: PidFile) -> None:
        claim(self)
        if not rounds:
            path.unlink()
        rounds.append(self.fd)

    monkeypatch.setattr(PidFile, "_claim", removed)
    file = PidFile(str(path))
    file.write()
    assert path.read_text() == f"{os.getpid()}\n"
    assert len(rounds) == 2
    let_go(file)


def test_what_an_ended_process_left_is_removed_and_another_instances_is_not(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    for text, stays in (("", False), ("42\n", False), ("43\n", True)):
        path.write_text(text)
        with holder(path, "flock", fcntl.LOCK_EX):
            remove_left(str(path), 42)
            assert path.exists(), "it is that of an instance which has just started"
        remove_left(str(path), 42)
        assert path.exists() == stays
