# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured: each row is one kind of work, and how to do it once with one forwarder.

A row returns plain numbers by name. Every measurement has a forwarder of its own, the only one on
the machine while it lasts, so that none has another's pipes counted against its allowance, or its
memory shared with it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from bench.forwarder import Forwarder
from bench.load import LoadError
from bench.usage import counted_calls, cpu_seconds, holding

MIB = 1 << 20
GIB = 1 << 30

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a measurement, and before it."""

    seconds: float
    warmup: float

    @property
    def options(self) -> list[str]:
        """For the client."""
        return ["--seconds", f"{self.seconds}", "--warmup", f"{self.warmup}"]


@dataclass(frozen=True, slots=True)
class Row(ABC):
    """One line of the comparison."""

    name: str
    title: str
    ordinary_only: bool = False  # leave out who can't run as an ordinary user
    protocol: str = "tcp"
    once: bool = False  # what doesn't depend on the machine's mood needs no rounds

    @abstractmethod
    def measure(self, forwarder: Forwarder, timing: Timing) -> Numbers:
        """Do the work once."""

    def calls(self, forwarder: Forwarder) -> dict[str, float]:
        """System calls for each operation, by name; empty where the row has no such thing."""
        del forwarder
        return {}


@dataclass(frozen=True, slots=True)
class Load(Row):
    """Work that is done as fast as it goes: throughput, or a rate with latencies."""

    mode: str = ""
    options: tuple[str, ...] = ()
    unit: str = "1/s"
    scale: float = 1.0  # operations as the client counts them in one `unit`
    per: str = ""  # what CPU time and system calls are counted for,
    portion: float = 1.0  # in operations as the client counts them
    traced: int = 0  # operations for which system calls are counted, after
    settled: int = 0  # so many, where connections stand: opening and closing them doesn't count

    def measure(self, forwarder: Forwarder, timing: Timing) -> Numbers:
        family, servers = forwarder.processes(), forwarder.servers()
        before, theirs, started = cpu_seconds(family), cpu_seconds(servers), time.monotonic()
        answer = self._run(forwarder, timing.options)
        wall = time.monotonic() - started
        # Children that came since are in the tree now, or their parents waited for them.
        used = cpu_seconds({*family, *forwarder.processes()}) - before
        numbers: Numbers = {
            "rate": answer["rate"] / self.scale,
            "cpu_us": used * 1e6 * self.portion / answer["operations"],
            "busy": used / wall,
            "load_busy": (answer["client_cpu"] + cpu_seconds(servers) - theirs) / wall,
        }
        if "lost" in answer:
            numbers["lost"] = answer["lost"] / answer["operations"]
        if answer["p50_us"]:
            numbers |= {"p50_us": answer["p50_us"], "p99_us": answer["p99_us"]}
        return numbers

    def calls(self, forwarder: Forwarder) -> dict[str, float]:
        total = self._counted(forwarder, self.settled + self.traced)
        spare = self._counted(forwarder, self.settled) if self.settled else {}
        each = {
            name: (number - spare.get(name, 0)) * self.portion / self.traced
            for name, number in total.items()
        }
        return {name: round(number, 3) for name, number in each.items() if number >= 0.001}

    def _counted(self, forwarder: Forwarder, operations: int) -> dict[str, int]:
        def work() -> None:
            self._run(forwarder, ["--operations", str(operations)])

        return counted_calls(forwarder.processes, work)

    def _run(self, forwarder: Forwarder, options: list[str]) -> dict[str, Any]:
        kit, shared = forwarder.kit, forwarder.bed.shared
        return kit.measure(
            self.mode, forwarder.port, shared, *self.options, *options, protocol=self.protocol
        )


@dataclass(frozen=True, slots=True)
class Idle(Row):
    """Connections that were used once and then do nothing."""

    connections: int = 0

    def measure(self, forwarder: Forwarder, timing: Timing) -> Numbers:
        before = holding(forwarder.processes())
        kit, shared = forwarder.kit, forwarder.bed.shared
        with kit.idle(forwarder.port, shared, self.connections) as opened:
            if not opened:
                raise LoadError("no connection could be held")
            time.sleep(timing.seconds)  # what it keeps for a moment only, it may let go
            family = forwarder.processes()
            after = holding(family)
            used = cpu_seconds(family)
            time.sleep(timing.seconds)
            used = cpu_seconds(family) - used
        return {
            "connections": opened,
            "descriptors_each": (after.descriptors - before.descriptors) / opened,
            "processes": after.processes,
            "pss_mib": after.pss_kib / 1024,
            "kib_each": (after.pss_kib - before.pss_kib) / opened,
            "pipe_pages": after.pipe_pages,
            "busy": used / timing.seconds,
        }


@dataclass(frozen=True, slots=True)
class Start(Row):
    """From starting the program to the first answer through it."""

    def measure(self, forwarder: Forwarder, timing: Timing) -> Numbers:
        del timing
        if forwarder.process is None:
            raise LoadError("there is nothing to start")
        return {"ready_ms": forwarder.ready_seconds * 1e3}


def _bulk(connections: int, direction: str, **more: Any) -> Load:
    down = ("--down",) if direction == "down" else ()
    plural = "s" if connections > 1 else ""
    way = "to the server" if direction == "up" else "to the client"
    return Load(
        f"bulk-{connections}-{direction}",
        f"bulk, {connections} connection{plural}, {way}",
        mode="bulk",
        options=("--connections", str(connections), *down),
        unit="GiB/s",
        scale=GIB,
        per="MiB",
        portion=MIB,
        traced=256 * MIB,
        **more,
    )


def _ping_pong(size: int, label: str, at_once: int) -> Load:
    return Load(
        f"ping-pong-{label}-{at_once}",
        f"ping-pong of {size} byte{'s' if size > 1 else ''}, {at_once} at once",
        mode="rounds",
        options=("--size", str(size), "--connections", str(at_once)),
        per="round trip",
        traced=2000,
        settled=200,
    )


def _visits(at_once: int) -> Load:
    return Load(
        f"connect-{at_once}",
        f"connect, request, response, close; {at_once} at once",
        mode="visits",
        options=("--connections", str(at_once)),
        per="connection",
        traced=1000 if at_once == 1 else 2000,
    )


def _datagram_rounds(at_once: int) -> Load:
    return Load(
        f"udp-rounds-{at_once}",
        f"request and answer of 64 bytes by datagrams, {at_once} flow{'s' if at_once > 1 else ''}",
        protocol="udp",
        mode="rounds",
        options=("--size", "64", "--flows", str(at_once)),
        per="round trip",
        traced=2000,
        settled=200,
    )


def _datagram_stream(flows: int, direction: str, segments: int = 1) -> Load:
    kind = f"gso-{flows}" if segments > 1 else f"stream-{flows}"
    calls = f", {segments} a call" if segments > 1 else ""
    way = "to the server" if direction == "up" else "to the client"
    down = ("--down",) if direction == "down" else ()
    return Load(
        f"udp-{kind}-{direction}",
        f"datagrams of 1,400 bytes, {flows} flow{'s' if flows > 1 else ''}{calls}, {way}",
        protocol="udp",
        mode="stream",
        options=("--size", "1400", "--flows", str(flows), "--segments", str(segments), *down),
        per="datagram",
        traced=20_000,
    )


ROWS: tuple[Row, ...] = (
    *(_bulk(number, way) for number in (1, 8, 64) for way in ("up", "down")),
    *(_bulk(200, way, ordinary_only=True) for way in ("up", "down")),
    *(_ping_pong(*size, number) for size in ((1, "1b"), (4096, "4k")) for number in (1, 32)),
    *(_visits(number) for number in (1, 32)),
    *(_datagram_rounds(number) for number in (1, 32)),
    *(_datagram_stream(number, way) for number in (1, 8) for way in ("up", "down")),
    *(_datagram_stream(1, way, segments=45) for way in ("up", "down")),
    *(
        Idle(f"idle-{number}", f"{number:,} idle connections", once=True, connections=number)
        for number in (1000, 5000)
    ),
    Start("start", "start to first answer"),
)
