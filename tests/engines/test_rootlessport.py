# SPDX-License-Identifier: GPL-2.0-or-later
"""Real Podman, unmodified, whose rootlessport is ours: bridge networks of an ordinary user. All
that Podman is told is in which folder it finds the program (helper_binaries_dir).
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import IMAGE, Podman, need
from tests.support.frontends import executable
from tests.support.netns import Identity
from tests.support.product import Program, can_bind, free_ports
from tests.support.stream import eventually

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]

# What every script begins with: `web NAME OPTION...` publishes a server, `get URL` says its size.
FUNCTIONS = f"""
set -u
web() {{ name=$1; shift; podman run -d --name $name "$@" {IMAGE} httpd -f -p 8080 -h /bin; }}
get() {{
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        wget -q -T 5 -O - "$1" 2>/dev/null | wc -c | grep -v '^0$' && return; sleep 0.1
    done
    echo none
}}
ours() {{ ps -eo comm,args | grep -E 'hs-host|hs-names|hs-relay|^rootlessport' | grep -vc grep; }}
sockets() {{ ls "$XDG_RUNTIME_DIR/libpod/tmp/rp" | wc -l; }}
settled() {{ for _ in $(seq 50); do [ "$(ours)" = 0 ] && break; sleep 0.1; done; ours; sockets; }}
"""


@pytest.fixture
def podman(user: Identity, program: Program) -> Iterator[Podman]:
    need("slirp4netns", "wget")
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun, which rootless networks take")
    if not Path("/usr/lib/podman/netavark").exists():
        pytest.skip("netavark is not installed")
    with tempfile.TemporaryDirectory(prefix="hardsplice-tests-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        helpers = folder / "helpers"
        helpers.mkdir()
        executable(helpers / "rootlessport", program.stage(), "rootlessport")
        yield Podman(user, folder, helpers)


def said(podman: Podman, script: str) -> list[str]:
    """The lines that a script says, which has to work."""
    done = podman.run(FUNCTIONS + script)
    if "/dev/net/tun" in done.stderr:
        pytest.skip(f"rootless networks don't work here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def size() -> str:
    """What the server answers with."""
    busybox = subprocess.run(["which", "busybox"], capture_output=True, text=True, check=True)
    return str(Path(busybox.stdout.strip()).resolve().stat().st_size)


def test_ports_ranges_and_both_families(podman: Podman) -> None:
    port = free_ports(8)
    lines = said(
        podman,
        f"""
        web one -p {port}:8080 -p 127.0.0.1:{port + 1}:8080 -p {port}:53/udp >/dev/null
        ps -eo comm | grep -c hs-udp-in
        get http://127.0.0.1:{port}/busybox
        get 'http://[::1]:{port}/busybox'
        get http://127.0.0.1:{port + 1}/busybox
        web range -p {port + 2}-{port + 5}:8080-8083 -p '[::]:{port + 6}:8080' >/dev/null
        get http://127.0.0.1:{port + 2}/busybox
        get http://127.0.0.1:{port + 6}/busybox
        podman rm -f -t 0 one range >/dev/null
        settled
        """,
    )
    assert lines == ["1", *[size()] * 5, "0", "0"]
    assert all(can_bind("127.0.0.1", port + at) for at in range(7))


def test_a_port_in_use_is_an_error_in_our_words(podman: Podman) -> None:
    port = free_ports()
    lines = said(
        podman,
        f"""
        web one -p {port}:8080 >/dev/null
        web two -p {port}:8080 2>&1 >/dev/null | grep -o 'rootlessport .*in use'
        podman rm -f -t 0 one two >/dev/null
        settled
        """,
    )
    what = f"hardsplice: cannot listen on port {port} on the host"
    text = f"rootlessport {what}: Address already in use"
    assert " ".join(lines) == f"{text} 0 0"


def test_a_container_that_is_stopped_restarted_and_killed(podman: Podman) -> None:
    port = free_ports()
    lines = said(
        podman,
        f"""
        web one -p {port}:8080 >/dev/null
        podman restart -t 0 one >/dev/null; get http://127.0.0.1:{port}/busybox
        podman stop -t 0 one >/dev/null; settled
        podman start one >/dev/null; get http://127.0.0.1:{port}/busybox
        podman kill one >/dev/null; settled
        podman start one >/dev/null; get http://127.0.0.1:{port}/busybox
        kill -9 "$(pgrep conmon)"; settled
        """,
    )
    assert lines == [size(), "0", "0", size(), "0", "0", size(), "0", "0"]
    eventually(lambda: can_bind("127.0.0.1", port), "the port is still bound")


def test_ours_is_killed_and_ports_come_back(podman: Podman) -> None:
    port = free_ports()
    lines = said(
        podman,
        f"""
        web one -p {port}:8080 >/dev/null
        kill -9 "$(pgrep -x hs-host)"; sleep 0.1; get http://127.0.0.1:{port}/busybox
        kill -9 "$(pgrep -x rootlessport)"; settled | head -n 1
        podman restart -t 0 one >/dev/null; get http://127.0.0.1:{port}/busybox
        podman rm -f -t 0 one >/dev/null; settled
        """,
    )
    assert lines == [size(), "0", size(), "0", "0"]


def test_networks_are_connected_and_disconnected(podman: Podman) -> None:
    port = free_ports(2)
    lines = said(
        podman,
        f"""
        podman network create other >/dev/null
        web one --network podman -p {port}-{port + 1}:8080-8081 >/dev/null
        podman network connect other one; echo $?
        podman network disconnect podman one; echo $?
        get http://127.0.0.1:{port}/busybox
        """,
    )
    assert lines == ["0", "0", size()]


def test_containers_of_all_networks_share_a_server(podman: Podman) -> None:
    port = free_ports(3)
    lines = said(
        podman,
        f"""
        podman network create other >/dev/null
        web one -p {port}:8080 >/dev/null; web two -p {port + 1}:8080 --network other >/dev/null
        podman network create --internal inside >/dev/null
        web three -p {port + 2}:8080 --network inside >/dev/null
        for at in {port} {port + 1} {port + 2}; do get http://127.0.0.1:$at/busybox; done
        ps -eo comm | grep -c hs-host
        podman rm -f -t 0 one; get http://127.0.0.1:{port + 1}/busybox
        podman rm -f -t 0 two three >/dev/null; settled
        """,
    )
    # One that has no gateway is not reached from where the bridges are.
    assert lines == [*[size()] * 3, "2", "one", size(), "0", "0"]


def test_a_network_that_is_made_anew(podman: Podman) -> None:
    """Podman makes another namespace for bridges where it had one for the only container."""
    port = free_ports()
    lines = said(
        podman,
        f"""
        web one -p {port}:8080 >/dev/null; get http://127.0.0.1:{port}/busybox
        podman network reload one >/dev/null
        wget -q -t 1 -T 10 -O - http://127.0.0.1:{port}/busybox | wc -c
        podman network create other >/dev/null
        podman network disconnect podman one; podman network connect other one
        get http://127.0.0.1:{port}/busybox
        podman rm -f -t 0 one >/dev/null; settled
        """,
    )
    assert lines == [size()] * 3 + ["0", "0"]


def test_a_hundred_ports(podman: Podman) -> None:
    port = free_ports(100)
    lines = said(
        podman,
        f"""
        web one -p {port}-{port + 99}:8080-8179 >/dev/null
        get http://127.0.0.1:{port}/busybox
        podman port one | wc -l
        podman rm -f -t 0 one >/dev/null; settled
        """,
    )
    assert lines == [size(), "100", "0", "0"]
