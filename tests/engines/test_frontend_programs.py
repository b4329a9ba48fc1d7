# SPDX-License-Identifier: GPL-2.0-or-later
"""rootlessport and docker-proxy by hand, as Podman and Docker start them."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import procfs
from tests.support.frontends import docker_proxy, executable
from tests.support.netns import Namespace
from tests.support.product import Program, can_bind, family, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
CONTAINER = "ab" * 32
IP_PKTINFO = 8  # linux/in.h


class Rootlessport:
    """One rootlessport, and the ends that Podman has."""

    def __init__(self, program: Path, folder: Path, netns: str, port: int, target: int) -> None:
        self.socket = folder / "rp" / CONTAINER
        exit_fd, self.exit = os.pipe()
        self.ready, ready_fd = os.pipe()
        request = {
            "Mappings": [{"host_port": port, "container_port": target, "range": 1}],
            "NetNSPath": netns, "ExitFD": exit_fd, "ReadyFD": ready_fd, "TmpDir": str(folder),
            "ChildIP": "127.0.0.1", "ContainerID": CONTAINER, "RootlessCNI": True,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [program], pass_fds=[exit_fd, ready_fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            cwd="/",
        )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode())
        self.process.stdin.close()
        os.close(exit_fd)
        os.close(ready_fd)

    def ask(self, message: str) -> bytes:
        """Tell it an address, as Podman does; the answer."""
        at = os.open(self.socket.parent, os.O_RDONLY | os.O_DIRECTORY)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(PATIENCE)
            client.connect(f"/proc/self/fd/{at}/{CONTAINER}")
            os.close(at)
            client.send(message.encode())
            return client.recv(1024)

    def let_go(self) -> int:
        """The container has ended: the exit status."""
        os.close(self.exit)
        self.exit = -1
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.exit >= 0:
            os.close(self.exit)
        self.process.wait(PATIENCE)
        os.close(self.ready)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def started(
    program: Program, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., Rootlessport]:
    if os.geteuid() != 0:
        pytest.skip("as root only: Podman starts it as root of a user namespace")
    script = executable(tmp_path / "rootlessport", program.stage(), "rootlessport")

    def start(*arguments: Any) -> Rootlessport:
        made = Rootlessport(script, tmp_path, *arguments)
        request.addfinalizer(made.close)
        return made

    return start


@pytest.fixture
def one(started: Callable[..., Rootlessport], namespace: Namespace) -> Rootlessport:
    made = started(namespace.net_path, free_ports(), 80)
    assert os.read(made.ready, 2) == b"1"
    return made


root_only = pytest.mark.root  # Podman is root of a user namespace


@root_only
def test_the_process_that_was_started_is_confined(one: Rootlessport) -> None:
    names = procfs.names(one.process.pid)
    assert names[one.process.pid] == "hs-host"
    for pid in family(one.process.pid):
        if names.get(pid, "").startswith("hs-"):
            status = procfs.status(pid)
            assert (status["Seccomp"], int(status["CapEff"], 16)) == ("2", 0)


@root_only
def test_the_socket_is_its_users_alone(one: Rootlessport) -> None:
    assert stat.S_IMODE(one.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(one.socket.parent.stat().st_mode) == 0o700


@root_only
def test_all_ports_lead_to_an_address_that_is_told(one: Rootlessport) -> None:
    assert one.ask('"127.0.0.2"\n') == b"OK"
    assert one.ask('"::1"') == b"OK"
    assert b"is not one" in one.ask("127.0.0.1")
    assert one.ask('"127.0.0.1"') == b"OK"


@root_only
def test_nothing_is_left_when_the_container_ends(one: Rootlessport) -> None:
    assert one.let_go() == 0
    eventually(lambda: not one.socket.exists(), "the socket is left")


@root_only
def test_nothing_is_left_of_one_that_is_killed(one: Rootlessport) -> None:
    one.process.kill()
    eventually(lambda: not one.socket.exists(), "the socket is left")


@root_only
def test_an_error_is_a_line_on_standard_output(
    started: Callable[..., Rootlessport], namespace: Namespace
) -> None:
    port = free_ports()
    with socket.create_server(("", port)):
        made = started(namespace.net_path, port, 80)
        assert os.read(made.ready, 2) == b""
    assert made.process.stdout is not None
    said = made.process.stdout.read().decode()
    assert said.startswith(f"cannot listen on port {port} on the host: Address already in use")
    assert said.count("\n") == 1
    assert made.process.wait(PATIENCE) == 1
    assert not made.socket.exists()


@pytest.fixture
def proxy(program: Program, tmp_path: Path) -> Path:
    return executable(tmp_path / "docker-proxy", program.stage(), "docker_proxy")


@root_only
@pytest.mark.parametrize("is_passed", [False, True])
def test_docker_proxy_forwards_until_it_is_interrupted(*, is_passed: bool, proxy: Path) -> None:
    port = free_ports(2)
    server = socket.create_server(("127.0.0.1", port + 1))
    passed = socket.create_server(("127.0.0.1", port)) if is_passed else None
    more = ("-use-listen-fd",) if passed else ()
    fd = passed.fileno() if passed else None
    process, told = docker_proxy(proxy, port, port + 1, *more, listener=fd)
    if passed:
        passed.close()
    try:
        assert told == b"0\n"
        with server, socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"hello")
                assert accepted.recv(5) == b"hello"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    assert can_bind("127.0.0.1", port)


@root_only
def test_docker_proxy_forwards_datagrams(proxy: Path) -> None:
    port = free_ports(2)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("127.0.0.1", port + 1))
        process, told = docker_proxy(proxy, port, port + 1, "-proto", "udp")
        try:
            assert told == b"0\n"
            client.connect(("127.0.0.1", port))
            for one in (server, client):
                one.settimeout(PATIENCE)
            client.send(b"hello")
            data, peer = server.recvfrom(10)
            server.sendto(data.upper(), peer)
            assert client.recv(10) == b"HELLO"
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0


@root_only
@pytest.mark.parametrize(("listen", "asked"), [("0.0.0.0", "127.0.0.2"), ("::", "::1")])
def test_docker_proxy_answers_from_where_it_was_asked(listen: str, asked: str, proxy: Path) -> None:
    """With a listener of all addresses, as Docker passes it from release 28 on."""
    port = free_ports(2)
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(family, socket.SOCK_DGRAM) as client,
        socket.socket(family, socket.SOCK_DGRAM) as passed,
    ):
        if family == socket.AF_INET6:
            passed.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            passed.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            passed.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        passed.bind((listen, port))
        server.bind(("127.0.0.1", port + 1))
        more = ("-proto", "udp", "-host-ip", listen, "-use-listen-fd")
        process, told = docker_proxy(proxy, port, port + 1, *more, listener=passed.fileno())
        passed.close()
        try:
            assert told == b"0\n"
            for one in (server, client):
                one.settimeout(PATIENCE)
            client.sendto(b"hello", (asked, port))
            data, peer = server.recvfrom(10)
            server.sendto(data.upper(), peer)
            answer, source = client.recvfrom(10)
            assert (answer, source[:2]) == (b"HELLO", (asked, port))
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0


@root_only
def test_docker_is_told_what_is_wrong(proxy: Path) -> None:
    port = free_ports(2)
    with socket.create_server(("127.0.0.1", port)):
        process, told = docker_proxy(proxy, port, port + 1)
    assert process.wait(PATIENCE) == 1
    assert told.startswith(f"1\ncannot listen on 127.0.0.1 port {port} on the host".encode())
    assert told.count(b"\n") == 1
