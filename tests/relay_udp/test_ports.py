# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports of datagrams that come and go while hardsplice serves, locked down as ever."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardsplice.ctl.client import Client, RefusedError
from hardsplice.relay.pools import POOL_SIZE
from tests.relay_udp.site import DIRECTIONS, Launch, Site, sited
from tests.support import procfs
from tests.support.datagram_paths import Lane
from tests.support.datagrams import Letters, carry
from tests.support.netns import Identity
from tests.support.stream import eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
GROWTH = 2048  # KiB that a process may have more after many changes than before


@pytest.fixture(params=DIRECTIONS)
def site(
    launch: Launch, identity: Identity, user_directory: Path, request: pytest.FixtureRequest
) -> Iterator[Site]:
    """One without a port, for either direction."""
    with sited(launch, identity, user_directory, request.param, bare=True) as made:
        yield made


def add(site: Site, proto: str = "udp", more: int = 0, address: str = "127.0.0.1") -> int:
    """Add a port as the API has it; its number."""
    here, there = (site.entry + more, site.exit + more)
    spec: dict[str, object] = {"proto": proto}
    if site.direction == "inbound":
        spec |= {"parentIP": address, "parentPort": here, "childPort": there}
    else:
        spec |= {"childIP": address, "childPort": here, "parentPort": there}
        spec["direction"] = "outbound"
    with contextlib.closing(Client(str(site.control))) as client:
        return int(client.add(spec)["id"])


def remove(site: Site, number: int, *, reset: bool = False) -> None:
    with contextlib.closing(Client(str(site.control))) as client:
        client.remove(number, reset_flows=reset)


def listed(site: Site) -> list[tuple[int, str]]:
    """Number and protocol of each port."""
    with contextlib.closing(Client(str(site.control))) as client:
        return [(one["id"], one["spec"]["proto"]) for one in client.get("/v1/ports?direction=all")]


def is_open(lane: Lane) -> bool:
    """Whether somebody is bound for the clients."""
    with lane.ends.client_side(lane.family) as probe:
        if lane.family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(lane.entry())
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def test_the_first_port_starts_the_relay(site: Site) -> None:
    """Without a port there is no process for datagrams; afterwards there is, and it serves."""
    assert site.relays() == []
    number = add(site)
    with site.lane() as lane:
        lane.meet(lane.client(), lane.server())
        assert len(site.relays()) == 1
        assert listed(site) == [(number, "udp")]
        lane.assert_quiet()


@pytest.mark.parametrize("reset", [False, True])
def test_a_removed_port_is_free_and_can_come_again(site: Site, reset: bool) -> None:
    """Its flows end with it, another port's go on, and nothing is heard of the old ones."""
    doomed, kept = add(site), add(site, more=1)
    with site.lane() as lane:
        client, server = lane.client(0), lane.server(0)
        other, others = lane.client(1), lane.server(1)
        old = lane.meet(client, server)
        lane.meet(other, others)
        remove(site, doomed, reset=reset)
        assert listed(site) == [(kept, "udp")]
        assert not is_open(lane)
        eventually(lambda: len(site.flows()) == 1, "the flow ends")
        with contextlib.suppress(ConnectionRefusedError):
            server.send(b"too late", old)
        carry(other, others, Letters().some([100] * 20))
        again = add(site)
        assert again not in (doomed, kept)
        lane.meet(lane.client(0), server)
        lane.meet(other, others)


@pytest.mark.parametrize(
    ("proto", "address", "families"),
    [
        ("udp", "", {socket.AF_INET, socket.AF_INET6}),
        ("udp4", "", {socket.AF_INET}),
        ("udp6", "", {socket.AF_INET6}),
        ("udp", "::1", {socket.AF_INET6}),
    ],
)
def test_families(
    site: Site, proto: str, address: str, families: set[socket.AddressFamily]
) -> None:
    """Which clients are served; and the server may be on either loopback."""
    add(site, proto, address=address)
    for family in (socket.AF_INET, socket.AF_INET6):
        with site.lane(family=family) as lane:
            assert is_open(lane) == (family in families)
            if family in families:
                lane.meet(lane.client(), lane.server())


def test_the_same_port_again_is_refused(site: Site) -> None:
    """With its number, while TCP's with the same number is another."""
    number = add(site)
    with pytest.raises(RefusedError, match=f"forwarded already, with the id {number}"):
        add(site)
    add(site, "tcp")
    with site.lane() as lane:
        lane.meet(lane.client(), lane.server())


def test_another_programs_port_is_refused(site: Site) -> None:
    with site.lane() as lane:
        with lane.ends.client_side(socket.AF_INET) as other:
            other.bind(lane.entry())
            with pytest.raises(RefusedError, match="Address already in use"):
                add(site)
        add(site)
        lane.meet(lane.client(), lane.server())


def held(site: Site) -> dict[int, tuple[int, int]]:
    """Of each process: descriptors (0 where they are hidden), and KiB of memory."""

    def of(pid: int) -> tuple[int, int]:
        return len(procfs.descriptors(pid)) if os.geteuid() == 0 else 0, procfs.resident(pid)

    return procfs.each(of, site.instance.processes())


def test_many_come_and_go_without_a_trace(site: Site) -> None:
    """A port is free once its removal is answered: it can be added again at once. No descriptor
    and no memory is left over, and another port's flow isn't disturbed."""
    add(site, more=1)
    with site.lane() as lane:
        client, server = lane.client(1), lane.server(1)
        met = lane.meet(client, server)
        for _ in range(20):  # whatever is made once is made
            remove(site, add(site))
        lane.settle()
        before = held(site)
        for number in range(300):
            added = add(site)
            if number % 3 == 0:
                brief, served = lane.client(0), lane.server(0)
                lane.meet(brief, served)
                lane.forget(brief)
                lane.forget(served)
            remove(site, added, reset=number % 2 == 0)
        assert carry(client, server, Letters().some([100] * 20)).peer == met.peer
        for pid, (descriptors, memory) in held(site).items():
            assert descriptors <= before[pid][0] + POOL_SIZE
            assert memory - before[pid][1] < GROWTH
