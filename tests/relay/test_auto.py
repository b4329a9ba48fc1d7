# SPDX-License-Identifier: GPL-2.0-or-later
"""`-t auto` and `-T auto` follow servers that come and go in the other namespace."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, can_bind, free_ports
from tests.support.stream import PATIENCE, Stream, Violation, eventually, expect, send

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")
SOON = 0.25  # seconds until a server is reached, while things change
GROWTH = 2048  # KiB
POOL = 40  # descriptors that a relay may have more at one time than at another, as pools are filled


def served(place: Namespace | None, port: int, address: str = "127.0.0.1") -> socket.socket:
    """A server in a namespace, or on the host."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = place.socket(family) if place else socket.socket(family)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    server.listen()
    server.settimeout(PATIENCE)
    return server


def client(place: Namespace | None, port: int) -> socket.socket | None:
    """A connection to the loopback there; None when it is refused, or reset at once."""
    with contextlib.suppress(ConnectionError):
        return connected(place, port)
    return None


def connected(place: Namespace | None, port: int) -> socket.socket:
    made = place.socket(socket.AF_INET) if place else socket.socket()
    made.settimeout(PATIENCE)
    try:
        made.connect(("127.0.0.1", port))
    except BaseException:
        made.close()
        raise
    return made


def is_open(place: Namespace | None, port: int) -> bool:
    """Whether somebody listens, be there a server behind it or not."""
    try:
        connected(place, port).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        return True  # it took the connection, and its target refused
    return True


def exchange(place: Namespace | None, port: int, server: socket.socket) -> None:
    """Bytes from a client to the server; connections that nobody waits for may come first."""
    made = eventually(lambda: client(place, port), f"port {port} is not forwarded")
    assert made is not None
    with made:
        stream = Stream()
        send(made, stream, 100)
        while True:
            with server.accept()[0] as accepted:
                accepted.settimeout(PATIENCE)
                if accepted.recv(1, socket.MSG_PEEK):
                    expect(accepted, stream, 100)
                    return


@pytest.fixture
def start(launch: Launch, identity: Identity, namespace: Namespace) -> Callable[..., Instance]:
    """Start an instance for the namespace."""

    def start(*arguments: str) -> Instance:
        return launch(identity, "-f", *arguments, str(namespace.pid)).wait_ready()

    return start


@pytest.fixture
def port() -> int:
    return free_ports(4)


# --- following ------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_servers_are_reached_as_long_as_they_are_there(
    start: Callable[..., Instance], namespace: Namespace, port: int, direction: str
) -> None:
    """One that is there at the start is reached when hardsplice says that it is ready."""
    inbound = direction == "inbound"
    option, clients, servers = ("-t", None, namespace) if inbound else ("-T", namespace, None)
    with served(servers, port) as first:
        instance = start(option, f"auto,{port}-{port + 3}")
        assert is_open(clients, port)
        exchange(clients, port, first)
        with served(servers, port + 1) as second:
            exchange(clients, port + 1, second)
            exchange(clients, port, first)
        eventually(lambda: not is_open(clients, port + 1), "it is forwarded without its server")
        exchange(clients, port, first)
    eventually(lambda: not is_open(clients, port), "it is forwarded without its server")
    instance.stop()


def test_while_things_change_a_new_server_is_reached_at_once(
    start: Callable[..., Instance], namespace: Namespace, port: int
) -> None:
    instance = start("-t", f"auto,{port}-{port + 3}")
    took = []
    for _ in range(5):  # one of five, so that a busy machine's hiccup is no failure
        with served(namespace, port):
            began = time.monotonic()
            eventually(lambda: is_open(None, port), "it is not forwarded")
            took.append(time.monotonic() - began)
        eventually(lambda: not is_open(None, port), "it is forwarded without its server")
    if min(took) > SOON:
        raise Violation(f"a server was reached after {took} s")
    instance.stop()


def test_fifty_starts_and_stops_leave_nothing(
    start: Callable[..., Instance], namespace: Namespace, port: int
) -> None:
    instance = start("-t", f"auto,{port}-{port + 3}")
    family = instance.processes()

    def once() -> None:
        with served(namespace, port) as server:
            exchange(None, port, server)
        eventually(lambda: not is_open(None, port), "it is forwarded without its server")

    def held() -> dict[int, int]:
        return {pid: len(procfs.descriptors(pid)) for pid in family if os.geteuid() == 0}

    before: dict[int, int] = {}  # the most: pools empty and are filled again
    for _ in range(20):
        once()
        before = {pid: max(count, before.get(pid, 0)) for pid, count in held().items()}
    memory = [procfs.resident(pid) for pid in family]
    for _ in range(50):
        once()
    eventually(
        lambda: all(count - before[pid] < POOL for pid, count in held().items()),
        lambda: f"{before} became {held()}",
    )
    for pid, kib in zip(family, memory, strict=True):
        assert procfs.resident(pid) - kib < GROWTH
    assert instance.processes() == family
    instance.stop()


def sleeps(pid: int) -> int:
    """How often a process has gone to sleep by itself: once a look, while nothing else happens."""
    return int(procfs.status(pid)["voluntary_ctxt_switches"])


def test_in_peace_it_is_looked_once_a_second(
    start: Callable[..., Instance], namespace: Namespace, port: int
) -> None:
    """And the other processes sleep through it."""
    with served(namespace, port):
        instance = start("-t", f"auto,{port}-{port + 3}", "-T", "auto,1-2")
        family = instance.processes()

        def is_at_rest() -> bool:
            before, began = {pid: sleeps(pid) for pid in family}, time.monotonic()
            time.sleep(4.0)
            host, *others = (sleeps(pid) - before[pid] for pid in family)
            looks = time.monotonic() - began  # a busy machine may have made it longer
            return looks - 2 < host < looks + 2 and sum(others) <= 1

        eventually(is_at_rest, "it never comes to rest", within=30)
        instance.stop()


# --- what is left out -----------------------------------------------------------------------------


def test_both_directions_together_do_not_echo(
    start: Callable[..., Instance], namespace: Namespace, port: int
) -> None:
    """A server on each side is seen from the other one, and that is all."""
    with served(namespace, port) as inside, served(None, port + 1) as outside:
        instance = start(
            "-t", f"127.0.0.1/auto,{port}-{port + 3}", "-T", f"[::1]/auto,{port}-{port + 3}"
        )
        exchange(None, port, inside)
        with namespace.socket(socket.AF_INET6) as made:
            made.settimeout(PATIENCE)
            made.connect(("::1", port + 1))
        time.sleep(0.5)  # some looks, in which an echo would come
        assert not is_open(None, port + 2)
        with namespace.socket(socket.AF_INET6) as made, pytest.raises(ConnectionRefusedError):
            made.connect(("::1", port))
        with socket.socket(socket.AF_INET6) as probe, pytest.raises(ConnectionRefusedError):
            probe.connect(("::1", port))
        exchange(None, port, inside)
        outside.close()
        inside.close()
        eventually(lambda: not is_open(None, port), "an echo keeps itself alive")
        instance.stop()


def test_exclusions_ranges_and_far_addresses_are_left_out(
    start: Callable[..., Instance], namespace: Namespace, port: int
) -> None:
    with contextlib.ExitStack() as stack:
        for number, address in ((0, "127.0.0.1"), (1, "127.0.0.1"), (2, "127.0.0.2")):
            stack.enter_context(served(namespace, port + number, address))
        there = stack.enter_context(served(namespace, port + 3))
        instance = start("-t", f"auto,{port + 1}-{port + 3},~{port + 1}")
        exchange(None, port + 3, there)
        for number in (0, 1, 2):
            assert not is_open(None, port + number)
            assert can_bind("::", port + number)
        instance.stop()


def test_ports_given_by_number_stand_beside_auto(
    start: Callable[..., Instance], namespace: Namespace, port: int
) -> None:
    """They are there without a server, and lead where they were told to."""
    with served(namespace, port + 1) as server:
        instance = start(
            "-t", f"127.0.0.1/{port}:{port + 1}", "-t", f"127.0.0.1/auto,{port}-{port + 3}"
        )
        exchange(None, port, server)
        exchange(None, port + 1, server)
        with served(namespace, port):
            time.sleep(0.3)  # some looks, in which it would be taken over
            exchange(None, port, server)
        assert "auto" not in instance.messages()
        instance.stop()


def test_mapped_ranges_and_addresses_hold_for_auto(
    start: Callable[..., Instance], namespace: Namespace, port: int
) -> None:
    with served(namespace, 80, "::") as server:
        instance = start("-t", f"127.0.0.1/auto,{port}-{port + 3}:79-82")
        exchange(None, port + 1, server)
        assert not is_open(None, port)
        assert can_bind("127.0.0.2", port + 1)
        instance.stop()


# --- what can't be had ----------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_once_and_had_when_it_is_free(
    start: Callable[..., Instance], namespace: Namespace, port: int
) -> None:
    with served(namespace, port) as server:
        with served(None, port):
            instance = start("-t", f"127.0.0.1/auto,{port}-{port + 3}")
            time.sleep(0.5)  # some looks, in which it would be said again
            lines = [line for line in instance.messages().splitlines() if "auto: " in line]
            assert len(lines) == 1
            assert (
                f"cannot listen on 127.0.0.1 port {port} on the host: Address already" in lines[0]
            )
        exchange(None, port, server)
        instance.stop()


def test_with_a_command_it_follows_what_the_command_starts(
    launch: Launch, identity: Identity, port: int
) -> None:
    program = (
        f"import socket; s = socket.create_server(('127.0.0.1', {port})); "
        "c = s.accept()[0]; c.sendall(b'hello')"
    )
    instance = launch(
        identity, "-t", f"127.0.0.1/auto,{port}", "--", "/usr/bin/python3", "-c", program
    ).wait_ready()
    made = eventually(lambda: client(None, port), "COMMAND's server is not reached")
    assert made is not None
    with made:
        assert made.recv(5) == b"hello"
    assert instance.wait() == 0
