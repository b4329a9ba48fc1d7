# SPDX-License-Identifier: GPL-2.0-or-later
"""The shell that waits for the end of ports, with a connection that a test holds."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hardsplice.frontends import stub
from tests.support import procfs
from tests.support.stream import PATIENCE
from tools.launch import CHECKOUT


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
        inode = str(self.path.stat().st_ino)
        given = ["8", "9", "1", str(self.path), inode, "", "unlimited", file, python]
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


def logging(folder: Path) -> str:
    """A search path for programs where the system's log is a file, `logged`, and no pause lasts."""
    for name, text in {
        "logger": f'printf "%s\\n" "$@" >{folder}/logged',
        "sleep": f"echo $1 >>{folder}/slept",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("missing", ["python3", "program.py"])
def test_the_systems_log_says_that_the_program_is_gone(missing: str, tmp_path: Path) -> None:
    python, file = tmp_path / "python3", tmp_path / "program.py"
    python.write_text("#!/bin/sh\nexit 7\n")
    python.chmod(0o755)
    file.touch()
    search = logging(tmp_path)
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


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_the_systems_log_says_that_the_program_cannot_be_executed(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, and the system refuses, as where memory is short."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "sh").symlink_to(found)
    monkeypatch.setattr(stub, "SHELL", str(tmp_path / "sh"))
    python = tmp_path / "python3"
    python.write_text("#!/nonexistent/interpreter\n")
    python.chmod(0o755)
    with Waiting(tmp_path, str(python), "/dev/null", PATH=logging(tmp_path)) as waiting:
        waiting.server.close()
        assert waiting.process.wait(PATIENCE) == 1
    assert not waiting.path.exists()
    if shell != "busybox":  # which has a logger of its own
        *_, line = (tmp_path / "logged").read_text().splitlines()
        why = f"hardsplice: cannot forward ports any more: {python} cannot be executed"
        assert line == f"{why}; {stub.NEXT_STEP}"


# A program that becomes the shell, and says its limit of processor time whenever it starts.
PROGRAM = """
import os, resource, sys
sys.argv.pop(1)
_, checkout, said, connection, ready, shell = sys.argv
sys.path.insert(0, checkout)
from hardsplice.frontends import stub
from hardsplice.frontends.publishing import Published
from hardsplice.model.errors import HardspliceError
with open(said, "a") as file:
    print(resource.getrlimit(resource.RLIMIT_CPU), file=file)
if stub._again().times:
    sys.exit(7)
stub.SHELL, stub.SECONDS = shell, 1
published = Published(int(connection), [], None)
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
try:
    stub.become("name", "title", published, stub.Ready(int(ready), "1"), (), limit, None)
except HardspliceError as failure:
    os.write(1, b"error: ")
    os.write(int(ready), str(failure).encode())
"""


class Becoming:
    """A program that becomes the shell, with a server that a test is."""

    def __init__(self, folder: Path, shell: str = stub.SHELL) -> None:
        program, self.said = folder / "program.py", folder / "said"
        program.write_text(PROGRAM)
        self.server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.told, tell = os.pipe()
        passed = (theirs.fileno(), tell)
        given = [str(CHECKOUT), str(self.said), *map(str, passed), shell]
        words = [sys.executable, "-I", str(program), "module", *given]
        self.process = subprocess.Popen(words, pass_fds=passed, stdout=subprocess.PIPE)
        os.close(tell)
        theirs.close()

    def __enter__(self) -> Becoming:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self.process.kill()
        self.process.communicate()
        os.close(self.told)

    def limits(self) -> list[str]:
        return self.said.read_text().splitlines()


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_a_line_without_an_end_is_not_read_for_ever(shell: str, tmp_path: Path) -> None:
    """From a server that was taken over. The program has its own limits again when it is back."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "sh").symlink_to(found)
    with Becoming(tmp_path, str(tmp_path / "sh")) as one:
        assert os.read(one.told, 10) == b"1"
        with contextlib.suppress(ConnectionError):  # until it has ended
            while True:
                for _ in range(10_000):
                    one.server.send(b"x")
                peak = procfs.status(one.process.pid).get("VmHWM", "0 kB")  # none of a zombie
                assert int(peak.split()[0]) < 64 << 10
        assert one.process.wait(PATIENCE) in (-signal.SIGXCPU, 128 + signal.SIGXCPU)
    one.said.unlink()
    with Becoming(tmp_path, str(tmp_path / "sh")) as one:
        assert os.read(one.told, 10) == b"1"
        one.server.close()
        assert one.process.wait(PATIENCE) == 7
        before, after = one.limits()
        assert before == after


def test_an_error_is_told_where_there_is_no_shell(tmp_path: Path) -> None:
    """Where it would have been before: an engine reads it."""
    with Becoming(tmp_path, str(tmp_path / "sh")) as one:
        said, _ = one.process.communicate(timeout=PATIENCE)
        assert said == b"error: "
        failure = os.read(one.told, 1000).decode()
        assert failure == f"cannot execute {tmp_path}/sh: No such file or directory"
