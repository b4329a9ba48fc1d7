# SPDX-License-Identifier: GPL-2.0-or-later
"""Listeners from a socket unit (-t inherit), and those that come back from the store of a service
manager, so that a restart refuses nobody.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading

import pytest

from tests.service.conftest import Serve, gone, passes, still_served
from tests.support.manager import Manager
from tests.support.netns import Identity, Namespace
from tests.support.product import Program, family, free_ports
from tests.support.stream import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def unit(manager: Manager, name: str, *, listen: bool = True) -> int:
    """A socket unit's listener: its port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        if listen:
            one.listen()
        port: int = one.getsockname()[1]
        manager.units.append((name, one.detach()))
    return port


# --- socket units ---


def test_each_name_leads_to_its_target_and_one_takes_the_rest(
    serve: Serve, namespace: Namespace, inside: socket.socket
) -> None:
    manager = Manager()
    web, other, third = (unit(manager, name) for name in ("web", "other", "third"))
    with namespace.socket(socket.AF_INET) as second:
        second.bind(("127.0.0.1", 81))
        second.listen()
        second.settimeout(PATIENCE)
        serve(
            manager, "-f", "-t", "inherit:81", "-t", "inherit:web:127.0.0.1/80",
            str(namespace.pid),
        ).until_ready()  # fmt: skip
        passes(web, inside)
        passes(other, second)
        passes(third, second)
    with socket.socket(fileno=os.dup(manager.units[0][1])) as passed:
        assert passed.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert manager.store == [], "they are the socket unit's, which keeps them itself"
    manager.stop()
    with socket.create_connection(("127.0.0.1", web), timeout=PATIENCE):
        pass  # the socket unit still listens


def test_a_client_that_came_before_the_service_is_served(
    serve: Serve, namespace: Namespace, inside: socket.socket
) -> None:
    manager = Manager()
    port = unit(manager, "web")
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(b"early")
        serve(manager, "-f", "-t", "inherit:web:80", str(namespace.pid)).until_ready()
        with inside.accept()[0] as server:
            server.settimeout(PATIENCE)
            assert server.recv(5, socket.MSG_WAITALL) == b"early"
    manager.stop()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("file", "it is no socket: "),
        ("datagrams", "it is no TCP socket"),
        ("unix", "it is no TCP socket"),
        ("bound", "it does not listen"),
        ("foreign", "it belongs to another network namespace than the host's"),
        ("none", "the service manager passed none"),
    ],
)
def test_what_is_no_listener_of_the_host_is_refused(
    serve: Serve, namespace: Namespace, kind: str, reason: str
) -> None:
    manager = Manager()
    if kind == "file":
        manager.units.append(("web", os.open("/dev/null", os.O_RDONLY)))
    elif kind == "datagrams":
        manager.units.append(("web", socket.socket(type=socket.SOCK_DGRAM).detach()))
    elif kind == "unix":
        manager.units.append(("web", socket.socket(socket.AF_UNIX).detach()))
    elif kind == "bound":
        unit(manager, "web", listen=False)
    elif kind == "foreign":
        foreign = namespace.socket(socket.AF_INET)
        foreign.bind(("127.0.0.1", 82))
        foreign.listen()
        manager.units.append(("web", foreign.detach()))
    serve(manager, "-f", "-t", "inherit:web:80", str(namespace.pid))
    assert manager.wait() == 1
    said = manager.messages()
    assert said.startswith(f"hardsplice: cannot take listener 'web': {reason}"), said
    assert "Traceback" not in said


def datagrams(manager: Manager, name: str) -> int:
    """A socket unit's socket of UDP: its port."""
    with socket.socket(type=socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        manager.units.append((name, one.detach()))
    return port


def echoes(port: int, server: socket.socket) -> None:
    """A datagram gets to the server, and its answer back."""
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", port))
        client.send(b"ping")
        data, sender = server.recvfrom(16)
        server.sendto(data, sender)
        assert client.recv(16) == b"ping"


def test_sockets_of_udp_are_taken_by_their_own_option(
    serve: Serve, namespace: Namespace, inside: socket.socket
) -> None:
    """What takes the rest takes that of its protocol."""
    manager = Manager()
    web, dns, other = unit(manager, "web"), datagrams(manager, "dns"), datagrams(manager, "other")
    with namespace.datagram_socket(socket.AF_INET) as server:
        server.bind(("127.0.0.1", 53))
        server.settimeout(PATIENCE)
        serve(
            manager, "-f", "-t", "inherit:80", "-u", "inherit:dns:53", "-u", "inherit:53",
            str(namespace.pid),
        ).until_ready()  # fmt: skip
        passes(web, inside)
        echoes(dns, server)
        echoes(other, server)
    manager.stop()


def test_a_socket_of_udp_is_kept_while_the_service_is_restarted(
    serve: Serve, namespace: Namespace
) -> None:
    """What came meanwhile waits in it."""
    manager = Manager(keeps=16)
    port = free_ports()
    with namespace.datagram_socket(socket.AF_INET) as server:
        server.bind(("127.0.0.1", 53))
        server.settimeout(PATIENCE)
        words = ("-f", "-u", f"127.0.0.1/{port}:53", str(namespace.pid))
        serve(manager, *words).until_ready()
        echoes(port, server)
        manager.stop()
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", port))
            client.send(b"early")
            serve(manager, *words).until_ready()
            data, sender = server.recvfrom(16)
            server.sendto(data, sender)
            assert client.recv(16) == b"early"
    manager.stop()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("tcp", "it is no UDP socket"), ("unbound", "it is not bound"), ("peer", "it is connected")],
)
def test_what_is_no_socket_of_udp_that_all_may_send_to_is_refused(
    serve: Serve, namespace: Namespace, kind: str, reason: str
) -> None:
    manager = Manager()
    if kind == "tcp":
        unit(manager, "dns")
    else:
        with socket.socket(type=socket.SOCK_DGRAM) as one:
            if kind == "peer":
                one.connect(("127.0.0.1", 9))
            manager.units.append(("dns", one.detach()))
    serve(manager, "-f", "-u", "inherit:dns:53", str(namespace.pid))
    assert manager.wait() == 1
    assert f"cannot take listener 'dns': {reason}" in manager.messages()


def test_one_that_nobody_takes_is_said_and_closed(
    serve: Serve, namespace: Namespace, inside: socket.socket
) -> None:
    manager = Manager()
    port = unit(manager, "spare")
    serve(manager, "-f", "-t", f"127.0.0.1/{free_ports()}:80", str(namespace.pid)).until_ready()
    assert (
        "listener 'spare' was passed, but no -t inherit and no -u inherit takes it"
        in manager.messages()
    )
    manager.stop()
    assert port


def test_descriptors_that_are_passed_to_somebody_else_are_not_taken(
    program: Program, identity: Identity, namespace: Namespace
) -> None:
    """LISTEN_PID names another process: what is at 3 is no listener of ours."""
    argv, environment = program.argv(identity)
    done = subprocess.run(
        [*argv, "-f", "-t", "inherit:80", str(namespace.pid)],
        env={**environment, "LISTEN_FDS": "1", "LISTEN_PID": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", check=False,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot take a listener: the service manager passed none" in done.stderr


# --- the store ---


@pytest.fixture
def restarts(namespace: Namespace) -> tuple[int, list[str]]:
    """A port of each direction: the first one's number, and the options for both."""
    port = free_ports(2)
    return port, ["-f", "-t", f"127.0.0.1/{port}:80", "-T", f"127.0.0.1/81:{port + 1}",
                 str(namespace.pid)]  # fmt: skip


Restarts = tuple[int, list[str]]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_client_is_refused_while_it_is_restarted(
    serve: Serve, namespace: Namespace, inside: socket.socket, restarts: Restarts, how: int
) -> None:
    """In both directions: those who come meanwhile wait, and are served."""
    port, options = restarts
    manager = serve(Manager(), *options).until_ready()
    assert [name for name, _ in manager.store] == [
        f"hardsplice/inbound/tcp/127.0.0.1/{port}",
        "hardsplice/outbound/tcp/127.0.0.1/81",
    ]
    passes(port, inside)
    started = family(manager.main)
    os.kill(manager.main, how)
    manager.wait()
    gone(started)
    early = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    outward = namespace.socket(socket.AF_INET)
    outward.settimeout(PATIENCE)
    outward.connect(("127.0.0.1", 81))
    before = list(manager.store)
    with early, outward, socket.create_server(("127.0.0.1", port + 1)) as outside:
        outside.settimeout(PATIENCE)
        serve(manager, *options).until_ready()
        for client, listener in ((early, inside), (outward, outside)):
            still_served(client, listener)
    assert manager.store == before, "what was kept is kept on, and nothing twice"
    passes(port, inside)
    manager.stop()


def test_connects_all_through_a_restart_succeed(
    serve: Serve, inside: socket.socket, restarts: Restarts
) -> None:
    """Attempts and refusals are counted; how long they take is not judged."""
    port, options = restarts
    manager = serve(Manager(), *options).until_ready()
    attempts, refused = 0, 0
    over = threading.Event()

    def knock() -> None:
        nonlocal attempts, refused
        while not over.wait(0.005):
            attempts += 1
            try:
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
            except ConnectionRefusedError:
                refused += 1

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        for how in (signal.SIGTERM, signal.SIGKILL):
            started = family(manager.main)
            os.kill(manager.main, how)
            manager.wait()
            gone(started)
            serve(manager, *options).until_ready()
    finally:
        over.set()
        knocking.join()
    assert attempts > 20
    assert refused == 0
    manager.stop()


def test_what_is_asked_for_no_longer_is_kept_no_longer(
    serve: Serve, namespace: Namespace, restarts: Restarts
) -> None:
    port, options = restarts
    manager = serve(Manager(), *options).until_ready()
    manager.stop()
    serve(manager, "-f", "-t", f"127.0.0.1/{port}:82", str(namespace.pid)).until_ready()
    assert [name for name, _ in manager.store] == [f"hardsplice/inbound/tcp/127.0.0.1/{port}"]
    manager.stop()
    serve(manager, "-f", str(namespace.pid)).until_ready()
    assert manager.store == []
    manager.stop()


def test_a_free_port_stays_the_same_over_a_restart(
    serve: Serve, namespace: Namespace, inside: socket.socket
) -> None:
    """In both directions, and each leads to where it led, in whatever order they are asked for."""
    first = ("-f", "-t", "127.0.0.1/0:80,0:81", "-T", "127.0.0.1/0:82", str(namespace.pid))
    again = ("-f", "-t", "127.0.0.1/0:81,0:80", "-T", "127.0.0.1/0:82", str(namespace.pid))
    manager = serve(Manager(), *first).until_ready()

    def kept() -> dict[str, int]:
        found = {}
        for name, fd in manager.store:
            with socket.socket(fileno=os.dup(fd)) as one:
                found[name] = one.getsockname()[1]
        return found

    before = kept()
    assert set(before) == {
        "hardsplice/inbound/tcp/127.0.0.1/0=80",
        "hardsplice/inbound/tcp/127.0.0.1/0=81",
        "hardsplice/outbound/tcp/127.0.0.1/0=82",
    }
    passes(before["hardsplice/inbound/tcp/127.0.0.1/0=80"], inside)
    manager.stop()
    serve(manager, *again).until_ready()
    assert kept() == before
    passes(before["hardsplice/inbound/tcp/127.0.0.1/0=80"], inside)
    manager.stop()


def test_a_listener_of_another_namespace_is_not_taken_up(
    serve: Serve, identity: Identity, namespace: Namespace, restarts: Restarts
) -> None:
    """The container was started anew meanwhile: its listeners are bound there again."""
    port, options = restarts
    manager = serve(Manager(), *options).until_ready()
    manager.stop()
    (old,) = [fd for name, fd in manager.store if "outbound" in name]
    stale = os.fstat(old).st_ino
    with Namespace(identity) as other, socket.create_server(("127.0.0.1", port + 1)) as outside:
        serve(manager, *options[:-1], str(other.pid)).until_ready()
        assert len(manager.store) == 2
        assert stale not in {os.fstat(fd).st_ino for _, fd in manager.store}
        outside.settimeout(PATIENCE)
        with other.socket(socket.AF_INET) as client:
            client.connect(("127.0.0.1", 81))
            outside.accept()[0].close()
        manager.stop()


def test_what_is_kept_under_one_of_our_names_is_looked_at(
    serve: Serve, inside: socket.socket, restarts: Restarts
) -> None:
    port, options = restarts
    manager = Manager()
    name = f"hardsplice/inbound/tcp/127.0.0.1/{port}"
    with socket.create_server(("127.0.0.1", 0)) as wrong:
        manager.store.append((name, os.dup(wrong.fileno())))
    manager.store.append(("hardsplice/nonsense", os.open("/dev/null", os.O_RDONLY)))
    serve(manager, *options).until_ready()
    passes(port, inside)
    assert [kept for kept, _ in manager.store] == [name, "hardsplice/outbound/tcp/127.0.0.1/81"]
    manager.stop()


def test_there_may_be_less_room_than_listeners(
    serve: Serve, inside: socket.socket, restarts: Restarts
) -> None:
    port, options = restarts
    manager = serve(Manager(keeps=1), *options).until_ready()
    assert len(manager.store) == 1
    assert "does not keep 1 of 2 listeners: raise FileDescriptorStoreMax=" in manager.messages()
    passes(port, inside)
    manager.stop()


@pytest.mark.parametrize("direction", ["-t", "-T"])
def test_what_is_kept_does_not_stand_in_the_way_of_what_is_asked_for_instead(
    serve: Serve, namespace: Namespace, direction: str
) -> None:
    """The same port, on one address and then on all, and back."""
    port = free_ports()
    manager = serve(Manager(), "-f", direction, f"127.0.0.1/{port}:80", str(namespace.pid))
    manager.until_ready()
    manager.stop()
    for spec in (f"{port}:80", f"127.0.0.1/{port}:80"):
        serve(manager, "-f", direction, spec, str(namespace.pid)).until_ready()
        assert len(manager.store) == 1
        manager.stop()
