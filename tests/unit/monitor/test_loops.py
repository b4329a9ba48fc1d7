# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports that lead to each other: told apart from those that only look so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward
from hardsplice.model.ports import parse
from hardsplice.model.protocol import Protocol
from hardsplice.monitor import loops
from hardsplice.monitor.loops import Loops

EPHEMERAL = (10_000, 65_535)  # more of them than is usual, so that `all` is quick


def forwards(inbound: str, outbound: str, versions: tuple[int, ...] = (4, 6)) -> list[Forward]:
    """All listeners of -t and -T with these SPECs, several with spaces between them."""
    options: list[tuple[Direction, str]] = [
        (Direction.INBOUND, inbound),
        (Direction.OUTBOUND, outbound),
    ]
    return [
        forward
        for direction, specs in options
        for forward in parse(specs.split(), direction, ephemeral=EPHEMERAL, versions=versions)
    ]


LOOPS = [
    ("8080", "8080"),
    ("8080:80", "80:8080"),
    ("8080", "~22"),
    ("all", "all"),
    ("all", "5432"),
    ("8080:81 82:8080", "81:82 8080"),  # by way of all of them
    ("127.0.0.1/8080", "8080"),
    ("8080", "127.0.0.1/8080"),
    ("::1/8080", "8080"),
    ("0.0.0.0/8080", "0.0.0.0/8080"),
    ("8080:127.0.0.1/80", "80:127.0.0.1/8080"),
    ("8080:127.8.8.8/80", "80:8080"),  # all of 127.0.0.0/8 is the loopback
    ("8080:127.8.8.8/80", "0.0.0.0/80:8080"),
    ("8080:127.0.0.2/80", "127.0.0.2/80:8080"),
    ("8080:10.0.0.5/80", "10.0.0.5/80:8080"),  # a listener's own address is there
    ("10.0.0.1/8080:80", "80:10.0.0.1/8080"),
    ("%lo/8080", "8080"),
    ("8000-8009", "8005"),
]
NO_LOOPS = [
    ("8080", "8081"),
    ("8080:80", "80"),
    ("8080:80", "8080:80"),  # two servers, one on each side
    ("8080", "8080:9090"),
    ("all,~5432", "5432"),
    ("192.168.1.5/8080", "8080"),  # not reached by way of the loopback
    ("8080", "10.0.0.5/8080"),
    ("127.0.0.2/8080", "8080"),
    ("127.0.0.1/8080", "::1/8080"),
    ("127.0.0.1/8080", "::/8080"),
    ("0.0.0.0/8080", "::/8080"),
    ("%eth0/8080", "8080"),
    ("8080:10.0.0.5/80", "80:8080"),  # is that address ours? nobody says so
    ("8080:10.0.0.5/80", "10.0.0.6/80:8080"),
    # Who comes by IPv4 doesn't get to the second one by IPv6.
    ("127.0.0.1/80:81 ::1/82:83", "127.0.0.1/81:82 ::1/83:127.0.0.1/80"),
]


@pytest.mark.parametrize(("inbound", "outbound"), LOOPS)
def test_a_loop_is_found_from_whichever_side_one_looks(inbound: str, outbound: str) -> None:
    there = forwards(inbound, outbound)
    found = Loops(there)
    sides = [[one for one in there if one.direction is direction] for direction in Direction]
    some = [one for side in sides for one in side[:: max(1, len(side) // 200)]]  # of all ports
    ways = [way for one in some if (way := found.through(one))]
    assert ways
    in_one = [one for way in ways for one in way]
    assert {one.direction for one in in_one} == {*Direction}
    assert all(found.through(one) for one in in_one)
    with pytest.raises(HardspliceError, match="that is a loop") as caught:
        loops.refuse(there)
    assert "leave out one of them" in (caught.value.hint or "")


@pytest.mark.parametrize(("inbound", "outbound"), NO_LOOPS)
def test_what_only_looks_like_one_is_not(inbound: str, outbound: str) -> None:
    loops.refuse(forwards(inbound, outbound))


@pytest.mark.parametrize("versions", [(4,), (6,)])
def test_with_one_family_too(versions: tuple[int, ...]) -> None:
    with pytest.raises(HardspliceError):
        loops.refuse(forwards("8080", "8080", versions))


def test_ports_of_two_protocols_do_not_lead_to_each_other() -> None:
    inbound, outbound = forwards("8080:80", "80:8080")
    with pytest.raises(HardspliceError):
        loops.refuse([inbound, outbound])
    loops.refuse([inbound, outbound._replace(protocol=Protocol.UDP)])


def test_the_line_names_the_ports() -> None:
    with pytest.raises(HardspliceError) as caught:
        loops.refuse(forwards("8080:80", "80:8080"))
    assert str(caught.value) == (
        "cannot forward port 8080 on the host: that is a loop, "
        "by way of port 80 in the namespace, then port 8080 on the host"
    )
    assert caught.value.hint == (
        "leave out one of them, as with -t ~8080, or have one lead elsewhere"
    )


def test_a_port_that_comes_at_run_time_is_looked_at_beside_those_that_are_there() -> None:
    there = forwards("8080:80", "5432")
    (closing,) = forwards("none", "80:8080")
    with pytest.raises(HardspliceError):
        loops.check(closing, there)
    (other,) = forwards("none", "80:8081")
    loops.check(other, there)


def test_all_ports_both_ways_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    there = forwards("all", "all:10.0.0.5")
    looks, after = [0], Loops._after

    def counted(self: Loops, visit: Any) -> Iterator[Any]:
        looks[0] += 1
        return after(self, visit)

    monkeypatch.setattr(Loops, "_after", counted)
    loops.refuse(there)
    assert looks[0] <= 4 * len(there), "for both versions of IP, and one more port each"
