# SPDX-License-Identifier: GPL-2.0-or-later
"""rootlessport and docker-proxy by hand, as Podman and Docker start them."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import procfs
from tests.support.frontends import Rootlessport, assert_leads_to, docker_proxy, executable, own_run
from tests.support.netns import Namespace
from tests.support.product import Program, can_bind, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
IP_PKTINFO = 8  # linux/in.h


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


def servers() -> set[int]:
    """The host monitors of the servers that this process's children have started."""
    names = procfs.names(os.getpid())
    return {pid for pid, name in names.items() if name == "hs-host"}


@root_only
def test_what_serves_is_confined_and_what_waits_has_the_programs_name(one: Rootlessport) -> None:
    (server,) = servers()
    for pid in (pid for pid, name in procfs.names(server).items() if name.startswith("hs-")):
        status = procfs.status(pid)
        assert (status["Seccomp"], int(status["CapEff"], 16)) == ("2", 0)
    assert procfs.names(one.process.pid)[one.process.pid] == "rootlessport"
    words = Path(f"/proc/{one.process.pid}/cmdline").read_text().split("\0")
    assert words[0] == f"rootlessport of {one.container[:12]}: /bin/sh"


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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_of_one_that_is_told_to_end(one: Rootlessport, number: int) -> None:
    one.process.send_signal(number)
    assert one.process.wait(PATIENCE) == 0
    assert not one.socket.exists()


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
    what = f"hardsplice: cannot listen on port {port} on the host"
    assert said.startswith(f"{what}: Address already in use; ")
    assert said.count("\n") == 1
    assert made.process.wait(PATIENCE) == 1
    assert not made.socket.exists()


@pytest.fixture
def proxy(program: Program, tmp_path: Path) -> Iterator[list[str]]:
    script = executable(tmp_path / "docker-proxy", program.stage(), "docker_proxy")
    with own_run() as words:
        yield [*words, str(script)]


@root_only
@pytest.mark.parametrize("is_passed", [False, True])
def test_docker_proxy_forwards_until_it_is_interrupted(
    *, is_passed: bool, proxy: list[str]
) -> None:
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
        with server:
            assert_leads_to(server, port)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    assert can_bind("127.0.0.1", port)


@root_only
def test_docker_proxy_forwards_datagrams(proxy: list[str]) -> None:
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
def test_docker_proxy_answers_from_where_it_was_asked(
    listen: str, asked: str, proxy: list[str]
) -> None:
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
def test_docker_is_told_what_is_wrong(proxy: list[str]) -> None:
    port = free_ports(2)
    with socket.create_server(("127.0.0.1", port)):
        process, told = docker_proxy(proxy, port, port + 1)
    assert process.wait(PATIENCE) == 1
    what = f"hardsplice: cannot listen on 127.0.0.1 port {port} on the host"
    assert told.startswith(f"1\n{what}: Address already in use; ".encode())
    assert told.count(b"\n") == 1
