# SPDX-License-Identifier: GPL-2.0-or-later
"""The host monitor writes its messages to the terminal, and can't read what is typed there."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import re
import select
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardsplice.ctl.client import Client
from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Program, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
PYTHON = ("/usr/bin/python3", "-I", "-c")  # which others may run, too
TYPED = b"secret\n" * 4  # a line for each attempt

# Each way to a byte of descriptor 2 that a monitor's policy has a call for, tried in the host
# monitor once it is locked down, each in a process of its own; what came of it is written there.
READ = """
import os, sys
from hardsplice.ipc import descriptors
from hardsplice.kernel import linux
from hardsplice.kernel import scm
from hardsplice.kernel import socketcalls
from hardsplice.app.start import main
from hardsplice.monitor.host import HostMonitor
if sys.argv.pop(1) == "unfixed":
    descriptors.write_only = lambda fd: None
def splice():
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    return os.splice(2, writing, 100, flags=FLAGS)
def receive():
    got = socketcalls.receive_byte(2, 0)
    return len(got) if isinstance(got, bytes) else 0
TRIES = {
    "read": lambda: len(os.read(2, 100)),
    "pread": lambda: len(os.pread(2, 100, 0)),
    "recvfrom": receive,
    "recvmsg": lambda: len(messages.recvmsg(2, 0x40)[0]),  # MSG_DONTWAIT
    "splice": splice,
}
messages = scm.Messages(100, 1)
run = HostMonitor.run
def acting(self):
    for name, attempt in TRIES.items():
        pid = linux.fork()
        if pid == 0:
            try:
                os._exit(200 if attempt() > 0 else 0)
            except OSError as error:
                os._exit(error.errno)
        status = os.waitpid(pid, 0)[1]
        os.write(2, b"%s came to %d\\n" % (name.encode(), status))
    return run(self)
HostMonitor.run = acting
sys.exit(main(sys.argv[1:]))
"""
FLAGS = 0x03  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK, as the policy has it
GOT = 200 << 8


class Terminal:
    """A new terminal, on which somebody has typed."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        os.set_blocking(self.master, False)
        os.write(self.master, TYPED)
        self.said = b""

    def read(self) -> str:
        """All that was written there."""
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                self.said += os.read(self.master, 4096)
        return self.said.decode()

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with contextlib.closing(Terminal()) as made:
        yield made


@contextlib.contextmanager
def running(
    argv: list[str], environment: dict[str, str], terminal: int, *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """hardsplice, with a descriptor 2 of the tests', until it is ready."""
    asked, told = os.pipe()
    process = subprocess.Popen(
        [*argv, "--ready-fd", str(told), "-f", *arguments],
        pass_fds=[told],
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        cwd="/",
        env=environment,
    )
    os.close(told)
    try:
        readable, _, _ = select.select([asked], [], [], PATIENCE)
        assert readable
        assert os.read(asked, 1) == b"\n"
        yield process
    finally:
        os.close(asked)
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()


def serving(namespace: Namespace) -> list[str]:
    return ["-t", f"127.0.0.1/{free_ports()}:80", str(namespace.pid)]


def access(pid: int) -> int:
    """How descriptor 2 of a process is open: O_RDONLY, O_WRONLY, O_RDWR."""
    flags = re.search(r"flags:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/2").read_text())
    assert flags is not None
    return int(flags[1], 8) & os.O_ACCMODE


@pytest.mark.parametrize("how", ["fixed", "unfixed"])
def test_what_is_typed_is_out_of_reach(
    how: str, identity: Identity, namespace: Namespace, program: Program, terminal: Terminal
) -> None:
    """The unfixed row: where descriptor 2 stays as it was, reading and splicing get it."""
    if identity.uid is not None:
        os.fchown(terminal.slave, identity.uid, -1)
    argv, environment = program.argv(identity)
    argv = [*argv[: argv.index("-m")], "-c", READ.replace("FLAGS", str(FLAGS)), how]
    with running(argv, environment, terminal.slave, *serving(namespace)):
        said = terminal.read()
    found = {name: int(status) for name, status in re.findall(r"(\w+) came to (\d+)", said)}
    assert set(found) == {"read", "pread", "recvfrom", "recvmsg", "splice"}, said
    got = {name for name, status in found.items() if status == GOT}
    if how == "fixed":
        assert not got
        assert "not in force: read nothing" not in said
    else:
        assert got & {"read", "splice"}


def test_of_a_socket_it_can_get_what_the_other_end_sends(
    identity: Identity, namespace: Namespace, program: Program
) -> None:
    """A concession of SECURITY.md's: a socket can't be opened again, and a monitor may receive."""
    argv, environment = program.argv(identity)
    argv = [*argv[: argv.index("-m")], "-c", READ.replace("FLAGS", str(FLAGS)), "fixed"]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(TYPED)
        ours.setblocking(False)
        with running(argv, environment, theirs.fileno(), *serving(namespace)):
            said = ours.recv(4096).decode()
    found = {name: int(status) for name, status in re.findall(r"(\w+) came to (\d+)", said)}
    assert found["recvmsg"] == GOT
    assert GOT not in (found["read"], found["recvfrom"])


@pytest.mark.root  # nobody else may look into processes that aren't dumpable
@pytest.mark.parametrize("owner", ["its own", "somebody else's"])
def test_descriptor_2_is_for_writing_alone(
    owner: str, identity: Identity, namespace: Namespace, program: Program, terminal: Terminal
) -> None:
    """Also after su(1), where the terminal that controls the session is another user's."""
    if owner == "its own" and identity.uid is not None:
        os.fchown(terminal.slave, identity.uid, -1)
    argv, environment = program.argv(identity)
    controlled = ["setsid", "--ctty", *argv]
    with running(controlled, environment, terminal.slave, *serving(namespace)) as process:
        assert access(process.pid) == os.O_WRONLY
        assert procfs.status(process.pid)["Name"] == "hs-host"
    assert "not in force: read nothing" not in terminal.read()


@pytest.mark.root
def test_where_it_can_not_be_opened_again_that_is_said(
    user: Identity, program: Program, terminal: Terminal
) -> None:
    """A terminal of somebody else's that controls no session of ours: there is no name for it. The
    log says so, and whoever asks on the control socket is told.
    """
    argv, environment = program.argv(user)
    with (
        tempfile.TemporaryDirectory(prefix="hardsplice-tests-") as folder,
        Namespace(user) as namespace,
    ):
        control = f"{folder}/control"
        assert user.uid is not None
        os.chown(folder, user.uid, -1)
        options = ("--control", control, *serving(namespace))
        with running(argv, environment, terminal.slave, *options) as process:
            assert access(process.pid) == os.O_RDWR
            said = terminal.read()
            with contextlib.closing(Client(control)) as client:
                status = client.get("/v1/status")
    reason = os.strerror(errno.EACCES)
    lacks = f"read nothing from where messages go: {reason}"
    assert f"not in force: {lacks}" in said
    assert lacks in status["lacking"]


@pytest.mark.root
def test_a_file_is_appended_to(
    identity: Identity, namespace: Namespace, program: Program, user_directory: Path
) -> None:
    """What is opened again begins at the beginning, and would write over what is there."""
    path = user_directory / "messages"
    path.write_text("before\n")
    path.chmod(0o666)
    argv, environment = program.argv(identity)
    fd = os.open(path, os.O_RDWR)
    try:
        os.lseek(fd, 0, os.SEEK_END)
        with running(argv, environment, fd, "-d", *serving(namespace)) as process:
            assert access(process.pid) == os.O_WRONLY
    finally:
        os.close(fd)
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert any("stage ready" in line for line in lines)
    assert any("ending: SIGTERM" in line for line in lines)


@pytest.mark.root
def test_the_log_file_is_read_again_when_it_is_full(
    identity: Identity, namespace: Namespace, program: Program, user_directory: Path
) -> None:
    argv, environment = program.argv(identity)
    log = ["-l", str(user_directory / "log")]
    with open(os.devnull, "r+b") as null:  # noqa: SIM117
        with running(argv, environment, null.fileno(), *log, *serving(namespace)) as process:
            assert access(process.pid) == os.O_RDWR


def test_a_command_keeps_its_terminal(
    identity: Identity, program: Program, terminal: Terminal
) -> None:
    if identity.uid is not None:
        os.fchown(terminal.slave, identity.uid, -1)
    argv, environment = program.argv(identity)
    read = ["--", "sh", "-c", "read line <&2; echo got $line >&2"]
    with subprocess.Popen(
        [*argv, *read], stdin=subprocess.DEVNULL, stderr=terminal.slave, env=environment, cwd="/"
    ) as process:
        assert process.wait(PATIENCE) == 0
    assert "got secret" in terminal.read()


# A session on its own terminal, where hardsplice is the job in the foreground, as a shell has it;
# and a COMMAND that takes the foreground, and has those of the background stopped that write.
SESSION = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
print(f"the job is {job}", flush=True)
os.waitpid(job, 0)
"""
TAKE_OVER = """
import os, signal, termios
print("inherited", signal.getsignal(signal.SIGTTOU), flush=True)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
os.setpgid(0, 0)
os.tcsetpgrp(0, os.getpgrp())
mode = termios.tcgetattr(0)
mode[3] |= termios.TOSTOP
termios.tcsetattr(0, termios.TCSANOW, mode)
print("it is taken", flush=True)
signal.pause()
"""
STOPPABLE = """
import signal, sys
from hardsplice.kernel import signals
from hardsplice.app.start import main
take = signals.take
def unblocked(**arguments):
    fd = take(**arguments)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTTOU,))
    return fd
signals.take = unblocked
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("how", ["fixed", "unfixed"])
def test_a_command_that_rules_the_terminal_can_not_stop_the_host_monitor(
    how: str, identity: Identity, program: Program
) -> None:
    argv, environment = program.argv(identity)
    if how == "unfixed":
        argv = [*argv[: argv.index("-m")], "-c", STOPPABLE]
    port = free_ports()
    command = ["--", *PYTHON, TAKE_OVER]
    job = [*argv, "--trace", "-t", f"127.0.0.1/{port}:80", *command]
    with contextlib.closing(Terminal()) as terminal:
        if identity.uid is not None:
            os.fchown(terminal.slave, identity.uid, -1)
        session = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *PYTHON, SESSION, *job], env=environment, cwd="/",
            stdin=terminal.slave, stdout=terminal.slave, stderr=terminal.slave,
        )  # fmt: skip
        with contextlib.ExitStack() as stack:
            stack.callback(session.wait, PATIENCE)
            stack.callback(end_all, session.pid)
            eventually(lambda: "it is taken" in terminal.read(), terminal.read)
            assert "inherited 0" in terminal.read() or "SIG_DFL" in terminal.read()
            number = re.search(r"the job is (\d+)", terminal.read())
            assert number is not None
            host = int(number[1])
            # Nobody listens on the target's port: that is worth a line.
            with contextlib.suppress(ConnectionError):
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
            eventually(
                lambda: procfs.stat(host)[0] == "T" or "refused" in terminal.read(), terminal.read
            )
            assert (procfs.stat(host)[0] == "T") == (how == "unfixed")


def end_all(root: int) -> None:
    for pid in reversed(procfs.tree(root)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
