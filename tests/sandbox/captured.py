# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting the product with a process of it taken over: the tests' side of `takeover.py`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.sandbox.job import ROLES, VARIABLE, Board, Job, Outcome
from tests.support.netns import Identity, Namespace, clean_environment
from tests.support.product import ROOT, Instance, Program, free_ports
from tests.support.stream import PATIENCE
from tools.launch import probe

NOBODY = 65534  # whom hardsplice's own processes become when root starts it
HELPER_SOURCE = """
#include <errno.h>
long int80(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    __asm__ volatile ("push %%rbp; mov %[f], %%rbp; int $0x80; pop %%rbp"
        : "=a" (result)
        : "a" (number), "b" (a), "c" (b), "d" (c), "S" (d), "D" (e), [f] "r" (f)
        : "memory", "r8", "r9", "r10", "r11");
    return result;
}
"""


class Captured(Program):
    """The product as `takeover.py` starts it, from a copy that everybody can read."""

    def __init__(self, interpreter: str | None = None) -> None:
        super().__init__()
        self.interpreter = interpreter
        self.boards = 0
        self._helper: str | None = None

    def stage(self) -> Path:
        first = self._stage is None
        folder = super().stage()
        if first:
            ours = folder / "tests" / "sandbox"
            ours.mkdir(parents=True)
            for source in (ROOT / "tests" / "sandbox").glob("*.py"):
                shutil.copy(source, ours)
            for path in (folder / "tests").rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
            (folder / "tests").chmod(0o755)
        return folder

    def _find(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        launcher = str(self.stage() / "tests" / "sandbox" / "takeover.py")
        environment = clean_environment({"PYTHONPATH": str(self.stage())})
        for interpreter in (
            (self.interpreter,)
            if self.interpreter
            else (sys.executable, os.path.realpath(sys.executable), "/usr/bin/python3")
        ):
            if can_run(interpreter, identity, environment):
                return [interpreter, launcher], environment
        pytest.skip(f"{identity.name} can run no Python with what hardsplice needs")

    def board(self) -> tuple[Board, str]:
        """A new board, and the path of its file."""
        self.boards += 1
        path = self.stage() / f"board-{self.boards}"
        return Board.make(path), str(path)

    def helper(self) -> str:
        """The path of a library with calls by `int 0x80`."""
        if self._helper is None:
            if os.uname().machine != "x86_64":
                pytest.skip("int 0x80 is x86's")
            if shutil.which("gcc") is None:
                pytest.skip("there is no gcc to compile int 0x80 with")
            library = self.stage() / "helper.so"
            subprocess.run(
                ["gcc", "-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", library],
                input=HELPER_SOURCE, text=True, check=True, timeout=PATIENCE,
            )  # fmt: skip
            library.chmod(0o755)
            self._helper = str(library)
        return self._helper


def can_run(interpreter: str, identity: Identity, environment: dict[str, str]) -> bool:
    """Whether this interpreter has what hardsplice needs."""
    with contextlib.suppress(OSError):
        return (
            subprocess.run(
                identity.wrap(probe(interpreter)),
                env=environment, cwd="/", capture_output=True, check=False, timeout=PATIENCE,
            ).returncode
            == 0
        )  # fmt: skip
    return False


@contextlib.contextmanager
def victim(identity: Identity) -> Iterator[int]:
    """A process of the user that hardsplice's own run as, and nothing else to do with it."""
    uid = identity.uid if identity.uid is not None else NOBODY
    owner = Identity("victim", uid if os.geteuid() == 0 else None)
    process = subprocess.Popen(owner.wrap(["sleep", "1000"]), stdin=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait(PATIENCE)


class Connecting(threading.Thread, ABC):
    """Clients that connect in order, as soon as somebody listens; the backlog keeps them so."""

    def __init__(self, number: int) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.sockets: list[socket.socket] = []
        self.ended = threading.Event()

    def run(self) -> None:
        """Try until all of them are connected."""
        while len(self.sockets) < self.number and not self.ended.is_set():
            try:
                self.sockets.append(self.connect())
            except OSError:
                self.ended.wait(0.01)

    @abstractmethod
    def connect(self) -> socket.socket:
        """One of them, which has sent something."""

    def stop(self) -> None:
        """Close them all."""
        self.ended.set()
        self.join(PATIENCE)
        for client in self.sockets:
            client.close()


class Clients(Connecting):
    """Connections to a port, each with payload, for as long as they are wanted."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__(number)
        self.port = port

    def connect(self) -> socket.socket:
        """One whose payload waits."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        try:
            client.sendall(b"payload of a client")
        except BaseException:
            client.close()
            raise
        return client


class Offering(Connecting):
    """Clients of the server of many containers' ports, each of which passes a file."""

    def __init__(self, path: str, number: int) -> None:
        super().__init__(number)
        self.path = path

    def connect(self) -> socket.socket:
        """One whose message waits, and the file with it."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            client.connect(self.path)
            with open("/etc/passwd", "rb") as file:
                socket.send_fds(client, [b"this is no offer"], [file.fileno()])
        except BaseException:
            client.close()
            raise
        return client


class Surroundings:
    """What attempts need: a namespace with servers, servers on the host, and hardsplice between
    them.
    """

    def __init__(self, program: Captured, identity: Identity) -> None:
        self.program, self.identity = program, identity
        self.inward, self.outward, self.other = (free_ports(3) + n for n in range(3))

    def _servers(self, stack: contextlib.ExitStack, namespace: Namespace) -> str:
        """Open what attempts are to reach or not; the name of the abstract sockets."""
        name = f"hardsplice-tests-{os.getpid()}"
        for kind, number in (("stream", socket.SOCK_STREAM), ("datagram", socket.SOCK_DGRAM)):
            local = stack.enter_context(socket.socket(socket.AF_UNIX, number))
            local.bind(f"\0{name}-{kind}")
            if number == socket.SOCK_STREAM:
                local.listen(128)
        for port in (self.outward, self.other):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(
                ("127.0.0.1", port)
            )
        for port in (80, 81):
            server = stack.enter_context(namespace.socket(socket.AF_INET))
            server.bind(("127.0.0.1", port))
            server.listen()
            server = stack.enter_context(namespace.datagram_socket(socket.AF_INET))
            server.bind(("127.0.0.1", port))
        return name

    def attempt(
        self,
        role: str,
        attempts: Sequence[str],
        *,
        bare: bool,
        clients: int = 0,
        helper: bool = False,
        dynamic: bool = False,
        udp: bool = False,
        server: int | None = None,
    ) -> list[Outcome]:
        """Make the attempts as a process of that role; what came of each. ``dynamic``: where ports
        may change at run time; ``udp``: where UDP is forwarded too, as it is for its relays;
        ``server``: where many containers are served, with so many clients.
        """
        assert role in ROLES
        board, path = self.program.board()
        inside = role in ("relay-in", "udp-in", "namespace")
        ports = (
            {"target": 80, "other": 81, "theirs": self.outward}
            if inside
            else {"target": self.outward, "other": self.other, "theirs": 81}
        )
        with contextlib.ExitStack() as stack:
            stack.callback(board.close)
            namespace = stack.enter_context(Namespace(self.identity))
            folder = stack.enter_context(folder_for(self.identity))
            job = Job(
                board=path,
                abstract=self._servers(stack, namespace),
                role=role,
                attempts=tuple(attempts),
                bare=bare,
                ports=ports,
                props=True,
                victim=stack.enter_context(victim(self.identity)),
                helper=self.program.helper() if helper else "",
                server="" if server is None else str(folder / "server"),
            )
            arguments = ["-f"]
            if role in ("init", "guard"):
                arguments += ["--", "sleep", "1000"]
            else:
                arguments += ["-t", f"127.0.0.1/{self.inward}:80"]
                arguments += ["-T", f"127.0.0.1/82:{self.outward}"]
                arguments += ["-t", "auto"] if dynamic else []
                if udp or role.startswith("udp"):
                    arguments += ["-u", f"127.0.0.1/{self.inward}:80"]
                    arguments += ["-U", f"127.0.0.1/82:{self.outward}"]
                    arguments += ["-u", "auto", "-U", "auto"] if dynamic else []
                arguments += [str(namespace.pid)]
            if clients:
                crowd = Clients(self.inward, clients)
                stack.callback(crowd.stop)
                crowd.start()
            if server is not None:
                offering = Offering(job.server, server)
                stack.callback(offering.stop)
                offering.start()
            instance = Instance(
                self.program, self.identity, arguments, environment={VARIABLE: job.dump()}
            )
            stack.callback(end, instance)
            if (
                role == "init"
            ):  # it makes its attempts after COMMAND was started, and so after ready
                _wait_for_all(board, len(attempts), instance)
            else:
                instance.wait_ready()
            outcomes = [board.get(index) for index in range(len(attempts))]
            broken = board.text
        assert not broken, f"{role}: an attempt could not be made: {broken}"
        return outcomes


def _wait_for_all(board: Board, number: int, instance: Instance) -> None:
    from tests.support.stream import eventually

    eventually(
        lambda: board.get(number).state or instance.process.poll() is not None,
        lambda: f"the attempts were not made; {instance.messages()}",
    )


def end(instance: Instance) -> None:
    """End hardsplice and all that belongs to it, whatever has become of it."""
    if instance.process.poll() is None:
        instance.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            instance.process.wait(2)
    instance.discard()


@contextlib.contextmanager
def folder_for(identity: Identity) -> Iterator[Path]:
    """A folder in which the identity may write."""
    path = Path(tempfile.mkdtemp(prefix="hardsplice-tests-"))
    try:
        path.chmod(0o755)
        if identity.uid is not None:
            os.chown(path, identity.uid, identity.uid)
        yield path
    finally:
        shutil.rmtree(path)
