# SPDX-License-Identifier: GPL-2.0-or-later
"""Docker of this machine's, with our docker-proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.docker import Docker
from tests.support.engines import need
from tests.support.frontends import executable
from tests.support.product import Program

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]

_FUNCTIONS = """
web() {
    name=$1; shift
    docker run -d --name $name --ulimit nofile=1024:1024 "$@" test httpd -f -p 8080 -h /bin
}
get() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        wget -q -T 5 -O - "$1" 2>/dev/null | wc -c | grep -v '^0$' && return; sleep 0.1
    done
    echo none
}
left() {
    for _ in $(seq 50); do ps -e -o comm= | grep -q '^hs-' || break; sleep 0.1; done
    ps -e -o comm= | grep -c '^hs-'
}
"""


@pytest.fixture
def docker(program: Program, tmp_path: Path) -> Docker:
    need("wget")
    proxy = executable(tmp_path / "docker-proxy", program.stage(), "docker_proxy")
    return Docker(tmp_path, proxy)


def said(docker: Docker, script: str) -> list[str]:
    """The words that a script says."""
    return docker.run(_FUNCTIONS + script).stdout.split()


def size(docker: Docker) -> str:
    return str((docker.folder / "image" / "bin" / "busybox").stat().st_size)


def test_ports_a_range_both_families_and_a_restart(docker: Docker) -> None:
    lines = said(
        docker,
        """
        web one -p 8080:8080 -p 9000-9002:8080-8082 -p 127.0.0.1:7000:8080 -p 5300:53/udp >/dev/null
        get http://127.0.0.1:8080/busybox; get 'http://[::1]:8080/busybox'
        get http://127.0.0.1:9000/busybox; get http://127.0.0.1:7000/busybox
        ps -e -o comm= | grep -c docker-proxy; ps -e -o comm= | grep -c hs-host
        docker restart -t 0 one >/dev/null; get http://127.0.0.1:8080/busybox
        docker rm -f one >/dev/null; left
        """,
    )
    # A port without an address is two: of IPv4, and of IPv6. One server has them all.
    assert lines == [size(docker)] * 4 + ["11", "1", size(docker), "0"]


def test_docker_shows_what_is_wrong(docker: Docker) -> None:
    lines = said(
        docker,
        """
        busybox nc -l -p 8080 >/dev/null & sleep 0.5
        web one -p 8080:8080 2>&1 >/dev/null | grep -o 'hardsplice: cannot listen.*in use'
        web two -p 70:8080/sctp 2>&1 >/dev/null | grep -o 'hardsplice: cannot forward a port[^:]*'
        left
        """,
    )
    text = "hardsplice: cannot listen on 0.0.0.0 port 8080 on the host: Address already in use"
    assert " ".join(lines) == f"{text} hardsplice: cannot forward a port of protocol 'sctp' 0"


def test_ports_come_back_when_their_server_is_killed(docker: Docker) -> None:
    lines = said(
        docker,
        """
        web one -p 8080:8080 -p 9000-9002:8080-8082 >/dev/null
        kill -9 "$(pgrep -x hs-host)"; sleep 0.1
        get http://127.0.0.1:8080/busybox; get 'http://[::1]:8080/busybox'
        docker rm -f one >/dev/null; left
        """,
    )
    assert lines == [size(docker)] * 2 + ["0"]


def test_nothing_outlives_docker(docker: Docker) -> None:
    lines = said(
        docker,
        """
        web one -p 8080:8080 >/dev/null; get http://127.0.0.1:8080/busybox
        kill -9 "$(cat /run/docker-test.pid)"; left
        """,
    )
    assert lines == [size(docker), "0"]
