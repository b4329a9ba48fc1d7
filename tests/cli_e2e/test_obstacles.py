# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever stands where a file should be, and whatever happens to the process in the background:
the start ends soon, with one line, and leaves neither a process nor a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import procfs
from tests.support.files import KINDS, make_something
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
SOON = 10  # seconds; what hangs does so for good


@pytest.fixture
def folder(user_directory: Path) -> Iterator[Path]:
    """A folder of the user's with a path in it where there is nothing yet."""
    place = user_directory / "place"
    place.mkdir()
    owner = user_directory.stat()
    os.chown(place, owner.st_uid, owner.st_gid)
    yield place
    shutil.rmtree(place)


def start(
    program: Program, identity: Identity, *arguments: str
) -> subprocess.CompletedProcess[str]:
    argv, environment = program.argv(identity)
    return subprocess.run(
        [*argv, *arguments], env=environment, cwd="/", stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=SOON, check=False,
    )  # fmt: skip


def only_line(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 1
    first, *rest = ran.stderr.splitlines()
    assert len(rest) <= 1
    assert first.startswith("hardsplice: cannot ")
    return first


@pytest.mark.parametrize("mode", ["foreground", "background"])
@pytest.mark.parametrize("option", ["--pid", "--log-file", "--control"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_is_left_alone_and_not_waited_for(
    program: Program, identity: Identity, folder: Path, namespace: Namespace,
    kind: str, option: str, mode: str,
) -> None:  # fmt: skip
    path = make_something(folder / "there", kind)
    before = sorted(folder.iterdir()), path.lstat().st_ino
    flags = ["--foreground"] if mode == "foreground" else []
    target = str(namespace.pid)
    if option == "--control" and kind == "socket":
        pytest.skip("a stale socket is what the next start replaces")
    said = only_line(start(program, identity, *flags, option, str(path), "-t", "none", target))
    assert str(path) in said
    assert (sorted(folder.iterdir()), path.lstat().st_ino) == before


@pytest.mark.parametrize("mode", ["foreground", "background"])
@pytest.mark.parametrize("reader", [False, True])
def test_a_pipe_that_somebody_reads_is_no_pid_file_either(
    program: Program, identity: Identity, folder: Path, namespace: Namespace,
    *, reader: bool, mode: str,
) -> None:  # fmt: skip
    path = make_something(folder / "there", "fifo")
    path.chmod(0o666)
    with contextlib.ExitStack() as stack:
        if reader:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            stack.callback(os.close, fd)
        flags = ["--foreground"] if mode == "foreground" else []
        ran = start(program, identity, *flags, "-P", str(path), "-t", "none", str(namespace.pid))
        assert "it is no regular file" in only_line(ran)


def test_a_stranger_who_locks_the_folder_costs_a_moment(
    program: Program, identity: Identity, folder: Path, namespace: Namespace
) -> None:
    """Whoever may look into a folder can have a lock on it."""
    fd = os.open(folder, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    arguments = ["-f", "--control", str(folder / "control"), str(namespace.pid)]
    try:
        instance = Instance(program, identity, arguments)
        try:
            instance.wait_ready()
            instance.stop()
        finally:
            instance.discard()
    finally:
        os.close(fd)


def test_a_stranger_who_locks_the_log_file_costs_nothing(
    program: Program, identity: Identity, folder: Path, namespace: Namespace
) -> None:
    path = folder / "log"
    path.touch()
    owner = folder.stat()
    os.chown(path, owner.st_uid, owner.st_gid)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        ran = start(program, identity, "-l", str(path), "-t", "none", str(namespace.pid))
        assert "another hardsplice writes it" in only_line(ran)


def test_a_socket_where_nobody_accepts_is_not_waited_for(
    program: Program, identity: Identity, folder: Path, namespace: Namespace
) -> None:
    path = folder / "control"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        path.chmod(0o666)
        client.connect(str(path))
        ran = start(program, identity, "--control", str(path), str(namespace.pid))
        assert "another process listens there" in only_line(ran)


@pytest.mark.parametrize("umask", [0o777, 0o277, 0o022, 0])
def test_files_are_their_owners_to_use_whatever_the_umask(
    program: Program, identity: Identity, folder: Path, namespace: Namespace, umask: int
) -> None:
    """And it goes on to keep others out."""
    made = {"--pid": 0o644, "--log-file": 0o640, "--control": 0o600}
    arguments = [word for option in made for word in (option, str(folder / option[2:]))]
    argv, environment = program.argv(identity)
    done = subprocess.run(
        [*argv, *arguments, "-t", "none", str(namespace.pid)], env=environment, cwd="/",
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SOON, check=False,
        umask=umask,
    )  # fmt: skip
    namespace.kill()
    assert (done.returncode, done.stderr) == (0, "")
    modes = {option: (folder / option[2:]).stat().st_mode & 0o777 for option in made}
    assert modes == {option: mode & ~(umask & 0o077) for option, mode in made.items()}


# --- the process that waits for the one in the background ---


class Held:
    """hardsplice on its way into the background, held up at a folder that this test has locked."""

    def __init__(self, program: Program, identity: Identity, folder: Path, pid: int) -> None:
        self._lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        argv, environment = program.argv(identity)
        self.process = subprocess.Popen(
            [*argv, "-P", str(folder / "pid"), "--control", str(folder / "control"), str(pid)],
            env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        eventually((folder / "pid").exists, "it begins")

    @property
    def child(self) -> int:
        (child,) = procfs.descendants(self.process.pid)
        return child

    def end(self) -> tuple[int, str]:
        """Its status and what it says; the lock is gone by then."""
        try:
            _, said = self.process.communicate(timeout=PATIENCE)
        finally:
            os.close(self._lock)
        return self.process.returncode, said


def test_if_the_process_in_the_background_is_killed_that_is_said(
    program: Program, identity: Identity, folder: Path, namespace: Namespace
) -> None:
    held = Held(program, identity, folder, namespace.pid)
    os.kill(held.child, signal.SIGKILL)
    status, said = held.end()
    assert (status, said) == (1, "hardsplice: cannot start hardsplice: its process ended early\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_if_the_process_that_waits_is_ended_the_other_one_is_too(
    program: Program, identity: Identity, folder: Path, namespace: Namespace,
    number: signal.Signals, *, stopped: bool,
) -> None:  # fmt: skip
    """A stopped one stands for one that hangs, wherever that may be."""
    held = Held(program, identity, folder, namespace.pid)
    child = held.child
    if stopped:
        os.kill(child, signal.SIGSTOP)
    held.process.send_signal(number)
    status, said = held.end()
    assert (status, said) == (-number, "")
    assert not procfs.alive(child)
    assert list(folder.iterdir()) == []


def test_if_the_process_that_waits_is_killed_the_other_one_does_not_stay(
    program: Program, identity: Identity, folder: Path, namespace: Namespace
) -> None:
    """Nobody was told that it is ready."""
    held = Held(program, identity, folder, namespace.pid)
    child = held.child
    held.process.kill()
    held.end()
    eventually(lambda: not procfs.alive(child), "the process in the background ends")


def test_a_signal_that_comes_once_it_is_ready_changes_nothing(
    program: Program, identity: Identity, folder: Path, namespace: Namespace
) -> None:
    """The process that waits is held up while it prints the audit, which is more than the pipe
    takes.
    """
    pid_file = folder / "pid"
    argv, environment = program.argv(identity)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen(
        [*argv, "--audit=json", "-P", str(pid_file), "-t", "none", str(namespace.pid)],
        env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writer)
    with open(reader, "rb") as audit:
        audit.read(1)  # it was told that all is ready
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
        audit.read()
    _, said = process.communicate(timeout=PATIENCE)
    server = int(pid_file.read_text())
    running = procfs.alive(server)
    namespace.kill()
    assert (process.returncode, said, running) == (0, b"", True)
    pid_file.unlink()


@pytest.mark.parametrize("ignored", [True, False])
@pytest.mark.parametrize("mode", ["command", "status", "background"])
def test_who_ignores_the_ends_of_children_can_start_it_and_command_ignores_them_too(
    program: Program, identity: Identity, namespace: Namespace, mode: str, *, ignored: bool
) -> None:
    """As some daemons do, and whatever they start without a thought."""
    argv, environment = program.argv(identity)
    words = {
        "command": ["-q", "grep", "SigIgn", "/proc/self/status"],
        "status": ["-q", "sh", "-c", "exit 7"],
        "background": [str(namespace.pid)],
    }

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN if ignored else signal.SIG_DFL)

    done = subprocess.run(
        [*argv, "-t", f"127.0.0.1/{free_ports()}:80", *words[mode]], env=environment, cwd="/",
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
        preexec_fn=ignore,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7 if mode == "status" else 0, "")
    if mode == "command":
        mask = int(done.stdout.split()[1], 16)
        assert bool(mask >> signal.SIGCHLD - 1 & 1) == ignored


# --- nobody takes what is said ---


@pytest.mark.parametrize("end", ["closed pipe", "full", "closed"])
@pytest.mark.parametrize("form", ["--audit", "--audit=json"])
def test_an_audit_that_nobody_takes_costs_nothing_else(
    program: Program, identity: Identity, folder: Path, namespace: Namespace, form: str, end: str
) -> None:
    pid_file = folder / "pid"
    argv, environment = program.argv(identity)
    with contextlib.ExitStack() as stack:
        if end == "closed pipe":
            reader, output = os.pipe()
            os.close(reader)
        else:
            output = os.open("/dev/full", os.O_WRONLY)
        stack.callback(os.close, output)
        shell = ["sh", "-c", 'exec "$@" >&-', "sh"] if end == "closed" else []
        ran = subprocess.run(
            [*shell, *argv, form, "-P", str(pid_file), "-t", "none",
             str(namespace.pid)],
            env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
    server = int(pid_file.read_text())
    running = procfs.alive(server)
    pidfd = os.pidfd_open(server)
    os.kill(server, signal.SIGTERM)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
    pid_file.unlink()
    assert running, "it serves, as status 0 says"
    assert ran.returncode == 0
    assert "Traceback" not in ran.stderr
    if end == "full":
        assert ran.stderr == "hardsplice: cannot write the audit: No space left on device\n"


@pytest.mark.parametrize("close", ["2>&-", "2>/dev/full", "2>&1 | :"])
def test_an_error_that_nobody_takes_is_one_all_the_same(
    program: Program, identity: Identity, close: str
) -> None:
    argv, environment = program.argv(identity)
    script = f'"$@" {close}; exit ${{PIPESTATUS:-$?}}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *argv, "-t", "nonsense", "true"],
        env=environment, cwd="/", capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 1


@pytest.fixture
def full() -> Iterator[int]:
    """The end of a pipe that takes nothing more and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


def told_when_ready(
    program: Program, identity: Identity, fd: int
) -> subprocess.CompletedProcess[str]:
    argv, environment = program.argv(identity)
    return subprocess.run(
        [*argv, "-q", "--ready-fd", str(fd), "-t", "none", "true"], env=environment, cwd="/",
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SOON, check=False,
        pass_fds=[fd],
    )  # fmt: skip


def test_nor_does_a_ready_descriptor_that_nobody_reads(
    program: Program, identity: Identity, full: int
) -> None:
    done = told_when_ready(program, identity, full)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_ready_descriptor_that_can_not_be_written_is_refused(
    program: Program, identity: Identity
) -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        done = told_when_ready(program, identity, fd)
    finally:
        os.close(fd)
    said = f"hardsplice: cannot write --ready-fd {fd}: it is open for reading only\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_a_log_that_nobody_reads_holds_up_neither_start_nor_service_nor_end(
    program: Program, identity: Identity, namespace: Namespace, full: int
) -> None:
    argv, environment = program.argv(identity)
    port = free_ports()
    ready, told = os.pipe()
    process = subprocess.Popen(
        [*argv, "-f", "--trace", "--ready-fd", str(told), "-t", f"127.0.0.1/{port}:80",
         str(namespace.pid)],
        env=environment, cwd="/", stdin=subprocess.DEVNULL, stderr=full, pass_fds=[told],
    )  # fmt: skip
    os.close(told)
    try:
        assert select.select([ready], [], [], PATIENCE)[0], "it starts"
        with namespace.socket(socket.AF_INET) as listener:
            listener.bind(("127.0.0.1", 80))
            listener.listen()
            listener.settimeout(PATIENCE)
            for _ in range(50):
                with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                    server, _ = listener.accept()
                    with server:
                        server.sendall(b"served")
                        assert client.recv(6, socket.MSG_WAITALL) == b"served"
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        os.close(ready)
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "status"), [(["-t", "nonsense", "true"], 1), (["-t", "none", "/nonexistent"], 127)]
)
def test_nor_does_an_error_that_nobody_reads(
    program: Program, identity: Identity, full: int, words: list[str], status: int
) -> None:
    argv, environment = program.argv(identity)
    process = subprocess.Popen(
        [*argv, *words], env=environment, cwd="/", stdin=subprocess.DEVNULL, stderr=full
    )
    try:
        assert process.wait(PATIENCE) == status
    finally:
        process.kill()
        process.wait()


def test_no_limit_of_the_caller_is_asked_to_be_raised(
    program: Program, identity: Identity, folder: Path
) -> None:
    """The log file may have a mebibyte by default."""
    path = folder / "log"
    argv, environment = program.argv(identity)
    words = [*argv, "-d", "--log-file", str(path), "-t", "none", "true"]
    done = subprocess.run(
        ["prlimit", "--fsize=500000:500000", *words],
        env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, path.read_text()
