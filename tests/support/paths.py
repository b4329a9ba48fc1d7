# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways for a connection from a client to a server: straight, or through something that forwards.

The contract is written once and run over every way. `Direct` is the oracle: listener and client on
the host's loopback, so whatever the contract demands is what plain TCP does. `Spliced` goes through
hardsplice. Each test gets a `Lane` of its own, a port that no test before it has used lately, so
nothing that one test left on its way arrives in another.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tests.support import diag, procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import PATIENCE, Violation, close_all

LANES = 24
"""Ports of each forwarded range; a port is used again only after all the others."""

DIRECT = ("direct-ipv4", "direct-ipv6")
SPLICED = tuple(
    f"{direction}-{family}-{who}"
    for who in ("root", "user")
    for direction in ("inbound", "outbound")
    for family in ("ipv4", "ipv6")
)
"""The names that the fixture `ways` knows."""

_TARGETS = 30_000  # the first port of servers in the namespace
_INSIDE = 20_000  # the first port of listeners in the namespace

SocketMaker = Callable[[socket.AddressFamily], socket.socket]
AskerMaker = Callable[[], socket.socket]


def _here(family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM)


def loopback(family: socket.AddressFamily) -> str:
    return "127.0.0.1" if family == socket.AF_INET else "::1"


@dataclass(frozen=True)
class Ends:
    """Where clients connect to and where servers listen, and how to make a socket there."""

    family: socket.AddressFamily
    entry: int
    exit: int
    client_side: SocketMaker = _here
    server_side: SocketMaker = _here
    spliced: bool = True
    client_asker: AskerMaker = diag.diag_socket
    server_asker: AskerMaker = diag.diag_socket


class Lane:
    """Connections from one port to another; everything that it opened is closed with it."""

    def __init__(
        self, ends: Ends, processes: Callable[[], list[int]], *, patience: float = PATIENCE
    ) -> None:
        self.ends = ends
        self.processes = processes
        self.patience = patience
        self._sockets: list[socket.socket] = []
        self._listener: socket.socket | None = None

    @property
    def spliced(self) -> bool:
        return self.ends.spliced

    @property
    def listening(self) -> bool:
        return self._listener is not None

    def listen(
        self,
        *,
        backlog: int = 1024,
        buffer: int | None = None,
        family: socket.AddressFamily | None = None,
    ) -> socket.socket:
        """Start the server; `buffer` bounds the receive buffers of what it accepts (bytes)."""
        family = family or self.ends.family
        listener = self._own(self.ends.server_side(family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((loopback(family), self.ends.exit))
        listener.listen(backlog)
        self._listener = listener
        return listener

    def client(self, *, buffer: int | None = None) -> socket.socket:
        """A connected client."""
        client = self._own(self.ends.client_side(self.ends.family))
        client.settimeout(self.patience)
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect((loopback(self.ends.family), self.ends.entry))
        return client

    def accept(self, *, patience: float | None = None) -> socket.socket:
        """The server's side of the next connection."""
        patience = patience or self.patience
        if self._listener is None:
            raise RuntimeError("this lane's server does not listen")
        self._listener.settimeout(patience)
        try:
            server = self._own(self._listener.accept()[0])
        except TimeoutError:
            raise Violation(f"no connection reached the server within {patience} s") from None
        server.settimeout(self.patience)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server

    def pair(self, *, buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
        """A connection: the client's socket and the server's; `buffer` bounds both receivers."""
        if self._listener is None:
            self.listen(buffer=buffer)
        client = self.client(buffer=buffer)
        return client, self.accept()

    def assert_quiet(self, window: float = 1.0) -> None:
        """What forwards this lane uses no CPU and does not wake up."""
        procfs.assert_quiet(self.processes(), window)

    def stays_unread(self, sock: socket.socket, within: float = 0.1) -> bool:
        """Whether what `sock` sent remains in the receive queue of the socket that it talks to."""
        is_client = sock.getpeername()[1] == self.ends.entry
        deadline = time.monotonic() + within
        with (self.ends.client_asker if is_client else self.ends.server_asker)() as diag_socket:
            while time.monotonic() < deadline:
                if not diag.unread_by_peer(diag_socket, sock):
                    return False
        return True

    def forget(self, sock: socket.socket) -> None:
        """Close a socket now."""
        sock.close()
        self._sockets.remove(sock)

    def close_connections(self) -> None:
        """Close everything but the server's listener."""
        close_all([sock for sock in self._sockets if sock is not self._listener])
        self._sockets = [self._listener] if self._listener else []

    def close(self) -> None:
        close_all(self._sockets)
        self._sockets.clear()
        self._listener = None

    def _own(self, sock: socket.socket) -> socket.socket:
        self._sockets.append(sock)
        return sock


class Path(Protocol):
    """A way for connections."""

    def lane(self) -> contextlib.AbstractContextManager[Lane]:
        """A fresh port of it; leaving raises a Violation if what forwards has changed."""

    def close(self) -> None:
        """End what the way consists of."""


class Direct:
    """A bare socket pair over loopback: the oracle."""

    def __init__(self, family: socket.AddressFamily) -> None:
        self._family = family

    @contextlib.contextmanager
    def lane(self) -> Iterator[Lane]:
        port = free_ports()
        lane = Lane(Ends(self._family, port, port, spliced=False), list)
        with contextlib.closing(lane):
            yield lane

    def close(self) -> None:
        """There is nothing to end."""


class Standing:
    """A hardsplice between the host and a namespace, for one lane after the other."""

    def __init__(self, program: Program, identity: Identity) -> None:
        self.program, self.identity = program, identity
        self.namespace = Namespace(identity)
        self._lanes = itertools.count()
        self._instance: Instance | None = None

    def _check(self, instance: Instance, before: list[int]) -> None:
        """No test may cost a process, not even one that is restarted at once."""
        after = instance.processes()
        if before and after == before:
            return
        self._instance = None
        said = instance.messages()
        instance.discard()
        raise Violation(f"processes {before} became {after}; {said}")

    def close(self) -> None:
        if self._instance is not None:
            self._instance.stop()
        self.namespace.close()


class Service(Standing):
    """One with both directions and both families."""

    def __init__(self, program: Program, identity: Identity) -> None:
        super().__init__(program, identity)
        self._inward = self._outward = 0

    def instance(self) -> Instance:
        """The running hardsplice; started when it is first needed, and again after it died."""
        if self._instance is None:
            self._inward, self._outward = free_ports(LANES), free_ports(LANES)
            arguments = ["--foreground"]
            for address in ("127.0.0.1", "[::1]"):
                arguments += ["-t", f"{address}/{_map(self._inward, _TARGETS)}"]
                arguments += ["-T", f"{address}/{_map(_INSIDE, self._outward)}"]
            arguments.append(str(self.namespace.pid))
            self._instance = Instance(self.program, self.identity, arguments).wait_ready()
        return self._instance

    @contextlib.contextmanager
    def lane(self, family: socket.AddressFamily, *, inbound: bool) -> Iterator[Lane]:
        instance = self.instance()
        number = next(self._lanes) % LANES
        inside, diag_socket = self.namespace.socket, self.namespace.diag_socket
        if inbound:
            entry, exit_ = self._inward + number, _TARGETS + number
            ends = Ends(family, entry, exit_, server_side=inside, server_asker=diag_socket)
        else:
            entry, exit_ = _INSIDE + number, self._outward + number
            ends = Ends(family, entry, exit_, client_side=inside, client_asker=diag_socket)
        before = instance.processes()
        with contextlib.closing(Lane(ends, instance.processes)) as lane:
            yield lane
        self._check(instance, before)


class Spliced:
    """Through hardsplice: one direction and family of a service."""

    def __init__(self, service: Service, family: socket.AddressFamily, *, inbound: bool) -> None:
        self._service, self._family, self._inbound = service, family, inbound

    def lane(self) -> contextlib.AbstractContextManager[Lane]:
        return self._service.lane(self._family, inbound=self._inbound)

    def close(self) -> None:
        """The service outlives its ways."""


def _map(first: int, target: int) -> str:
    return f"{first}-{first + LANES - 1}:{target}-{target + LANES - 1}"
