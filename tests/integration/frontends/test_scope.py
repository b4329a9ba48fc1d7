# SPDX-License-Identifier: GPL-2.0-or-later
"""A service manager that is asked for a scope isn't waited for before there is nothing else to do,
nor for long. tests/service/test_scope.py has a real one.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from hardsplice.frontends import scope

BUSCTL = "#!/bin/sh\necho $$ >{started}~; mv {started}~ {started}\nexec sleep {seconds}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's, with a bus."""
    (tmp_path / "bus").touch()
    monkeypatch.setattr("hardsplice.kernel.ids.is_real_root", lambda: False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def put_busctl(folder: Path, seconds: float) -> Path:
    """A busctl that takes so long, and leaves a file with its PID."""
    program, started = folder / "busctl", folder / "started"
    program.write_text(BUSCTL.format(started=started, seconds=seconds))
    program.chmod(0o755)
    return started


def wait_until_started(started: Path) -> None:
    deadline = time.monotonic() + 10.0
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert started.exists()


def is_over(started: Path) -> bool:
    """Whether that busctl has ended, and its status was read."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(int(started.read_text()), os.WNOHANG)
        return False
    return True


def test_it_is_asked_beside_what_is_done_meanwhile(folder: Path) -> None:
    started = put_busctl(folder, 0.01)
    with scope.leaving_unit():
        wait_until_started(started)
    assert is_over(started)


def test_one_that_does_not_answer_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope, "SECONDS", 0.5)
    started = put_busctl(folder, 100)
    began = time.monotonic()
    with scope.leaving_unit():
        wait_until_started(started)
    assert time.monotonic() - began < 50.0
    assert is_over(started)


def test_an_error_meanwhile_is_passed_on_and_nothing_is_left(folder: Path) -> None:
    started = put_busctl(folder, 0.01)

    def fail() -> None:
        wait_until_started(started)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), scope.leaving_unit():
        fail()
    assert is_over(started)


def test_without_a_program_nothing_happens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with scope.leaving_unit():
        pass


def test_root_of_the_machine_asks_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardsplice.kernel.ids.is_real_root", lambda: True)
    started = put_busctl(folder, 0.01)
    with scope.leaving_unit():
        pass
    assert not started.exists()
