# SPDX-License-Identifier: GPL-2.0-or-later
"""The line of a flow's end: what it says, and what it says of those that are missing."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address

import pytest

from hardsplice.kernel import socketcalls
from hardsplice.model.direction import Direction
from hardsplice.model.protocol import Protocol
from hardsplice.telemetry.counters import UNLOGGED, UNPASSED, Stats
from hardsplice.telemetry.flow_log import FlowLog, Traffic
from hardsplice.telemetry.flow_table import End, InvalidRowError
from hardsplice.telemetry.log import LINES_A_SECOND, Level, Log, LogFormat


def where(direction: str, index: int) -> str:
    """As the host monitor names its only port."""
    return "127.0.0.1 port 8080" if (direction, index) == ("inbound", 1) else "a port"


def made(form: LogFormat = "text") -> tuple[FlowLog, Log, Stats]:
    log, stats = Log(Level.ERROR, form), Stats(4)
    return FlowLog(log, [Traffic(Direction.INBOUND, [Stats(4), stats])], where), log, stats


def a_row(stats: Stats, port_id: int = 1) -> bytes:
    assert stats.flows is not None
    at = stats.flows.positions()[0]
    client = socketcalls.endpoint(socketcalls.sockaddr(IPv4Address("192.0.2.1"), 40000))
    target = socketcalls.endpoint(socketcalls.sockaddr(IPv6Address("::1"), 80))
    stats.flows.open(at, port_id, Protocol.TCP.number, client, target, 10.0)
    stats.count[at], stats.count[at + 1] = 17, 2000
    return stats.flows.close(at, stats.count, 10.25)


def test_a_line_says_who_with_whom_how_much_how_long_and_how_it_ended(
    capfd: pytest.CaptureFixture[str],
) -> None:
    flows, _, stats = made()
    flows.ended(Direction.INBOUND, End.CLIENT_RESET, a_row(stats))
    assert capfd.readouterr().err == (
        "hardsplice: inbound, 127.0.0.1 port 8080: 192.0.2.1:40000 to [::1]:80: "
        "17 bytes to the target, 2000 to the client, 0.250 s, reset by the client\n"
    ), "although the log has errors only: it was asked for"


def test_as_json_it_says_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    flows, _, stats = made("json")
    flows.ended(Direction.INBOUND, End.FIN, a_row(stats))
    line = json.loads(capfd.readouterr().err)
    del line["time"]
    assert line == {
        "level": "info",
        "event": "flow",
        "direction": "inbound",
        "protocol": "tcp",
        "listener": "127.0.0.1 port 8080",
        "client": "192.0.2.1",
        "client_port": 40000,
        "target": "::1",
        "target_port": 80,
        "bytes_to_target": 17,
        "bytes_to_client": 2000,
        "seconds": 0.25,
        "end": "fin",
    }


@pytest.mark.parametrize("end", list(End))
def test_each_end_has_words(end: End, capfd: pytest.CaptureFixture[str]) -> None:
    flows, _, stats = made()
    flows.ended(Direction.INBOUND, end, a_row(stats))
    assert capfd.readouterr().err.count("\n") == 1


def test_a_listener_that_a_relay_made_up_is_a_port(capfd: pytest.CaptureFixture[str]) -> None:
    flows, _, stats = made()
    flows.ended(Direction.INBOUND, End.FIN, a_row(stats, port_id=99))
    assert "inbound, a port: " in capfd.readouterr().err
    with pytest.raises(InvalidRowError):
        flows.ended(Direction.INBOUND, End.FIN, b"nonsense")


def test_flows_that_are_left_at_the_end_are_told_of(capfd: pytest.CaptureFixture[str]) -> None:
    flows, _, stats = made()
    assert stats.flows is not None
    a_row(stats)
    stats.flows.open(
        stats.flows.positions()[1], 0, Protocol.TCP.number, (bytes(16), 1), (bytes(16), 2), 0.0
    )
    flows.finish()
    assert capfd.readouterr().err.count("broken off when hardsplice ended\n") == 1
    flows.finish()
    assert capfd.readouterr().err == ""


def test_ends_that_were_missed_are_counted_once_each(capfd: pytest.CaptureFixture[str]) -> None:
    flows, log, stats = made()
    log.level = Level.WARNING
    row = a_row(stats)
    stats.count[UNLOGGED] = 3
    flows.ended(Direction.INBOUND, End.FIN, row)
    assert "inbound: 3 ends of flows are not in the log" in capfd.readouterr().err
    stats.kept[UNPASSED] = 4
    flows.ended(Direction.INBOUND, End.FIN, row)
    assert "not in the log" not in capfd.readouterr().err, "at most once a second"
    log.limiter._last["missed", (Direction.INBOUND, Protocol.TCP)] -= 2 * LINES_A_SECOND
    stats.count[UNLOGGED] = 5
    flows.ended(Direction.INBOUND, End.FIN, row)
    said = capfd.readouterr().err
    assert "inbound: 6 ends of flows are not in the log" in said
    stats.count[UNLOGGED] = 7
    flows.finish()
    assert "inbound: 2 ends of flows are not in the log" in capfd.readouterr().err
    stats.count[UNLOGGED] = 0
    flows.finish()
    assert capfd.readouterr().err == "", "a relay that counts backwards is not believed"
