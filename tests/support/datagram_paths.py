# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways for datagrams from clients to a server: straight, or through something that forwards.

As support/paths.py has it for TCP. `Direct` is the oracle: clients and server in one namespace, so
whatever the contract demands is what UDP does. `Spliced` goes through hardsplice. Each test gets a
`Lane` of its own, two ports next to each other that no test before it has used lately.

The last word but one of a way's name says what clients find:

    ipv4, ipv6      a listener on the loopback address of that family
    dual4, dual6    one on all addresses of both families, which they ask by the one or the other
    frag4, frag6    ipv4 and ipv6 where the namespace's loopback carries 1,500 bytes at most, as
                    Ethernet does: what is larger goes in fragments
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Protocol

from prometheus_client.parser import text_string_to_metric_families

from hardsplice.ctl.client import Client
from tests.support import procfs
from tests.support.datagrams import Address, Letters, Post, Received
from tests.support.netns import Identity, Namespace
from tests.support.paths import Standing, loopback
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import PATIENCE, Violation

LANES = 12
"""Pairs of ports of each forwarded range; a pair is used again only after all the others."""
PORTS = 2
"""Ports of a lane: whoever sends to two is not to be confused."""
ETHERNET = 1500
"""Bytes of a packet that doesn't go in fragments, where a way is named so."""

DIRECT = tuple(f"direct-{kind}" for kind in ("ipv4", "ipv6", "dual4", "dual6", "frag4", "frag6"))
SPLICED = tuple(
    f"{direction}-{kind}-{who}"
    for who in ("root", "user")
    for direction in ("inbound", "outbound")
    for kind in ("ipv4", "ipv6", "dual4", "dual6", "frag4", "frag6")
)
"""The names that the fixture `ways` of tests/relay_udp knows."""

_SPECIFIC, _WILDCARD = 30_000, 30_500  # the first ports of servers in the namespace
_INSIDE, _INSIDE_WILDCARD = 20_000, 20_500  # and of listeners

SocketMaker = Callable[[socket.AddressFamily], socket.socket]


def family_of(kind: str) -> socket.AddressFamily:
    """That of the clients."""
    return socket.AF_INET6 if kind.endswith("6") else socket.AF_INET


def _here(family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM)


def nothing_dropped() -> int:
    """What a way counts that can't drop anything."""
    return 0


@dataclass(frozen=True)
class Ends:
    """Where clients send to and where servers are bound, and how to make a socket there."""

    family: socket.AddressFamily
    entry: int
    exit: int
    wildcard: bool = False  # clients may ask any address of theirs
    both: bool = False  # the server is bound to the wildcard of both families
    spliced: bool = True
    client_side: SocketMaker = _here
    server_side: SocketMaker = _here


class Lane:
    """Datagrams from clients to servers; everything that it opened is closed with it."""

    def __init__(
        self,
        ends: Ends,
        processes: Callable[[], list[int]],
        *,
        dropped: Callable[[], int] = nothing_dropped,
        patience: float = PATIENCE,
    ) -> None:
        """`dropped` says how many datagrams the forwarder has counted as dropped so far."""
        self.ends = ends
        self.processes = processes
        self.dropped = dropped
        self.patience = patience
        self.posts: list[Post] = []
        """What is open of it."""

    @property
    def family(self) -> socket.AddressFamily:
        return self.ends.family

    @property
    def wildcard(self) -> bool:
        return self.ends.wildcard

    @property
    def spliced(self) -> bool:
        return self.ends.spliced

    def server(self, port: int = 0, *, gro: bool = False) -> Post:
        """A server's socket, behind the first port or the second."""
        family = socket.AF_INET6 if self.ends.both else self.family
        sock = self.ends.server_side(family)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not self.ends.both))
        sock.bind(("::" if self.ends.both else loopback(family), self.ends.exit + port))
        return self._own(sock, gro=gro, asks=self.ends.both)

    def client(
        self,
        port: int | None = 0,
        *,
        asked: str = "",
        source: Address | None = None,
        gro: bool = False,
    ) -> Post:
        """A client's socket, connected to the first port or the second of an address, the loopback
        if there is none; or, with no port, to none."""
        sock = self.ends.client_side(self.family)
        if source is not None:
            sock.bind(source)
        if port is not None:
            sock.connect(self.entry(port, asked))
        return self._own(sock, gro=gro)

    def entry(self, port: int = 0, asked: str = "") -> Address:
        """Where clients send to."""
        return (asked or loopback(self.family), self.ends.entry + port)

    def meet(self, client: Post, server: Post, to: Address | None = None) -> Received:
        """Have the client write to the server, and the server answer: from then on the server
        knows whom to write to, which is what this returns."""
        letters = Letters()
        hello, answer = letters.some((32, 32))
        client.send(hello, to)
        met = server.expect(hello)
        server.send(answer, met)
        client.expect(answer)
        return met

    def forget(self, post: Post) -> None:
        """Close a socket now."""
        post.close()
        self.posts.remove(post)

    def settle(self) -> None:
        """Until what forwards this lane sleeps."""
        procfs.settle(self.processes())

    def assert_quiet(self, window: float = 1.0) -> None:
        """What forwards this lane uses no CPU and does not wake up, but for timers of its start,
        each of which rings once: what goes on is there in the next window as well.
        """
        try:
            procfs.assert_quiet(self.processes(), window)
        except Violation:
            procfs.assert_quiet(self.processes(), window)

    def close(self) -> None:
        for post in self.posts:
            post.close()
        self.posts.clear()

    def _own(self, sock: socket.socket, *, gro: bool, asks: bool = False) -> Post:
        post = Post(sock, gro=gro, asks=asks, patience=self.patience)
        self.posts.append(post)
        return post


class Path(Protocol):
    """A way for datagrams."""

    def lane(self, *, fresh: bool = False) -> contextlib.AbstractContextManager[Lane]:
        """A fresh pair of its ports; leaving raises a Violation if what forwards has changed.
        `fresh`: what forwards has no flow of an earlier lane, whose end would wake it up.
        """

    def close(self) -> None:
        """End what the way consists of."""


class Direct:
    """Sockets of one namespace: the oracle."""

    def __init__(self, kind: str, identity: Identity) -> None:
        self._kind = kind
        self._namespace: Namespace | None = None
        self._make: SocketMaker = _here
        if kind.startswith("frag"):
            self._namespace = Namespace(identity)
            self._namespace.set_mtu(ETHERNET)
            self._make = self._namespace.datagram_socket

    @contextlib.contextmanager
    def lane(self, *, fresh: bool = False) -> Iterator[Lane]:
        port, dual = free_ports(PORTS), self._kind.startswith("dual")
        ends = Ends(
            family_of(self._kind), port, port, wildcard=dual, both=dual, spliced=False,
            client_side=self._make, server_side=self._make,
        )  # fmt: skip
        with contextlib.closing(Lane(ends, list)) as lane:
            yield lane

    def close(self) -> None:
        if self._namespace is not None:
            self._namespace.close()


class Service(Standing):
    """One with both directions and both families."""

    def __init__(self, program: Program, identity: Identity, *, ethernet: bool = False) -> None:
        super().__init__(program, identity)
        if ethernet:
            self.namespace.set_mtu(ETHERNET)
        self._folder = FilePath(tempfile.mkdtemp(prefix="hardsplice-tests-"))
        if identity.uid is not None:
            os.chown(self._folder, identity.uid, identity.uid)
        self._inward = self._inward_wildcard = self._outward = self._outward_wildcard = 0

    def instance(self) -> Instance:
        """The running hardsplice; started when it is first needed, and again after it died."""
        if self._instance is None:
            number = LANES * PORTS
            self._inward, self._inward_wildcard = free_ports(number), free_ports(number)
            self._outward, self._outward_wildcard = free_ports(number), free_ports(number)
            arguments = ["--foreground", "--control", str(self._folder / "control")]
            # Flows of tests that are over don't have to count against those of the next ones.
            arguments += ["--udp-timeout", "5", "--udp-stream-timeout", "25"]
            for address in ("127.0.0.1/", "[::1]/"):
                arguments += ["-u", f"{address}{_map(self._inward, _SPECIFIC)}"]
                arguments += ["-U", f"{address}{_map(_INSIDE, self._outward)}"]
            arguments += ["-u", _map(self._inward_wildcard, _WILDCARD)]
            arguments += ["-U", _map(_INSIDE_WILDCARD, self._outward_wildcard)]
            arguments.append(str(self.namespace.pid))
            self._instance = Instance(self.program, self.identity, arguments).wait_ready()
        return self._instance

    @contextlib.contextmanager
    def lane(self, kind: str, *, inbound: bool, fresh: bool = False) -> Iterator[Lane]:
        if fresh and self._instance is not None:
            self._instance.stop()
            self._instance = None
        instance = self.instance()
        number = next(self._lanes) % LANES * PORTS
        family, wildcard = family_of(kind), kind.startswith("dual")
        inside = self.namespace.datagram_socket
        if inbound:
            entry = self._inward_wildcard if wildcard else self._inward
            exit_ = _WILDCARD if wildcard else _SPECIFIC
            ends = Ends(family, entry + number, exit_ + number, wildcard, server_side=inside)
        else:
            entry = _INSIDE_WILDCARD if wildcard else _INSIDE
            exit_ = self._outward_wildcard if wildcard else self._outward
            ends = Ends(family, entry + number, exit_ + number, wildcard, client_side=inside)
        before = instance.processes()
        with contextlib.closing(Lane(ends, instance.processes, dropped=self.dropped)) as lane:
            yield lane
        self._check(instance, before)

    def dropped(self) -> int:
        """Datagrams that it says it has dropped, for whatever reason."""
        return sum(
            value
            for (name, _), value in metrics(self._folder / "control").items()
            if name == "datagrams_dropped_total"
        )

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._folder)


class Spliced:
    """Through hardsplice: one direction and kind of a service."""

    def __init__(self, service: Service, kind: str, *, inbound: bool) -> None:
        self._service, self._kind, self._inbound = service, kind, inbound

    def lane(self, *, fresh: bool = False) -> contextlib.AbstractContextManager[Lane]:
        return self._service.lane(self._kind, inbound=self._inbound, fresh=fresh)

    def close(self) -> None:
        """The service outlives its ways."""


def _map(first: int, target: int) -> str:
    number = LANES * PORTS
    return f"{first}-{first + number - 1}:{target}-{target + number - 1}"


def metrics(control: FilePath) -> dict[tuple[str, str], int]:
    """What an instance counts for UDP: each value by its metric's name and by its labels but
    "relay", "protocol" and "namespace", summed over relays."""
    with contextlib.closing(Client(str(control))) as client:
        text = client.text("/metrics")
    found: dict[tuple[str, str], int] = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            labels = dict(one.labels)
            labels.pop("namespace", None)
            labels.pop("relay", None)
            if labels.pop("protocol", "udp") == "udp":
                key = (
                    one.name.removeprefix("hardsplice_"),
                    ",".join(sorted(f"{label}={value}" for label, value in labels.items())),
                )
                found[key] = found.get(key, 0) + int(one.value)
    return found
