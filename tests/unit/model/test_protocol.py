# SPDX-License-Identifier: GPL-2.0-or-later
"""Protocols: 53/udp is no 53/tcp. That they are kept apart by the registry, on the wire, by names
under which listeners are kept, in loops and by auto is beside what does it.
"""

from __future__ import annotations

import socket
from itertools import combinations_with_replacement

import pytest

from hardsplice.model.direction import Direction
from hardsplice.model.forward import overlap
from hardsplice.model.ports import parse
from hardsplice.model.protocol import BY_NUMBER, Protocol

SPECS = ("53", "127.0.0.1/53", "[::1]/53", "%lo/53", "0.0.0.0/53")


def test_numbers_are_the_kernel_s() -> None:
    assert Protocol.TCP.number == socket.IPPROTO_TCP
    assert Protocol.UDP.number == socket.IPPROTO_UDP
    assert all(BY_NUMBER[one.number] is one for one in Protocol)
    assert len(BY_NUMBER) == len(Protocol)


@pytest.mark.parametrize(("one", "other"), [*combinations_with_replacement(SPECS, 2)])
def test_ports_of_two_protocols_never_overlap(one: str, other: str) -> None:
    first, second = (parse([one], Direction.INBOUND, ephemeral=(1, 2))[0] for one in (one, other))
    same = overlap(first, second)
    for protocol in Protocol:
        a, b = (forward._replace(protocol=protocol) for forward in (first, second))
        assert overlap(a, b) == overlap(b, a) == same
        for another in {*Protocol} - {protocol}:
            assert not overlap(a, b._replace(protocol=another))
    assert overlap(first, first)


def test_what_options_ask_for_is_tcp() -> None:
    assert {
        one.protocol for one in parse(["1-9", "0:80"], Direction.INBOUND, ephemeral=(1, 2))
    } == {Protocol.TCP}
