# SPDX-License-Identifier: GPL-2.0-or-later
"""What the namespace monitor is told when all is to end."""

from __future__ import annotations

import pytest

from hardsplice.ipc.messages import Kind, MalformedError, Record, decode, encode
from hardsplice.model.direction import Direction
from hardsplice.model.protocol import Protocol
from hardsplice.monitor.shutdown import account, orders, stored_ports
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.counters import Stats
from hardsplice.telemetry.flow_log import Traffic
from hardsplice.telemetry.log import Level, Log


@pytest.mark.parametrize("number", [0, 1, 512, 513, 2000])
def test_however_many_listeners_are_kept_the_namespace_monitor_is_told_all(number: int) -> None:
    """In as many records as it takes, of which the last one says so."""
    kept = list(range(7, 7 + number))
    told = [decode(encode(record)) for record in orders(kept)]
    assert {record.kind for record in told} == {Kind.DRAIN_RELAYS}
    assert [number for record in told for number in stored_ports(record)] == kept
    assert [bool(record.small) for record in told] == [True] * (len(told) - 1) + [False]


def test_what_is_no_list_of_listeners_is_malformed() -> None:
    with pytest.raises(MalformedError):
        stored_ports(Record(Kind.DRAIN_RELAYS, text=b"12345"))


def counted(protocol: Protocol, drained: int, stopped: int) -> Traffic:
    stats = Stats()
    stats.count[count.DRAINED], stats.count[count.STOPPED] = drained, stopped
    return Traffic(Direction.INBOUND, [stats], protocol)


CONNECTIONS = "connections that finished meanwhile: {}, that were reset: {}"
FLOWS = "flows of UDP that finished meanwhile: {}, that were broken off: {}"


@pytest.mark.parametrize(
    ("of_tcp", "of_udp", "said"),
    [
        ((0, 0), (0, 0), ""),
        ((2, 1), (0, 0), f"ended; {CONNECTIONS.format(2, 1)}"),
        ((0, 0), (0, 3), f"ended; {FLOWS.format(0, 3)}"),
        ((1, 0), (2, 3), f"ended; {CONNECTIONS.format(1, 0)}; {FLOWS.format(2, 3)}"),
    ],
)
def test_connections_and_flows_of_udp_are_told_apart_at_the_end(
    of_tcp: tuple[int, int],
    of_udp: tuple[int, int],
    said: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    traffic = [counted(Protocol.TCP, *of_tcp), counted(Protocol.UDP, *of_udp)]
    account(Log(Level.INFO), traffic)
    assert capfd.readouterr().err == (f"hardsplice: {said}\n" if said else "")
