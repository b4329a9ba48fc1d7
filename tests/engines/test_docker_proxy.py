# SPDX-License-Identifier: GPL-2.0-or-later
"""Real Docker, whose docker-proxy is ours by nothing but userland-proxy-path. Its daemon runs in
namespaces of its own, with its images and its sockets.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.engines import need
from tests.support.frontends import executable
from tests.support.product import Program

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]

_BEGUN = """
set -u
ip link set lo up
mount -t tmpfs none /run
export DOCKER_HOST=unix:///run/docker-test.sock
dockerd --data-root {folder}/root --exec-root /run/exec --pidfile /run/docker-test.pid \
    --host $DOCKER_HOST --storage-driver vfs --iptables=false --ip6tables=false \
    --userland-proxy-path={folder}/docker-proxy >{folder}/log 2>&1 &
for _ in $(seq 100); do docker info >/dev/null 2>&1 && break; sleep 0.1; done
docker info >/dev/null 2>&1 || exit 77
tar -C {folder}/image -c . | docker import - test >/dev/null || exit 77
web() {{
    name=$1; shift
    docker run -d --name $name --ulimit nofile=1024:1024 "$@" test httpd -f -p 8080 -h /bin
}}
docker run --rm --ulimit nofile=1024:1024 test true >/dev/null || exit 77
get() {{
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        wget -q -T 5 -O - "$1" 2>/dev/null | wc -c | grep -v '^0$' && return; sleep 0.1
    done
    echo none
}}
left() {{
    for _ in $(seq 50); do ps -e -o comm= | grep -q '^hs-' || break; sleep 0.1; done
    ps -e -o comm= | grep -c '^hs-'
}}
"""


@pytest.fixture
def folder(program: Program, tmp_path: Path) -> Path:
    need("docker", "dockerd", "busybox", "bash", "runc", "wget")
    image = tmp_path / "image" / "bin"
    image.mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", image / "busybox")
    for name in ("httpd", "true"):
        (image / name).symlink_to("busybox")
    executable(tmp_path / "docker-proxy", program.stage(), "docker_proxy")
    return tmp_path


def said(folder: Path, script: str) -> list[str]:
    """The words that a script says."""
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    done = subprocess.run(
        [*words, "bash", "-c", _BEGUN.format(folder=folder) + script],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    if done.returncode == 77:
        log = (folder / "log").read_text()[-500:]
        pytest.skip(f"Docker does not work here: {done.stderr}{log}")
    return done.stdout.split()


def size(folder: Path) -> str:
    return str((folder / "image" / "bin" / "busybox").stat().st_size)


def test_ports_a_range_both_families_and_a_restart(folder: Path) -> None:
    lines = said(
        folder,
        """
        web one -p 8080:8080 -p 9000-9002:8080-8082 -p 127.0.0.1:7000:8080 -p 5300:53/udp >/dev/null
        get http://127.0.0.1:8080/busybox; get 'http://[::1]:8080/busybox'
        get http://127.0.0.1:9000/busybox; get http://127.0.0.1:7000/busybox
        ps -e -o comm= | grep -c hs-host
        docker restart -t 0 one >/dev/null; get http://127.0.0.1:8080/busybox
        docker rm -f one >/dev/null; left
        """,
    )
    # A port without an address is two: of IPv4, and of IPv6.
    assert lines == [size(folder)] * 4 + ["11", size(folder), "0"]


def test_docker_shows_what_is_wrong(folder: Path) -> None:
    lines = said(
        folder,
        """
        busybox nc -l -p 8080 >/dev/null & sleep 0.5
        web one -p 8080:8080 2>&1 >/dev/null | grep -o 'cannot listen.*in use'
        web two -p 70:8080/sctp 2>&1 >/dev/null | grep -o 'cannot forward a port[^:]*'
        left
        """,
    )
    text = "cannot listen on 0.0.0.0 port 8080 on the host: Address already in use"
    assert " ".join(lines) == f"{text} cannot forward a port of protocol 'sctp' 0"


def test_nothing_outlives_docker(folder: Path) -> None:
    lines = said(
        folder,
        """
        web one -p 8080:8080 >/dev/null; get http://127.0.0.1:8080/busybox
        kill -9 "$(cat /run/docker-test.pid)"; left
        """,
    )
    assert lines == [size(folder), "0"]
