# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports that are added and removed while hardsplice serves, locked down as ever."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conftest import identity_named
from tests.support import procfs
from tests.support.driver import Driver, RefusedError, driven
from tests.support.netns import Identity, Namespace
from tests.support.product import can_bind, free_ports
from tests.support.stream import (
    PATIENCE,
    Stream,
    eventually,
    expect,
    expect_end,
    finish,
    send,
)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
GROWTH = 2048  # KiB that a process may have more after a thousand changes than before


@dataclass
class Sides:
    """A direction: where clients are, where servers are, and the ports to use there."""

    name: str
    clients: Namespace | None  # None: the host
    servers: Namespace | None
    entry: int
    exit: int

    def spec(self, more: int = 0) -> str:
        """The SPEC of a forward, on the loopback."""
        return f"127.0.0.1/{self.entry + more}:{self.exit}"

    def listen(self, stack: contextlib.ExitStack) -> socket.socket:
        """A server."""
        server = stack.enter_context(_socket(self.servers))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", self.exit))
        server.listen(1024)
        return server

    def connect(self, stack: contextlib.ExitStack, more: int = 0) -> socket.socket:
        """A client."""
        client = stack.enter_context(_socket(self.clients))
        client.connect(("127.0.0.1", self.entry + more))
        return client

    def is_refused(self) -> bool:
        """Whether nobody listens for clients."""
        with contextlib.ExitStack() as stack:
            try:
                self.connect(stack)
            except ConnectionRefusedError:
                return True
        return False


def _socket(place: Namespace | None) -> socket.socket:
    made = place.socket(socket.AF_INET) if place else socket.socket()
    made.settimeout(PATIENCE)
    return made


def exchange(client: socket.socket, server: socket.socket) -> None:
    """Bytes both ways."""
    there, back = Stream(), Stream()
    send(client, there, 1000)
    expect(server, there, 1000)
    send(server, back, 1000)
    expect(client, back, 1000)


@dataclass
class Stand:
    """A product that was started without a port, and a direction of it."""

    driver: Driver
    sides: Sides
    stack: contextlib.ExitStack
    server: socket.socket

    def pair(self, more: int = 0) -> tuple[socket.socket, socket.socket]:
        """A connection."""
        client = self.sides.connect(self.stack, more)
        server = self.stack.enter_context(self.server.accept()[0])
        server.settimeout(PATIENCE)
        return client, server


@contextlib.contextmanager
def standing(identity: Identity, direction: str, *arguments: str) -> Iterator[Stand]:
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(Namespace(identity))
        port = free_ports(3)
        sides = (
            Sides(direction, None, namespace, port, 8080)
            if direction == "inbound"
            else Sides(direction, namespace, None, 8080, port)
        )
        driver = stack.enter_context(driven(identity, "-f", *arguments, str(namespace.pid)))
        yield Stand(driver, sides, stack, sides.listen(stack))


@pytest.fixture(params=["inbound", "outbound"])
def stand(identity: Identity, request: pytest.FixtureRequest) -> Iterator[Stand]:
    """Both directions, as root and as an ordinary user."""
    with standing(identity, request.param) as made:
        yield made


@pytest.fixture
def inbound(identity: Identity) -> Iterator[Stand]:
    with standing(identity, "inbound") as made:
        yield made


def test_a_port_that_is_added_works_at_once_and_one_removed_is_refused_at_once(
    stand: Stand,
) -> None:
    """Connections that it has go on."""
    sides, driver = stand.sides, stand.driver
    assert sides.is_refused()
    port = driver.add(sides.name, sides.spec())
    assert driver.list() == [f"{port} {sides.name} {sides.entry} control"]
    client, server = stand.pair()
    exchange(client, server)
    driver.remove(port)
    assert driver.list() == []
    assert sides.is_refused()
    exchange(client, server)
    finish(client)
    expect_end(server, Stream(), 0)
    assert driver.add(sides.name, sides.spec()) != port, "numbers are not used again"
    exchange(*stand.pair())


def test_a_port_can_be_removed_with_its_connections(stand: Stand) -> None:
    """Those of other ports are not touched."""
    sides, driver = stand.sides, stand.driver
    doomed, kept = (driver.add(sides.name, sides.spec(more)) for more in (0, 1))
    assert doomed != kept
    first, second = stand.pair(0), stand.pair(1)
    driver.remove(doomed, reset=True)
    for end in first:
        expect_end(end, Stream(), 0, "reset")
    exchange(*second)
    exchange(*stand.pair(1))


def test_relays_that_are_replaced_have_the_ports_of_now(stand: Stand) -> None:
    sides, driver = stand.sides, stand.driver
    gone, there = (driver.add(sides.name, sides.spec(more)) for more in (0, 1))
    assert gone != there
    driver.remove(gone)
    name = "hs-relay-in" if sides.name == "inbound" else "hs-relay-out"
    (relay,) = (pid for pid in driver.instance.processes() if procfs.status(pid)["Name"] == name)
    os.kill(relay, signal.SIGKILL)
    exchange(*stand.pair(1))
    assert sides.is_refused()
    driver.add(sides.name, sides.spec())
    exchange(*stand.pair())


def test_with_several_relays_each_has_the_port(identity: Identity) -> None:
    with standing(identity, "inbound", "--workers", "2") as stand:
        port = stand.driver.add("inbound", stand.sides.spec())
        for _ in range(10):
            exchange(*stand.pair())
        stand.driver.remove(port)
        assert stand.sides.is_refused()


def test_ports_of_options_are_listed_and_can_be_removed(identity: Identity) -> None:
    with Namespace(identity) as namespace:
        port = free_ports()
        with driven(
            identity, "-f", "-t", f"127.0.0.1/{port}:80", "-T", "127.0.0.1/81", str(namespace.pid)
        ) as driver:
            assert driver.list() == [f"1 inbound {port} option", "2 outbound 81 option"]
            driver.remove(1)
            assert can_bind("127.0.0.1", port)
            driver.remove(2)
            assert driver.list() == []


# --- what can't be had ----------------------------------------------------------------------------


def test_the_same_port_again_is_a_conflict_that_names_the_first(stand: Stand) -> None:
    sides, driver = stand.sides, stand.driver
    port = driver.add(sides.name, sides.spec())
    with pytest.raises(RefusedError, match=rf"forwarded already, with the id {port}; "):
        driver.add(sides.name, sides.spec())
    exchange(*stand.pair())


def test_a_port_that_another_program_has_is_an_error_with_its_reason(stand: Stand) -> None:
    sides, driver = stand.sides, stand.driver
    with _socket(sides.clients) as other:
        other.bind(("127.0.0.1", sides.entry))
        other.listen()
        with pytest.raises(
            RefusedError, match=r"^cannot listen on .*: Address already in use; find"
        ):
            driver.add(sides.name, sides.spec())
    driver.add(sides.name, sides.spec())
    exchange(*stand.pair())


def test_privileged_ports_and_foreign_addresses_are_errors_as_at_the_start() -> None:
    with standing(identity_named("user"), "inbound") as stand:
        with pytest.raises(RefusedError, match=r"Permission denied; .*ip_unprivileged_port_start"):
            stand.driver.add("inbound", "127.0.0.1/1023:80")
        with pytest.raises(RefusedError, match=r"Cannot assign requested address; no interface"):
            stand.driver.add("inbound", f"192.0.2.1/{stand.sides.entry}:80")
        with pytest.raises(RefusedError, match="there is no port with that id"):
            stand.driver.remove(77)


def test_an_interface_can_be_listened_on(inbound: Stand) -> None:
    inbound.driver.add("inbound", f"%lo/{inbound.sides.entry}:8080")
    exchange(*inbound.pair())
    with pytest.raises(RefusedError, match="No such device; no interface"):
        inbound.driver.add("inbound", f"%none/{inbound.sides.entry + 1}:8080")
    with pytest.raises(RefusedError, match=r"Cannot assign requested address|Invalid argument"):
        inbound.driver.add("inbound", f"fe80::1%lo/{inbound.sides.entry + 1}:8080")


def test_more_ports_than_there_are_descriptors_for_are_refused(identity: Identity) -> None:
    """The product lives on, and so do its connections."""
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(Namespace(identity))
        first = free_ports(150)
        command = ("-f", str(namespace.pid))
        driver = stack.enter_context(driven(identity, *command, descriptors=150))

        def add_all() -> None:
            for number in range(150):
                driver.add("inbound", f"127.0.0.1/{first + number}:80")

        with pytest.raises(RefusedError, match="there are places for 37 listeners"):
            add_all()
        ports = driver.list()
        assert len(ports) > 20
        driver.remove(int(ports[0].split()[0]))
        driver.add("inbound", f"127.0.0.1/{first}:80")


# --- many -----------------------------------------------------------------------------------------


def held(driver: Driver) -> dict[int, tuple[int, int]]:
    """Of each process: descriptors (0 where they are hidden), and KiB of memory."""
    found = {}
    for pid in driver.instance.processes():
        count = len(procfs.descriptors(pid)) if os.geteuid() == 0 else 0
        found[pid] = count, procfs.resident(pid)
    return found


def test_a_thousand_come_and_go_beside_connections_without_a_trace(stand: Stand) -> None:
    """None of the connections is disturbed; no descriptor and no memory is left over."""
    sides, driver = stand.sides, stand.driver
    driver.add(sides.name, sides.spec(1))
    pairs = [stand.pair(1) for _ in range(20)]
    for _ in range(20):  # whatever is made once is made
        driver.remove(driver.add(sides.name, sides.spec()))
    procfs.settle(driver.instance.processes())
    before = held(driver)
    for number in range(1000):
        driver.remove(driver.add(sides.name, sides.spec()), reset=number % 2 == 0)
        if number % 100 == 0:
            exchange(*pairs[number % len(pairs)])
    for pair in pairs:
        exchange(*pair)

    def same_descriptors() -> bool:
        now = held(driver)
        return {pid: count for pid, (count, _) in now.items()} == {
            pid: count for pid, (count, _) in before.items()
        }

    eventually(same_descriptors, lambda: f"{before} became {held(driver)}")
    for pid, (_, memory) in held(driver).items():
        assert memory - before[pid][1] < GROWTH


def test_ports_asked_for_all_at_once_are_all_there(inbound: Stand) -> None:
    """Requests that come faster than they are served wait for each other."""
    first = free_ports(60)
    for number in range(60):
        inbound.driver.end.send(f"add inbound 127.0.0.1/{first + number}:8080".encode())
    numbers = [int(inbound.driver.answer()) for _ in range(60)]
    assert numbers == sorted(set(numbers))
    inbound.sides.entry = first
    for number in (0, 30, 59):
        exchange(*inbound.pair(number))
