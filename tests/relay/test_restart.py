# SPDX-License-Identifier: GPL-2.0-or-later
"""Relays that die are replaced, and those that keep dying end the program."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.relay import contract
from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.paths import Ends, Lane
from tests.support.product import Instance, can_bind, free_ports
from tests.support.stream import (
    Stream,
    Violation,
    eventually,
    expect,
    expect_end,
    finish,
    send,
)

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")
RESTART = 0.2  # seconds from a relay's death to the next connection's first answer


@dataclass
class Setup:
    """An instance with a lane each way."""

    instance: Instance
    inbound: Lane
    outbound: Lane
    port: int

    def relay_of(self, lane: Lane) -> int:
        """The relay that serves the lane: a child of the monitor that lives where it does."""
        return next(pid for pid in self.instance.relays() if self.serves(pid, lane))

    def serves(self, relay: int, lane: Lane) -> bool:
        """The process that was started is the host's monitor, the parent of the outbound relay."""
        parent = int(procfs.stat(relay)[1])
        return (parent == self.instance.pid) == (lane is self.outbound)


@pytest.fixture
def setup(identity: Identity, launch: Launch) -> Iterator[Callable[[], Setup]]:
    """Make instances with a lane each way, as many as a test wants."""
    with contextlib.ExitStack() as stack:

        def make() -> Setup:
            namespace = stack.enter_context(Namespace(identity))
            port = free_ports(2)
            instance = launch(
                identity, "-f", "-t", f"127.0.0.1/{port}:80", "-T", f"127.0.0.1/81:{port + 1}",
                str(namespace.pid),
            ).wait_ready()  # fmt: skip
            inside = namespace.socket
            family = socket.AF_INET
            lanes = [
                Lane(ends, instance.processes)
                for ends in (
                    Ends(family, port, 80, server_side=inside),
                    Ends(family, 81, port + 1, client_side=inside),
                )
            ]
            for lane in lanes:
                stack.callback(lane.close)
                lane.listen()
            return Setup(instance, lanes[0], lanes[1], port)

        yield make


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_the_next_connection_works_at_once(setup: Callable[[], Setup], direction: str) -> None:
    """Nobody is refused, a client that comes now is served within 200 ms, and all is as before."""
    took = []
    for _ in range(3):  # one of three, so that a busy machine's hiccup is no failure
        made = setup()
        lane = getattr(made, direction)
        contract.successors(lane)
        os.kill(made.relay_of(lane), signal.SIGKILL)
        began = time.monotonic()
        client, server = lane.pair()
        stream = Stream()
        send(client, stream, 100)
        expect(server, stream, 100)
        took.append(time.monotonic() - began)
        contract.successors(lane)
        made.instance.stop()
        if took[-1] < RESTART:
            return
    raise Violation(f"the next connection took {took} s")


def test_connections_of_the_dead_relay_break_and_others_go_on(setup: Callable[[], Setup]) -> None:
    made = setup()
    doomed, peer = made.inbound.pair()
    client, server = made.outbound.pair()
    there, back = Stream(), Stream()
    send(client, there, 1000)
    expect(server, there, 1000)
    os.kill(made.relay_of(made.inbound), signal.SIGKILL)
    for end in (doomed, peer):
        # The kernel closes a killed process's sockets: with a FIN, or with a reset for unread data.
        with contextlib.suppress(ConnectionResetError):
            assert end.recv(1) == b""
    send(server, back, 1000)
    finish(server)
    expect_end(client, back, 1000)
    contract.successors(made.inbound)
    contract.successors(made.outbound)
    made.instance.stop()


def test_each_replacement_is_locked_down_like_the_first(setup: Callable[[], Setup]) -> None:
    made = setup()
    contract.successors(made.inbound)
    first = made.relay_of(made.inbound)
    names = ("Seccomp", "Seccomp_filters", "NoNewPrivs", "CapEff", "CapPrm", "CapBnd", "Uid", "Gid")
    before = {name: procfs.status(first)[name] for name in names}
    os.kill(first, signal.SIGKILL)
    contract.successors(made.inbound)
    second = made.relay_of(made.inbound)
    assert second != first
    assert {name: procfs.status(second)[name] for name in names} == before
    made.instance.stop()


@pytest.mark.timeout(150)
@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_a_crash_loop_ends_with_an_error(setup: Callable[[], Setup], direction: str) -> None:
    """Killed as soon as it is there, again and again: one clear line, status 1, nothing left."""
    made = setup()
    lane = getattr(made, direction)
    deadline = time.monotonic() + 90
    family = set(made.instance.processes())
    monitors = family - set(made.instance.relays())  # one whose relay is dead is a leaf, too
    while made.instance.process.poll() is None:
        if time.monotonic() > deadline:
            raise Violation("hardsplice still restarts its relay after 90 s")
        family |= set(made.instance.processes())
        for pid in set(made.instance.relays()) - monitors:
            with contextlib.suppress(ProcessLookupError):
                if made.serves(pid, lane):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    assert made.instance.wait() == 1
    last = made.instance.messages().splitlines()[-1]
    assert last.startswith("hardsplice: cannot "), made.instance.messages()
    eventually(lambda: not any(map(procfs.alive, family)), "processes remain", within=3)
    assert can_bind("127.0.0.1", made.port)


@pytest.mark.parametrize("which", ["host monitor", "namespace monitor"])
def test_a_monitor_killed_leaves_nothing_half_alive(setup: Callable[[], Setup], which: str) -> None:
    """Without its monitors hardsplice ends: no relay goes on unsupervised, no port stays bound."""
    made = setup()
    client, _ = made.inbound.pair()
    family = made.instance.processes()
    relays = made.instance.relays()
    target = next(pid for pid in family[1:] if pid not in relays)
    os.kill(made.instance.pid if which == "host monitor" else target, signal.SIGKILL)
    status = made.instance.wait(5)
    assert status == (-signal.SIGKILL if which == "host monitor" else 1), made.instance.messages()
    eventually(
        lambda: not [pid for pid in family if procfs.alive(pid)], "processes remain", within=3
    )
    assert can_bind("127.0.0.1", made.port)
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""
