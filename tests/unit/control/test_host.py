# SPDX-License-Identifier: GPL-2.0-or-later
"""The host monitor as the control socket's routes see it: what it tells is what is in shared
memory, and an error of ours costs one request.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from hardsplice.control import host
from hardsplice.control.host import HostWorld
from hardsplice.control.http import Request, Response
from hardsplice.control.routes import ROUTES
from hardsplice.control.server import Admission
from hardsplice.kernel import socketcalls
from hardsplice.model.direction import Direction
from hardsplice.model.protocol import Protocol
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.counters import Stats
from hardsplice.telemetry.flow_log import Traffic
from tests.unit.control.fake_host import world_of


@pytest.fixture
def world() -> HostWorld:
    """A monitor with one relay inbound and two outbound."""
    traffic = [
        Traffic(Direction.INBOUND, [Stats(8)]),
        Traffic(Direction.OUTBOUND, [Stats(8), Stats(8)]),
    ]
    return world_of(traffic, ["Landlock"])


def ask(world: HostWorld, path: str) -> Response:
    answers: list[Response] = []
    world.handle(Request("GET", path, "", b"", True), answers.append)
    (answer,) = answers
    return answer


def test_what_relays_wrote_is_told(world: HostWorld) -> None:
    outbound = world.monitor.traffic[1].stats[1]
    outbound.count[count.ACCEPTED] = 5
    outbound.gauges()[0] = 9
    assert outbound.flows is not None
    at = outbound.flows.positions()[0]
    client = socketcalls.endpoint(socketcalls.sockaddr(IPv4Address("192.0.2.1"), 40000))
    outbound.flows.open(at, 3, Protocol.TCP.number, client, client, time.monotonic())
    (flow,) = json.loads(ask(world, "/v1/flows").body)["flows"]
    assert (flow["direction"], flow["port"], flow["client"]) == ("outbound", 3, "192.0.2.1:40000")
    now = world.snapshot()
    assert [(relay.direction, relay.number) for relay in now.relays] == [
        ("inbound", 0), ("outbound", 0), ("outbound", 1),
    ]  # fmt: skip
    assert now.relays[2].counters["accepted"] == 5
    assert now.relays[2].gauges["pipes_open"] == 9
    assert now.relays[2].states["connecting"] == 1
    assert (now.pid, now.lacking, now.served_pid) == (os.getpid(), ("Landlock",), 7)


@pytest.mark.parametrize("path", ["/v1/status", "/v1/flows", "/v1/audit", "/v1/info", "/metrics"])
def test_every_route_has_an_answer(world: HostWorld, path: str) -> None:
    assert ask(world, path).status == 200


def test_an_error_of_ours_costs_one_request_and_is_logged(
    world: HostWorld, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(host, "dispatch", fail)
    answer = ask(world, "/v1/status")
    assert (answer.status, answer.close) == (500, True)
    said = "cannot answer a request: ZeroDivisionError: by zero"
    assert json.loads(answer.body) == {"message": said}
    assert capfd.readouterr().err == f"hardsplice: {said}\n"


def test_what_is_for_everybody(world: HostWorld) -> None:
    """A server of its own, which knows no other path, whatever the method."""
    control = replace(world.control, metrics=-1)
    both = HostWorld(world.monitor, control)
    first, second = both.servers
    assert first is both.server
    assert second.admission == Admission(None, None)
    assert second.admission.objection(4711, 5) is None
    for method in ("GET", "HEAD", "POST", "DELETE"):
        for path in ROUTES:
            answers: list[Response] = []
            second.handle(Request(method, path, "", b"{}", True), answers.append)
            is_for_all = path == "/metrics" and method in ("GET", "HEAD")
            assert (answers[0].status == 200) is is_for_all
