# SPDX-License-Identifier: GPL-2.0-or-later
"""What kills one process, and what the others, the clients and the log make of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.paths import Ends, Lane
from tests.support.product import Instance, can_bind, free_ports
from tests.support.stream import eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
FLOWS = 200


@pytest.fixture
def lanes(
    identity: Identity, namespace: Namespace, launch: Callable[..., Instance]
) -> Iterator[tuple[Instance, Lane, Lane]]:
    """An instance that tells of each flow, and a lane each way."""
    port = free_ports(2)
    instance = launch(
        identity, "-f", "--log-flows", "-t", f"127.0.0.1/{port}:80",
        "-T", f"127.0.0.1/81:{port + 1}", str(namespace.pid),
    ).wait_ready()  # fmt: skip
    inside = namespace.socket
    inbound = Lane(Ends(socket.AF_INET, port, 80, server_side=inside), instance.processes)
    outbound = Lane(Ends(socket.AF_INET, 81, port + 1, client_side=inside), instance.processes)
    with contextlib.closing(inbound), contextlib.closing(outbound):
        inbound.listen()
        outbound.listen()
        yield instance, inbound, outbound


def works(pair: tuple[socket.socket, socket.socket]) -> None:
    for one, other in (pair, pair[::-1]):
        one.sendall(b"on")
        assert other.recv(2, socket.MSG_WAITALL) == b"on"


def relay_of(instance: Instance, lane: Lane, inbound: Lane) -> int:
    """The relay that serves a lane: the host monitor, which was started, has the outbound one."""
    return next(
        pid
        for pid in instance.relays()
        if (int(procfs.stat(pid)[1]) == instance.pid) == (lane is not inbound)
    )


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_a_relay_killed_amid_many_flows_costs_its_own_and_nobody_else(
    lanes: tuple[Instance, Lane, Lane], direction: str
) -> None:
    """The listener stays: of those who come the moment after, none is refused."""
    instance, inbound, outbound = lanes
    lane, other = (inbound, outbound) if direction == "inbound" else (outbound, inbound)
    doomed = [lane.pair() for _ in range(FLOWS)]
    bystanders = [other.pair() for _ in range(20)]
    for pair in (*doomed, *bystanders):
        works(pair)
    monitors = set(instance.processes()) - set(instance.relays())
    victim = relay_of(instance, lane, inbound)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    newcomers = [lane.client() for _ in range(FLOWS)]  # ConnectionRefusedError would fail this
    served = [lane.accept() for _ in newcomers[:1]]
    print(f"the next connection reached its server after {time.monotonic() - killed:.3f} s")
    served += [lane.accept() for _ in newcomers[1:]]
    for client in newcomers:
        client.sendall(b"x")
    for server in served:
        assert server.recv(1) == b"x"
    for pair in doomed:
        for end in pair:
            with contextlib.suppress(ConnectionResetError):
                assert end.recv(1) == b"", "each of the relay's own flows has ended"
    for pair in bystanders:
        works(pair)
    assert monitors < set(instance.processes()), "no monitor was replaced"
    assert victim not in instance.relays()
    again = f"{direction}: the relay was started again: killed by SIGKILL"
    eventually(lambda: again in instance.messages(), "no word of it")
    said = instance.messages()
    assert said.count(again) == 1
    assert said.count("broken off when the relay died") == FLOWS
    instance.stop()


@pytest.mark.parametrize("which", ["first process", "namespace monitor"])
def test_a_monitor_killed_amid_many_flows_ends_everything_at_once(
    lanes: tuple[Instance, Lane, Lane], which: str
) -> None:
    """Never half alive: whoever is left says why, and no orphan holds a port."""
    instance, inbound, outbound = lanes
    for lane in (inbound, outbound):
        for _ in range(FLOWS // 2):
            works(lane.pair())
    family = instance.processes()
    monitors = [pid for pid in family if pid not in instance.relays()]
    assert monitors[0] == instance.pid
    os.kill(monitors[which == "namespace monitor"], signal.SIGKILL)
    status = instance.wait()
    eventually(lambda: not [pid for pid in family if procfs.alive(pid)], "some live on", within=3)
    assert can_bind("127.0.0.1", inbound.ends.entry)
    if which == "first process":
        assert status == -signal.SIGKILL
        return
    assert status == 1
    last = instance.messages().splitlines()[-1]
    assert last == "hardsplice: cannot keep the namespace monitor running: it was killed by SIGKILL"
    assert instance.messages().count("broken off when") == FLOWS


def test_sighup_loses_nothing(lanes: tuple[Instance, Lane, Lane]) -> None:
    instance, inbound, outbound = lanes
    pairs = [lane.pair() for lane in (inbound, outbound) for _ in range(20)]
    procfs.settle(instance.processes())  # as pools are filled up, sockets pass through a monitor
    before = {pid: procfs.descriptors(pid) for pid in instance.processes()}
    os.kill(instance.pid, signal.SIGHUP)
    for pair in pairs:
        works(pair)
    after = {pid: procfs.descriptors(pid) for pid in instance.processes()}
    assert after.keys() == before.keys()
    for pid, held in before.items():
        assert held.items() <= after[pid].items()  # pools may have been filled up meanwhile
    assert instance.messages() == ""
    instance.stop()
