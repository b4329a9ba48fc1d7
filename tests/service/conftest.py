# SPDX-License-Identifier: GPL-2.0-or-later
"""A service manager, and what is served under it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.service.booted import BOX, ECHO, EXAMPLES, POST, SERVER, WEB, configure
from tests.support import procfs
from tests.support.manager import Manager
from tests.support.netns import Identity, Namespace
from tests.support.nspawn import Machine, reason_to_skip
from tests.support.product import Program
from tests.support.stream import PATIENCE, eventually

Serve = Callable[..., Manager]


@pytest.fixture
def serve(program: Program, identity: Identity) -> Iterator[Serve]:
    """Start hardsplice under a service manager: serve(manager, *arguments)."""
    argv, environment = program.argv(identity)
    with contextlib.ExitStack() as stack:

        def start(manager: Manager, *arguments: str) -> Manager:
            if manager.process is None:
                stack.callback(manager.close)
            manager.start([*argv, *arguments], environment)
            return manager

        yield start


@pytest.fixture
def inside(namespace: Namespace) -> Iterator[socket.socket]:
    """A server's listener in the namespace, on port 80."""
    with namespace.socket(socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 80))
        listener.listen(1024)
        listener.settimeout(PATIENCE)
        yield listener


def passes(port: int, listener: socket.socket) -> None:
    """A client of the host's port reaches the server."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client,
        listener.accept()[0] as server,
    ):
        server.settimeout(PATIENCE)
        client.sendall(b"ping")
        assert server.recv(4, socket.MSG_WAITALL) == b"ping"
        server.sendall(b"pong")
        assert client.recv(4, socket.MSG_WAITALL) == b"pong"


def still_served(client: socket.socket, listener: socket.socket) -> None:
    """A client that connected while there was no hardsplice reaches the server now."""
    client.sendall(b"waited")
    with listener.accept()[0] as server:
        server.settimeout(PATIENCE)
        assert server.recv(6, socket.MSG_WAITALL) == b"waited"


def gone(pids: list[int]) -> None:
    """None of them lives on."""
    eventually(lambda: not [pid for pid in pids if procfs.alive(pid)], "processes remain", within=3)


@pytest.fixture(scope="module")
def machine(program: Program) -> Iterator[Machine]:
    """One that is up, with servers and namespaces to make."""
    if reason := reason_to_skip(program.stage()):
        pytest.skip(reason)
    units = {
        "netns@.service": (EXAMPLES / "netns@.service").read_text(),
        "echo@.service": ECHO,
        "web.service": WEB,
        "a\\x2db.service": WEB,
        "box.service": BOX,
        "pod.service": BOX.replace("box", "pod") + POST,
    }
    machine = Machine(
        program.stage(),
        {"server.py": SERVER, **{f"systemd/system/{name}": text for name, text in units.items()}},
    )
    yield machine
    machine.close()


@pytest.fixture
def named(machine: Machine) -> Iterator[str]:
    """hardsplice@blue.service, not started yet, with a server in its namespace."""
    machine.control("start", "netns@blue", "echo@blue")
    configure(machine, "blue", "OPTIONS=-t 127.0.0.1/8080:8000")
    yield "hardsplice@blue.service"
    machine.control("stop", "hardsplice@blue", "netns@blue")


@pytest.fixture
def of_service(machine: Machine) -> Iterator[str]:
    """hardsplice-service@web.service, not started yet, with its server."""
    configure(machine, "web", "OPTIONS=-t 127.0.0.1/8081:8000")
    machine.control("start", "web")
    yield "hardsplice-service@web.service"
    machine.control("stop", "hardsplice-service@web", "web")
