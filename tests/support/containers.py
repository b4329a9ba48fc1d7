# SPDX-License-Identifier: GPL-2.0-or-later
"""Containers whose ports one server has (hardsplice/frontends/server.py), and who talks to them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from hardsplice.frontends.place import Place
from tests.support import procfs
from tests.support.frontends import Rootlessport
from tests.support.netns import Identity, Namespace
from tests.support.product import free_ports
from tests.support.stream import PATIENCE


class Containers:
    """Containers of one namespace, in which a server echoes."""

    def __init__(self, script: Path, folder: Path, namespace: Namespace, owner: Identity) -> None:
        """``script`` is rootlessport, ``folder`` is Podman's of that owner, who is root in the user
        namespace of the network namespace, too.
        """
        self.script, self.folder, self.namespace = script, folder, namespace
        self.owner = owner
        enter = ["nsenter", f"--user={namespace.user_path}", "--preserve-credentials"]
        self.before = [] if owner.is_root else owner.wrap(enter)
        self.place = Place(str(folder / "hardsplice"), namespace.net_path)
        self.echo = namespace.socket(socket.AF_INET)
        self.echo.bind(("127.0.0.1", 0))
        self.echo.listen(64)
        self.echo.settimeout(PATIENCE)
        self.target = self.echo.getsockname()[1]
        self.port = free_ports(12)
        self.made: list[Rootlessport] = []

    def begin(self, at: int, **more: Any) -> Rootlessport:
        """Start the one that has the port of that number."""
        made = Rootlessport(
            self.script, self.folder, self.namespace.net_path, self.port + at, self.target,
            f"{len(self.made):02x}", self.before, **more,
        )  # fmt: skip
        self.made.append(made)
        return made

    def start(self, at: int, **more: Any) -> Rootlessport:
        """The same, until it is ready."""
        made = self.begin(at, **more)
        assert os.read(made.ready, 2) == b"1"
        return made

    def connected(self, at: int) -> Conversation:
        client = socket.create_connection(("127.0.0.1", self.port + at), PATIENCE)
        try:
            server, _ = self.echo.accept()
        except OSError:
            client.close()
            raise
        conversation = Conversation(client, server)
        try:
            conversation.goes_on()
        except BaseException:
            conversation.end()
            raise
        return conversation

    def serves(self, at: int) -> bool:
        """Whether the port leads there now, be it that its last server is just ending."""
        self.echo.settimeout(0.5)
        try:
            self.connected(at).end()
        except (ConnectionError, TimeoutError, AssertionError):
            return False
        finally:
            self.echo.settimeout(PATIENCE)
        return True

    def servers(self) -> set[int]:
        """The host monitors."""
        names = procfs.names(os.getpid())
        return {pid for pid, name in names.items() if name == "hs-host"}

    def close(self) -> None:
        for one in self.made:
            one.close()
        self.echo.close()


class Conversation:
    """A client and its server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server

    def goes_on(self) -> None:
        self.client.sendall(b"hello")
        assert self.server.recv(5) == b"hello"

    def is_reset(self) -> bool:
        self.client.settimeout(PATIENCE)
        try:
            return self.client.recv(1) == b""
        except ConnectionResetError:
            return True

    def end(self) -> None:
        self.client.close()
        self.server.close()
