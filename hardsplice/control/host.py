# SPDX-License-Identifier: GPL-2.0-or-later
"""The host monitor as a World: the source of what the control socket reports.

All of it is in this process's memory or in memory that relays share with it: an answer costs relays
nothing, and no system call but those that send it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from hardsplice import __version__
from hardsplice.control.http import Request, Response
from hardsplice.control.routes import FOR_ALL, ROUTES, HttpRoutes, dispatch
from hardsplice.control.server import Admission, Server
from hardsplice.control.world import RelayView, Snapshot, refusal
from hardsplice.ipc.loop import Loop
from hardsplice.kernel import hints
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError, printable
from hardsplice.monitor.registry import Registry
from hardsplice.telemetry.counters import Stats
from hardsplice.telemetry.flow_log import Traffic
from hardsplice.telemetry.flow_table import FlowRow
from hardsplice.telemetry.log import Level, Log


class ServedMonitor(hints.Protocol):
    """What is shown of the host monitor, which knows nothing of the control socket."""

    @property
    def loop(self) -> Loop:
        """On which it lives."""

    @property
    def log(self) -> Log:
        """For errors of ours."""

    @property
    def registry(self) -> Registry:
        """The ports that are forwarded."""

    @property
    def traffic(self) -> Sequence[Traffic]:
        """Each direction's counters and flow tables."""

    @property
    def lacking(self) -> Sequence[str]:
        """Layers of the lock-down that are not in force."""


@dataclass(frozen=True, slots=True)
class Control:
    """What set-up made for the control socket."""

    listener: int
    metrics: int | None  # the listener that is for everybody, and for metrics only
    admission: Admission
    versions: Sequence[int]  # of IP in use
    served: str  # whose namespace it is, for people
    served_pid: int | None
    label: str  # whose namespace it is, in metrics
    began: float  # when hardsplice was started, in CLOCK_MONOTONIC seconds

    def serve(self, monitor: ServedMonitor) -> None:
        """Begin to serve, on the monitor's loop."""
        for server in HostWorld(monitor, self).servers:
            server.start()


class HostWorld:
    """What routes ask."""

    def __init__(self, monitor: ServedMonitor, control: Control) -> None:
        self.monitor = monitor
        self.control = control
        self.spelled: dict[int, str] = {}
        self.server = Server(control.listener, control.admission, monitor.loop, self.handle)
        self.servers = [self.server]
        if control.metrics is not None:
            everybody = replace(control.admission, users=None)
            answer = partial(self.handle, routes=FOR_ALL)
            self.servers.append(Server(control.metrics, everybody, monitor.loop, answer))

    @property
    def ports(self) -> Registry:
        """The ports that are forwarded."""
        return self.monitor.registry

    @property
    def versions(self) -> Sequence[int]:
        """The versions of IP in use."""
        return self.control.versions

    def snapshot(self) -> Snapshot:
        """What there is to be told of everything but single flows."""
        monitor = self.monitor
        return Snapshot(
            version=__version__,
            pid=os.getpid(),
            served=self.control.served,
            served_pid=self.control.served_pid,
            label=self.control.label,
            uptime=time.monotonic() - self.control.began,
            lacking=tuple(map(printable, monitor.lacking)),
            relays=[
                _view(one, number, stats)
                for one in monitor.traffic
                for number, stats in enumerate(one.stats)
            ],
            connections=len(self.server.connections),
            denied_peers=self.server.refused,
        )

    def flows(self) -> Iterator[tuple[Direction, FlowRow]]:
        """The flows that there are, each with its direction."""
        for one in self.monitor.traffic:
            for stats in one.stats:
                if stats.flows is not None:
                    for row in stats.flows:
                        yield one.direction, row

    def handle(
        self, request: Request, respond: Callable[[Response], None], routes: HttpRoutes = ROUTES
    ) -> None:
        """Serve a request. An error of ours ends that request, not the monitor."""
        try:
            dispatch(request, self, respond, routes)
        except Exception as error:  # noqa: BLE001 - a client must not end a service, whatever it is
            unforeseen = HardspliceError("answer", "a request", f"{type(error).__name__}: {error}")
            self.monitor.log.limited(Level.ERROR, "request", str(unforeseen))
            respond(refusal(500, str(unforeseen)))


def _view(of: Traffic, number: int, stats: Stats) -> RelayView:
    return RelayView(
        direction=of.direction,
        protocol=of.protocol,
        number=number,
        is_started=stats.is_started,
        counters=stats.snapshot(),
        gauges=stats.in_use(),
        states=stats.flows.states() if stats.flows is not None else {},
        latency=stats.connect_latency(),
    )
