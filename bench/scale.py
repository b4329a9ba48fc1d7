# SPDX-License-Identifier: GPL-2.0-or-later
"""Does one more connection cost more where there are many? python -m bench.scale

Two series, hardsplice alone: with more and more idle connections, and with more and more forwarded
ports. In each round every size has its turn, and at each size the same work is done on one
connection more: round trips of one byte, and connections made, used and closed one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.forwarder import Forwarder
from bench.load import Kit, LoadError, Pinning
from bench.peer import Command, Place
from bench.peers import Hardsplice
from bench.rows import ROWS, Load, Timing
from bench.usage import holding
from tests.support.netns import Identity, can_make, ordinary_user

CONNECTIONS = (0, 10, 100, 1000, 5000)
PORTS = (1, 100, 1000)
FIRST_PORT = 20000  # below the ephemeral ones
WORK = ("ping-pong-1b-1", "connect-1")
# What the kernel keeps for a connected socket that epoll watches, by the names of its slab caches.
OBJECTS = ("TCP", "sock_inode_cache", "filp", "dentry", "eventpoll_epi", "eventpoll_pwq")


class ManyPorts(Hardsplice):
    """hardsplice with further ports that lead to the same server."""

    def __init__(self, ports: int) -> None:
        super().__init__()
        self.ports = ports

    def command(self, place: Place) -> Command:
        command = super().command(place)
        at = command.words.index("-t") + 1
        more = range(FIRST_PORT, FIRST_PORT + self.ports - 1)
        command.words[at] += "".join(f",{port}:{place.bed.port}" for port in more)
        return command


def kernel_bytes() -> int:
    """Bytes of kernel objects for one idle connection: two sockets."""
    sizes = {}
    for line in Path("/proc/slabinfo").read_text().splitlines()[2:]:
        words = line.split()
        sizes[words[0]] = int(words[3])
    return 2 * sum(sizes.get(name, 0) for name in OBJECTS)


def measure(
    kit: Kit, user: Identity, connections: int, ports: int, timing: Timing
) -> dict[str, float]:
    """One size, once."""
    rows = {row.name: row for row in ROWS}
    peer = ManyPorts(ports)
    with contextlib.closing(peer), Forwarder(kit, peer, user) as forwarder:
        numbers = {"ready_ms": forwarder.ready_seconds * 1e3}
        before = holding(forwarder.processes())
        with _idle(kit, forwarder, connections) as held:
            if held < connections:
                raise LoadError(f"only {held} of {connections} connections could be held")
            time.sleep(timing.warmup)
            after = holding(forwarder.processes())
            numbers |= {"pss_mib": after.pss_kib / 1024, "files": after.descriptors}
            if connections:
                numbers["bytes_each"] = (after.pss_kib - before.pss_kib) * 1024 / connections
            for name in WORK:
                row = rows[name]
                assert isinstance(row, Load)
                done = row.measure(forwarder, timing)
                numbers |= {f"{name} {key}": done[key] for key in ("rate", "cpu_us")}
        return numbers


@contextlib.contextmanager
def _idle(kit: Kit, forwarder: Forwarder, connections: int) -> Iterator[int]:
    if not connections:
        yield 0
        return
    with kit.idle(forwarder.port, forwarder.bed.shared, connections) as held:
        yield held


def series(
    kit: Kit, sizes: Sequence[tuple[int, int]], rounds: int, timing: Timing
) -> list[dict[str, Any]]:
    """Every size's medians."""
    user = ordinary_user()
    if not can_make(user):
        raise SystemExit(f"bench: {user.name} may not create namespaces here")
    found: dict[tuple[int, int], list[dict[str, float]]] = {size: [] for size in sizes}
    for number in range(rounds):
        for size in sizes:
            print(f"round {number + 1} of {rounds}: {size}", file=sys.stderr, flush=True)
            found[size].append(measure(kit, user, *size, timing))
    return [
        {"connections": connections, "ports": ports}
        | {
            key: statistics.median(one[key] for one in found[connections, ports])
            for key in found[connections, ports][0]
        }
        for connections, ports in sizes
    ]


def show(results: list[dict[str, Any]]) -> None:
    """As a table."""
    print("  idle  ports  ready ms  files  PSS MiB  bytes each  µs/round trip  µs/connection")
    for one in results:
        print(
            f"{one['connections']:6,} {one['ports']:6,} {one['ready_ms']:9.0f} {one['files']:6,.0f}"
            f" {one['pss_mib']:8.1f} {one.get('bytes_each', 0):11,.0f}"
            f" {one['ping-pong-1b-1 cpu_us']:14.1f} {one['connect-1 cpu_us']:14.1f}"
        )


def main() -> None:
    """Measure both series."""
    parser = argparse.ArgumentParser(prog="bench.scale", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement (0.5)")
    parser.add_argument("--cores", choices=["apart", "one", "any"], default="one")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    timing = Timing(options.seconds, options.seconds / 3)
    sizes = [*((number, 1) for number in CONNECTIONS), *((0, ports) for ports in PORTS[1:])]
    try:
        with Kit(Pinning.named(options.cores)) as kit:
            results = series(kit, sizes, options.rounds, timing)
    except LoadError as error:
        raise SystemExit(f"bench: {error}") from None
    show(results)
    print(f"kernel objects of an idle connection's two sockets: {kernel_bytes():,} bytes")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
