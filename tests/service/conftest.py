# SPDX-License-Identifier: GPL-2.0-or-later
"""A service manager, and what is served under it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.support import procfs
from tests.support.manager import Manager
from tests.support.netns import Identity, Namespace
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


def gone(pids: list[int]) -> None:
    """None of them lives on."""
    eventually(lambda: not [pid for pid in pids if procfs.alive(pid)], "processes remain", within=3)
