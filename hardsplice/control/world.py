# SPDX-License-Identifier: GPL-2.0-or-later
"""What a request can read and change: the host monitor as the control socket sees it.

Routes know these types only, so that they are tested without a process; `host` fills them in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hardsplice.control.http import Request, Response
from hardsplice.kernel import hints
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.telemetry.counters import Latency
from hardsplice.telemetry.flow_table import FlowRow


@dataclass(frozen=True, slots=True)
class RelayView:
    """One relay as its shared memory has it now."""

    direction: Direction
    protocol: Protocol
    number: int  # among those of its direction and protocol
    is_started: bool  # one that has nothing to do yet isn't
    counters: Mapping[str, int]  # telemetry/counters.py, COUNTERS
    gauges: Mapping[str, int]  # telemetry/counters.py, GAUGES
    states: Mapping[str, int]  # flows by the names of flow_table.State
    latency: Latency


@dataclass(frozen=True, slots=True)
class Snapshot:
    """hardsplice at one moment."""

    version: str
    pid: int  # of the host monitor
    served: str  # whose namespace it is, for people
    served_pid: int | None  # where it is a process's
    label: str  # whose it is, in metrics: a name, a path, a process's number, or a COMMAND
    uptime: float  # seconds
    lacking: Sequence[str]  # layers of the sandbox that are not in force, each with the reason
    relays: Sequence[RelayView]  # those that aren't started yet, too
    connections: int  # to the control socket
    denied_peers: int  # peers of the control socket that were turned away


class Ports(hints.Protocol):
    """The ports that are forwarded; monitor/registry.py has them, and says what each call does."""

    def list(self) -> Sequence[Forward]:
        """Those that are listened on."""

    def find(self, port_id: int) -> Forward | None:
        """One by its ID."""

    def add(self, asked: Forward, done: Callable[[Forward | HardspliceError], None]) -> None:
        """Forward one more; ``done`` gets it with its ID, or why not."""

    def remove(
        self, port_id: int, *, reset_flows: bool, done: Callable[[HardspliceError | None], None]
    ) -> None:
        """Forward it no longer; ``done`` gets why not, or None."""


class World(hints.Protocol):
    """The host monitor."""

    #: How a port's protocol was spelled, by its id, where that was not simply tcp or udp.
    spelled: dict[int, str]

    @property
    def ports(self) -> Ports:
        """The ports that are forwarded."""

    @property
    def versions(self) -> Sequence[int]:
        """The versions of IP in use."""

    def snapshot(self) -> Snapshot:
        """What there is to be told of everything but single flows."""

    def flows(self) -> Iterator[tuple[Direction, FlowRow]]:
        """The flows that there are, each with its direction."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way to its answer."""

    request: Request
    argument: str  # what stands for {...} in the route's path
    query: Mapping[str, str]
    world: World
    respond: Callable[[Response], None]

    def answer(self, value: object, status: int = 200) -> None:
        """Answer with a JSON text."""
        self.respond(Response(status, json.dumps(value).encode()))

    def answer_empty(self) -> None:
        """Answer that it is done."""
        self.respond(Response(200))

    def refuse(self, status: int, message: str, hint: str | None = None) -> None:
        """Answer with an error; the connection goes on."""
        self.respond(refusal(status, message, hint, close=False))


def refusal(
    status: int, message: str, hint: str | None = None, *, close: bool = True, allow: str = ""
) -> Response:
    """An error in the form that RootlessKit's clients know, with the next step where there is
    one.
    """
    body = {"message": message} if hint is None else {"message": message, "hint": hint}
    return Response(status, json.dumps(body).encode(), close=close, allow=allow)
