# SPDX-License-Identifier: GPL-2.0-or-later
"""Podman's requests to rootlessport, good ones and bad ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from hardsplice.frontends import mapping
from hardsplice.frontends import rootlessport_request as request
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.protocol import Protocol

MAPPING = {"host_ip": "", "container_port": 80, "host_port": 8080, "range": 1, "protocol": "tcp"}


@pytest.fixture
def given() -> Iterator[dict[str, Any]]:
    read, write = os.pipe()
    yield {
        "Mappings": [MAPPING],
        "NetNSPath": "/run/user/1000/netns/rootless-netns",
        "ExitFD": read,
        "ReadyFD": write,
        "TmpDir": "/run/user/1000/libpod/tmp",
        "ChildIP": "10.89.0.2",
        "ContainerID": "ab" * 32,
        "RootlessCNI": True,
    }
    os.close(read)
    os.close(write)


def parse(given: dict[str, Any]) -> request.Request:
    return request.parse(json.dumps(given).encode())


def test_a_request_is_ports_and_what_ends_them(given: dict[str, Any]) -> None:
    found = parse(given)
    assert (found.netns, found.folder) == (given["NetNSPath"], given["TmpDir"])
    assert (found.ready_fd, found.exit_fd) == (given["ReadyFD"], given["ExitFD"])
    (port,) = found.forwards
    assert (port.direction, port.address, port.port, port.id) == (Direction.INBOUND, None, 8080, 1)
    assert (port.target, port.target_port) == (ip_address("10.89.0.2"), 80)


def test_what_may_be_missing(given: dict[str, Any]) -> None:
    found = parse({**given, "RootlessCNI": False, "TmpDir": "", "ChildIP": ""})
    assert (found.folder, found.socket) == (None, None)
    assert str(found.forwards[0].target) == "127.0.0.1"


def test_a_range_counts_ports_and_protocols_are_listed(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "KNOWN", {*Protocol})
    several = {**MAPPING, "host_ip": "::1", "range": 3, "protocol": "tcp,udp"}
    ports = parse({**given, "Mappings": [several, {**MAPPING, "range": 0}]}).forwards
    assert [(one.protocol, one.port, one.target_port) for one in ports] == [
        (protocol, 8080 + at, 80 + at)
        for protocol in (Protocol.TCP, Protocol.UDP)
        for at in range(3)
    ]
    assert {str(one.address) for one in ports} == {"::1"}
    assert [one.id for one in ports] == [*range(1, 7)]


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_every_address_is_of_both_families(given: dict[str, Any], host: str) -> None:
    (port,) = parse({**given, "Mappings": [{**MAPPING, "host_ip": host}]}).forwards
    assert port.address is None


def test_the_socket_is_named_by_the_container(given: dict[str, Any]) -> None:
    assert parse(given).socket == f"/run/user/1000/libpod/tmp/rp/{'ab' * 32}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Mappings": "80"}, "Mappings is not a list"),
        ({"Mappings": [80]}, "Mappings is not a list"),
        ({"Mappings": [{**MAPPING, "host_port": 65536}]}, "host_port '65536'"),
        ({"Mappings": [{**MAPPING, "host_port": True}]}, "host_port 'True'"),
        ({"Mappings": [{**MAPPING, "host_port": None}]}, "host_port 'None'"),
        ({"Mappings": [{**MAPPING, "host_port": 65535, "range": 2}]}, "host_port '65536'"),
        ({"Mappings": [{**MAPPING, "container_port": 0}]}, "container_port '0'"),
        ({"Mappings": [{**MAPPING, "range": -1}]}, "range is not"),
        ({"Mappings": [{**MAPPING, "host_ip": "localhost"}]}, "host_ip 'localhost'"),
        ({"Mappings": [{**MAPPING, "host_ip": "fe80::1%eth0"}]}, "zone"),
        ({"Mappings": [{**MAPPING, "protocol": "sctp"}]}, "'sctp'"),
        ({"ChildIP": "web"}, "ChildIP 'web'"),
        ({"NetNSPath": ""}, "NetNSPath is missing"),
        ({"NetNSPath": "a\0b"}, "NetNSPath is not a text"),
        ({"ReadyFD": "4"}, "ReadyFD is not"),
        ({"ReadyFD": 2}, "ReadyFD is not"),
        ({"ExitFD": 1 << 40}, "not open"),
        ({"TmpDir": "libpod"}, "not the path of a folder"),
        ({"TmpDir": ""}, "name no socket"),
        ({"ContainerID": "../x"}, "name no socket"),
    ],
)
def test_a_wrong_request_is_one_clear_line(
    change: dict[str, Any], words: str, given: dict[str, Any]
) -> None:
    with pytest.raises(HardspliceError) as caught:
        parse({**given, **change})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_no_request(text: bytes) -> None:
    with pytest.raises(HardspliceError, match="the request"):
        request.parse(text)
