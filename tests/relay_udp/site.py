# SPDX-License-Identifier: GPL-2.0-or-later
"""A hardsplice of a test's own that forwards datagrams, and what it says of them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardsplice.ctl.client import Client
from tests.support import procfs
from tests.support.datagram_paths import Ends, Lane, metrics
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, free_ports

Launch = Callable[..., Instance]
DIRECTIONS = ("inbound", "outbound")
INSIDE = 5000
"""The first port to use in the namespace."""


@dataclass
class Site:
    """One that runs, for one direction."""

    instance: Instance
    namespace: Namespace
    control: Path
    direction: str
    entry: int
    exit: int

    @contextlib.contextmanager
    def lane(self, more: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Iterator[Lane]:
        """Clients and servers of the first port, or of the ones behind it."""
        inside = self.namespace.datagram_socket
        sides = {"server_side": inside} if self.direction == "inbound" else {"client_side": inside}
        ends = Ends(family, self.entry + more, self.exit + more, **sides)  # type: ignore[arg-type]
        lane = Lane(ends, self.instance.processes)
        with contextlib.closing(lane):
            yield lane

    def spec(self, more: int = 0, address: str = "127.0.0.1/") -> str:
        """The SPEC of a forward."""
        return f"{address}{self.entry + more}:{self.exit + more}"

    def count(self, name: str, *labels: str) -> int:
        """A metric of this direction: "flows", "state=established"."""
        key = name, ",".join(sorted([f"direction={self.direction}", *labels]))
        return metrics(self.control).get(key, 0)

    def flows(self) -> list[dict[str, Any]]:
        """The flows of datagrams that it lists."""
        with contextlib.closing(Client(str(self.control))) as client:
            listed = client.get("/v1/flows")["flows"]
        return [flow for flow in listed if flow["protocol"] == "udp"]

    def relays(self) -> list[int]:
        """Its relays of datagrams."""
        name = "hs-udp-in" if self.direction == "inbound" else "hs-udp-out"
        named = procfs.each(procfs.status, self.instance.processes())
        return [pid for pid, status in named.items() if status["Name"] == name]


@contextlib.contextmanager
def sited(
    launch: Launch,
    identity: Identity,
    folder: Path,
    direction: str,
    *arguments: str,
    ports: int = 1,
    bare: bool = False,
    descriptors: int | None = None,
) -> Iterator[Site]:
    """Start one that forwards `ports` ports, or, bare, none yet."""
    with Namespace(identity) as namespace:
        outside = free_ports(ports + 2)
        entry, exit_ = (outside, INSIDE) if direction == "inbound" else (INSIDE, outside)
        option = "-u" if direction == "inbound" else "-U"
        last = ports - 1
        spec = f"127.0.0.1/{entry}-{entry + last}:{exit_}-{exit_ + last}"
        path = folder / "control"
        instance = launch(
            identity, "-f", "--control", str(path), *([] if bare else [option, spec]), *arguments,
            str(namespace.pid), descriptors=descriptors,
        ).wait_ready()  # fmt: skip
        yield Site(instance, namespace, path, direction, entry, exit_)
        instance.stop()
