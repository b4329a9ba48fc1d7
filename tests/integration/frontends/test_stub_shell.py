# SPDX-License-Identifier: GPL-2.0-or-later
"""The shell that waits for the end of ports, with a connection that a test holds."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from hardsplice.frontends import stub
from tests.support.stream import PATIENCE


class Waiting:
    """A shell that waits, with a server that a test is."""

    def __init__(self, folder: Path, *program: str, **variables: str) -> None:
        """``program`` is its interpreter, and the file that this runs."""
        self.path = folder / "socket"
        self.path.touch()
        self.server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        told, tell = os.pipe()
        places = f"8<&{theirs.fileno()} 9>&{tell} {theirs.fileno()}>&- {tell}>&-"
        python, file = program
        given = ["8", "9", "1", str(self.path), str(self.path.stat().st_ino), "", file, python]
        command = ["bash", "-c", f'exec "$@" {places}', "x", stub.SHELL, "-c", stub.SCRIPT, "x"]
        passed = (theirs.fileno(), tell)
        with open(told, "rb") as ready:
            self.process = subprocess.Popen(
                [*command, *given, file], pass_fds=passed, env={**os.environ, **variables}
            )
            os.close(tell)
            theirs.close()
            assert ready.read() == b"1"

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self.process.kill()
        self.process.wait(PATIENCE)


def test_one_that_is_told_to_end_as_its_server_ends_removes_its_socket(tmp_path: Path) -> None:
    with Waiting(tmp_path, "false", "/dev/null") as shell:
        shell.server.shutdown(socket.SHUT_RD)  # what it says can't be sent
        shell.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            shell.process.wait(0.2)  # it waits for the server's end
        shell.server.close()
        assert shell.process.wait(PATIENCE) == 0
    assert not shell.path.exists()


@pytest.mark.parametrize("name", ["sh", "busybox"])
def test_a_shell_of_any_kind_starts_under_a_title(name: str, tmp_path: Path) -> None:
    """Busybox is many programs, of which it becomes the one whose name it is started by."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    (tmp_path / "sh").symlink_to(program)
    words = [stub.titled("docker-proxy -container-ip ::1"), "-c", "echo $0", "name"]
    said = subprocess.run(
        words, executable=tmp_path / "sh", capture_output=True, text=True, check=True
    ).stdout
    assert said == "name\n"


@pytest.mark.parametrize("missing", ["python3", "program.py"])
def test_the_systems_log_says_that_the_program_is_gone(missing: str, tmp_path: Path) -> None:
    python, file = tmp_path / "python3", tmp_path / "program.py"
    for name, text in {
        "logger": f'printf "%s\\n" "$@" >{tmp_path}/logged',
        "sleep": f"echo $1 >>{tmp_path}/slept",
        "python3": "exit 7",
        "program.py": "",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    search = f"{tmp_path}:{os.environ['PATH']}"
    with Waiting(tmp_path, str(python), str(file), PATH=search) as shell:
        shell.server.close()
        assert shell.process.wait(PATIENCE) == 7
    (tmp_path / missing).unlink()
    with Waiting(tmp_path, str(python), str(file), PATH=search) as shell:
        shell.server.close()
        assert shell.process.wait(PATIENCE) == 1
    assert not shell.path.exists()
    assert (tmp_path / "slept").read_text().split() == ["1", "2", "4", "8", "0"]
    *_, line = (tmp_path / "logged").read_text().splitlines()
    why = f"hardsplice: cannot forward ports any more: {tmp_path}/{missing} is gone"
    assert line == f"{why}; install hardsplice, and {stub.NEXT_STEP}"
