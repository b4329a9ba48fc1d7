# SPDX-License-Identifier: GPL-2.0-or-later
"""One server for many containers: rootlessport and docker-proxy by hand, several at a time, and
what happens to the others when one of them, or the server, ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from hardsplice.frontends import mapping, offers, packets
from hardsplice.frontends.offers import Offer
from hardsplice.kernel import linux
from hardsplice.kernel.scm import Messages
from hardsplice.kernel.socketcalls import option
from hardsplice.model.protocol import Protocol
from tests.support import procfs
from tests.support.containers import Containers, Conversation
from tests.support.frontends import docker_proxy, executable, own_run
from tests.support.product import Program, can_bind, family, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]

PIDFD_GETFD = 438  # asm-generic/unistd.h
LOCAL = ip_address("127.0.0.1")
STUB_KIB = 300  # of a shell that waits; one of Python would be ten thousand
SERVER_KIB = 40_000


def test_containers_of_one_namespace_share_a_server(containers: Containers) -> None:
    for at in range(3):
        containers.start(at)
    assert len(containers.servers()) == 1
    assert all(containers.serves(at) for at in range(3))
    (server,) = containers.servers()
    relays = [name for name in procfs.names(server).values() if name == "hs-relay-in"]
    assert len(relays) == 1


@pytest.mark.parametrize("how", ["killed", "told to end", "its container has ended"])
def test_one_that_ends_takes_its_own_ports_along(how: str, containers: Containers) -> None:
    first, _ = containers.start(0), containers.start(1)
    own, other = containers.connected(0), containers.connected(1)
    if how == "its container has ended":
        assert first.let_go() == 0
    else:
        first.process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
        first.process.wait(PATIENCE)
    eventually(lambda: can_bind("127.0.0.1", containers.port), "the port is still bound")
    assert own.is_reset()
    other.goes_on()
    for one in (own, other):
        one.end()


def test_those_that_start_at_once_have_one_server(containers: Containers) -> None:
    for at in range(10):
        containers.begin(at)
    assert all(os.read(one.ready, 2) == b"1" for one in containers.made)
    assert all(containers.serves(at) for at in range(10))
    assert len(containers.servers()) == 1


def test_ports_come_back_after_a_server_is_killed(containers: Containers) -> None:
    for at in range(3):
        containers.start(at)
    for number in (signal.SIGKILL, signal.SIGTERM):
        (server,) = containers.servers()
        os.kill(server, number)
        eventually(partial(ended, server), "the server lives")
        for at in range(3):
            eventually(partial(containers.serves, at), "the port is not served again")
        assert len(containers.servers()) == 1
    assert containers.made[0].ask('"127.0.0.1"') == b"OK", "the address may still change"
    assert all(one.let_go() == 0 for one in containers.made)
    assert not any(one.socket.exists() for one in containers.made)


def test_who_connects_between_two_servers_waits(containers: Containers) -> None:
    containers.start(0)
    (server,) = containers.servers()
    every = [pid for pid, name in procfs.names(server).items() if name.startswith("hs-")]
    listener = socket.socket(fileno=take_listener(containers.made[0].process.pid))
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # as who was taken over may
    os.kill(server, signal.SIGKILL)
    eventually(lambda: all(map(ended, every)), "one of its processes lives")
    containers.connected(0).end()


def test_who_connects_waits_until_a_later_attempt_succeeds(containers: Containers) -> None:
    containers.start(0)
    folder = Path(containers.place.folder)
    folder.chmod(0o777)  # no server is trusted there
    for server in containers.servers():
        os.kill(server, signal.SIGKILL)
    pause_until_it_has_tried = 0.4
    time.sleep(pause_until_it_has_tried)
    with socket.create_connection(("127.0.0.1", containers.port), PATIENCE) as client:
        folder.chmod(0o700)
        accepted, _ = containers.echo.accept()
        with accepted:
            Conversation(client, accepted).goes_on()


def take_listener(pid: int) -> int:
    """The first listener that a process has, as a descriptor of ours."""
    process = os.pidfd_open(pid)
    try:
        for fd in sorted(procfs.descriptors(pid)):
            ours = linux.libc.syscall(PIDFD_GETFD, process, fd, 0)
            wanted = {socket.SO_ACCEPTCONN: 1, socket.SO_PROTOCOL: socket.IPPROTO_TCP}
            if all(option(ours, socket.SOL_SOCKET, one) == wanted[one] for one in wanted):
                return int(ours)
            os.close(ours)
    finally:
        os.close(process)
    raise LookupError("it has none")


def ended(pid: int) -> bool:
    return not procfs.alive(pid)


def test_a_server_that_hangs_is_named_and_holds_no_port_of_tcp(containers: Containers) -> None:
    """It was stopped, for instance. What the error says to do frees UDP ports, too."""
    containers.start(0)
    (server,) = containers.servers()
    os.kill(server, signal.SIGSTOP)
    refused = containers.begin(1, protocol="tcp,udp")
    assert refused.process.stdout is not None
    said = refused.process.stdout.read().decode()
    assert said == (
        "hardsplice: cannot forward ports: the server does not answer;"
        f" end it, and ports have a new one: kill -KILL {server}\n"
    )
    assert can_bind("127.0.0.1", containers.port + 1)
    assert not can_bind("127.0.0.1", containers.port + 1, socket.SOCK_DGRAM)
    subprocess.run(["sh", "-c", said.strip().rpartition(": ")[2]], check=True)
    eventually(lambda: containers.serves(0), "ports have no new server")
    containers.start(1, protocol="tcp,udp")
    assert containers.serves(1)


def test_a_namespace_monitor_that_hangs_is_named_and_ends_the_server(
    containers: Containers,
) -> None:
    """What the error says to do has all ports served by another one."""
    containers.start(0)
    (server,) = containers.servers()
    pid = next(one for one, name in procfs.names(server).items() if name == "hs-namespace")
    os.kill(pid, signal.SIGSTOP)
    refused = containers.begin(1)
    assert refused.process.stdout is not None
    said = refused.process.stdout.read().decode()
    assert "the namespace monitor does not answer; if it was stopped or hangs, end it" in said
    assert can_bind("127.0.0.1", containers.port + 1)
    listed = said.strip().rpartition(", of: ")[2]
    found = subprocess.run(["sh", "-c", listed], check=True, capture_output=True, text=True).stdout
    assert [str(pid), str(server), "Ts"] in [line.split() for line in found.splitlines()]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: containers.serves(0), "ports have no new server")
    containers.start(1)
    assert containers.serves(1)


def test_an_upgrade_of_the_protocol_leaves_two_servers_until_one_ends(
    containers: Containers, tmp_path: Path, program: Program
) -> None:
    stage = Path(shutil.copytree(program.stage(), tmp_path / "installed"))
    executable(containers.script, stage, "rootlessport")
    containers.start(0)
    (old,) = containers.servers()
    protocol = stage / "hardsplice" / "frontends" / "offers.py"
    text = protocol.read_text()
    assert f"\nVERSION = {offers.VERSION}\n" in text
    protocol.write_text(text.replace(f"\nVERSION = {offers.VERSION}\n", "\nVERSION = 1000\n"))
    containers.start(1)
    assert len(containers.servers()) == 2
    assert all(containers.serves(at) for at in range(2))
    os.kill(old, signal.SIGKILL)
    eventually(lambda: len(containers.servers()) == 1, "the old server lives, or another one")
    eventually(partial(containers.serves, 0), "the port is not served by the new one")
    assert len(containers.servers()) == 1


def test_an_address_that_changes_is_one_containers(containers: Containers) -> None:
    first, _ = containers.start(0), containers.start(1)
    assert first.ask('"127.0.0.9"') == b"OK"
    assert containers.serves(1)
    assert not containers.serves(0), "nobody listens there"
    (server,) = containers.servers()
    os.kill(server, signal.SIGKILL)
    eventually(partial(containers.serves, 1), "the port is not served again")
    assert not containers.serves(0), "the next server has the last address"
    assert first.ask('"127.0.0.1"') == b"OK"
    assert containers.serves(0)


def test_a_port_in_use_leaves_nothing_of_its_request(containers: Containers) -> None:
    containers.start(0)
    with socket.create_server(("", containers.port + 3)):
        refused = containers.begin(1, range=4)
        assert os.read(refused.ready, 2) == b""
    assert refused.process.stdout is not None
    assert b"Address already in use" in refused.process.stdout.read()
    assert can_bind("127.0.0.1", containers.port + 1)
    assert containers.serves(0)


def test_what_has_more_ports_than_there_are_places_for_has_a_server_alone(
    containers: Containers,
) -> None:
    many = 4200
    first = free_ports(many + 1)
    containers.port = first + many
    containers.start(0)
    large = containers.start(1, host_port=first, container_port=first, range=many)
    assert len(containers.servers()) == 2
    assert containers.serves(0)
    assert not can_bind("127.0.0.1", first + many - 1)
    assert large.let_go() == 0
    eventually(lambda: len(containers.servers()) == 1, "its server goes on")
    assert can_bind("127.0.0.1", first + many - 1)
    assert containers.serves(0)


def test_the_servers_socket_is_its_users_alone(containers: Containers) -> None:
    containers.start(0)
    path = Path(containers.place.path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("how", ["by itself", "killed"])
def test_a_server_that_ends_leaves_no_file(how: str, containers: Containers) -> None:
    one = containers.start(0)
    path = Path(containers.place.path)
    (server,) = containers.servers()
    if how == "killed":
        one.process.kill()
        os.kill(server, signal.SIGKILL)
    else:
        one.let_go()
    eventually(lambda: not path.exists(), "the socket is left")


def test_the_next_server_removes_the_socket_of_one_that_was_killed(containers: Containers) -> None:
    first, second = (containers.start(at) for at in range(2))
    first.process.kill()
    first.process.wait(PATIENCE)
    eventually(lambda: can_bind("127.0.0.1", containers.port), "the port is still bound")
    with pytest.raises(ConnectionRefusedError):
        first.ask('"127.0.0.1"')
    for one in (first, second):
        os.utime(one.socket, (0, 0))
    (server,) = containers.servers()
    os.kill(server, signal.SIGKILL)
    eventually(lambda: not first.socket.exists(), "the socket is left")
    assert second.ask('"127.0.0.1"') == b"OK"


def test_a_listener_of_another_namespace_is_refused(containers: Containers) -> None:
    containers.start(0)
    with (
        containers.namespace.socket(socket.AF_INET) as strange,
        packets.connect(containers.place.path) as client,
    ):
        strange.bind(("127.0.0.1", 0))
        strange.listen()
        port = mapping.inbound(
            Protocol.TCP, LOCAL, strange.getsockname()[1], LOCAL, containers.target
        )
        room = Messages(offers.SIZE, offers.FDS)
        for data, fds in offers.encode(Offer([port], [strange.fileno()])):
            room.sendmsg(client.fileno(), data, fds, 0)
        client.settimeout(PATIENCE)
        assert offers.answer_of(client.recv(1000)).failure is not None
    assert containers.serves(0)


def pss(pid: int) -> int:
    """KiB of a process's memory, of which it has a share in what others have, too."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def test_one_more_container_costs_next_to_nothing(containers: Containers) -> None:
    for at in range(12):
        containers.start(at)
    (server,) = containers.servers()
    assert sum(map(pss, family(server))) < SERVER_KIB
    assert max(pss(one.process.pid) for one in containers.made) < STUB_KIB


@pytest.fixture
def proxy(program: Program, tmp_path: Path) -> Iterator[list[str]]:
    script = executable(tmp_path / "docker-proxy", program.stage(), "docker_proxy")
    with own_run() as words:
        yield [*words, str(script)]


def test_docker_proxies_share_a_server(proxy: list[str]) -> None:
    port = free_ports(4)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for at in range(4):
            process, told = docker_proxy(proxy, port + at, 9, "-proto", ("tcp", "udp")[at % 2])
            started.append(process)
            assert told == b"0\n"
            shown = Path(f"/proc/{process.pid}/cmdline").read_text()
            assert f" -host-port {port + at} -container-ip 127.0.0.1 " in shown.partition("\0")[0]
        assert [*procfs.names(os.getpid()).values()].count("hs-host") == 1
    finally:
        for process in started:
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
    eventually(lambda: all(can_bind("127.0.0.1", port + at) for at in range(4)), "a port is bound")


def test_a_listener_of_dockers_is_served_again_by_the_next_server(
    proxy: list[str], served_udp: Callable[[], int]
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as passed:
        passed.bind(("127.0.0.1", 0))
        port = passed.getsockname()[1]
        process, told = docker_proxy(
            proxy, port, served_udp(), "-proto", "udp", "-use-listen-fd", listener=passed.fileno()
        )
    try:
        assert told == b"0\n"
        assert answered(port)
        for pid, name in procfs.names(os.getpid()).items():
            if name == "hs-host":
                os.kill(pid, signal.SIGKILL)
        assert answered(port)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


@pytest.fixture
def served_udp() -> Iterator[Callable[[], int]]:
    """A UDP server, by a thread: its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                data, peer = server.recvfrom(100)
                if not data:
                    return
                server.sendto(data, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield lambda: int(server.getsockname()[1])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", server.getsockname())
        thread.join(PATIENCE)


def answered(port: int) -> bool:
    """Whether a datagram to a port is answered, sooner or later."""

    def ask() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(0.2)
            client.connect(("127.0.0.1", port))
            try:
                client.send(b"hello")
                return client.recv(10) == b"hello"
            except (TimeoutError, ConnectionRefusedError):
                return False

    return bool(eventually(ask, "no answer"))
