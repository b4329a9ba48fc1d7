# SPDX-License-Identifier: GPL-2.0-or-later
"""The CNI plugin behind the real bridge plugin, called by libcni, as rootful Podman has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.engines import IMAGE, PORT, Podman
from tests.support.frontends import datagrams, executable, udp_server
from tests.support.netns import Identity
from tests.support.product import Program

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]

PLUGINS = Path("/usr/lib/cni")
HOST_PORT = 18080  # in a network namespace of the test's own
RANGES = {
    "IPv4": ["10.89.7.0/24"],
    "IPv6": ["fd00:89:7::/64"],
    "both": ["10.89.7.0/24", "fd00:89:7::/64"],
}
PRELUDE = f"""
ip link set lo up
serve() {{
    name=$1; shift
    podman run --name $name --network net --detach "$@" {IMAGE} sh -c \
        'echo hello >/index.html; exec httpd -f -p {PORT} -h /' >/dev/null
}}
get() {{
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        busybox wget -q -O - http://$1/index.html 2>/dev/null && return
        sleep 0.1
    done
    echo nothing
}}
left() {{
    find /run -path '*/hardsplice/cni/net/*'
    ps -e -o comm= | grep '^hs-' || true
}}
"""


class Networked:
    """Podman, with a network in which our plugin comes behind the bridge's."""

    def __init__(self, podman: Podman, stage: Path) -> None:
        self.podman = podman
        self.plugins = podman.folder / "plugins"
        self.plugins.mkdir()
        self.plugin = executable(self.plugins / "hardsplice", stage, "cni")
        (podman.folder / "networks").mkdir()

    def run(
        self, script: str, ranges: str = "IPv4", version: str = "1.0.0"
    ) -> tuple[list[str], str]:
        """The lines that a script prints, and its errors, in a network namespace of its own."""
        subnets = [[{"subnet": subnet}] for subnet in RANGES[ranges]]
        network = {
            "cniVersion": version, "name": "net",
            "plugins": [
                {
                    "type": "bridge", "bridge": "hs-test0", "isGateway": True,
                    "ipam": {"type": "host-local", "ranges": subnets, "dataDir": "/run/ipam"},
                },
                {"type": "hardsplice", "capabilities": {"portMappings": True}},
            ],
        }  # fmt: skip
        networks = self.podman.folder / "networks"
        (networks / "net.conflist").write_text(json.dumps(network))
        # The last section of the file is [engine].
        text = f"""
            cat >> "$CONTAINERS_CONF" <<END
enable_port_reservation = false
[network]
network_backend = "cni"
cni_plugin_dirs = ["{self.plugins}", "{PLUGINS}"]
network_config_dir = "{networks}"
END
            cat > $HOME/script <<'END'
{PRELUDE}{script}
END
            unshare --net sh $HOME/script
        """
        done = self.podman.run(text)
        return done.stdout.splitlines(), done.stderr


@pytest.fixture
def networked(program: Program, tmp_path: Path) -> Networked:
    if not (PLUGINS / "bridge").exists():
        pytest.skip("CNI's own plugins are not installed (containernetworking-plugins)")
    return Networked(Podman(Identity("root"), tmp_path), program.stage())


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_a_container_and_its_whole_life(version: str, networked: Networked) -> None:
    said, errors = networked.run(
        f"""
        serve web -p {HOST_PORT}:{PORT}; get 127.0.0.1:{HOST_PORT}; get [::1]:{HOST_PORT}
        podman restart --time 0 web >/dev/null; get 127.0.0.1:{HOST_PORT}
        podman stop --time 0 web >/dev/null; left
        podman start web >/dev/null; get 127.0.0.1:{HOST_PORT}
        podman rm --force --time 0 web >/dev/null; left
        """,
        version=version,
    )
    assert said == ["hello"] * 4, errors


@pytest.mark.parametrize("ranges", ["IPv6", "both"])
def test_a_container_with_ipv6(ranges: str, networked: Networked) -> None:
    said, errors = networked.run(
        f"""
        serve web -p {HOST_PORT}:{PORT}; get 127.0.0.1:{HOST_PORT}; get [::1]:{HOST_PORT}
        podman rm --force --time 0 web >/dev/null; left
        """,
        ranges,
    )
    assert said == ["hello"] * 2, errors


def test_addresses_of_the_host_and_ranges(networked: Networked) -> None:
    at = f"-p 127.0.0.1:{HOST_PORT}:{PORT} -p [::1]:{HOST_PORT}:{PORT}"
    said, errors = networked.run(f"""
        serve web {at} -p 127.0.0.1:19000-19002:{PORT - 1}-{PORT + 1}
        get 127.0.0.1:{HOST_PORT}; get [::1]:{HOST_PORT}; get 127.0.0.1:19001
        ss -ltnH | awk '{{ print $4 }}' | sort
        podman rm --force --time 0 web >/dev/null; left
    """)
    assert said == [
        *["hello"] * 3,
        *(f"127.0.0.1:{port}" for port in (HOST_PORT, 19000, 19001, 19002)), f"[::1]:{HOST_PORT}",
    ], errors  # fmt: skip


def test_several_containers_at_once(networked: Networked) -> None:
    said, errors = networked.run(f"""
        for n in 1 2 3 4; do serve web$n -p 1808$n:{PORT} & done; wait
        for n in 1 2 3 4; do get 127.0.0.1:1808$n; done
        podman rm --all --force --time 0 >/dev/null; left
    """)
    assert said == ["hello"] * 4, errors


def test_an_instance_that_was_killed_is_no_obstacle(networked: Networked) -> None:
    said, errors = networked.run(f"""
        serve web -p {HOST_PORT}:{PORT}; get 127.0.0.1:{HOST_PORT}
        pkill -KILL -x hs-host
        podman restart --time 0 web >/dev/null; get 127.0.0.1:{HOST_PORT}
        pkill -KILL -x hs-host
        podman rm --force --time 0 web >/dev/null; left
    """)
    assert said == ["hello"] * 2, errors


def test_a_failure_is_the_containers(networked: Networked) -> None:
    """Podman shows the text of the error that the plugin prints."""
    said, errors = networked.run(f"""
        serve web -p {HOST_PORT}:{PORT}
        podman run --rm --network net -p {HOST_PORT}:{PORT} {IMAGE} true; echo $?
        podman run --rm --network net -p 53:53/sctp {IMAGE} true; echo $?
        get 127.0.0.1:{HOST_PORT}
        podman rm --force --time 0 web >/dev/null; left
    """)
    assert said == ["126", "126", "hello"], errors
    assert f"cannot listen on port {HOST_PORT} on the host: Address already in use" in errors
    assert "protocol 'sctp' is not supported" in errors


def test_datagrams(networked: Networked, program: Program) -> None:
    server = udp_server(networked.podman, program.stage())
    said, errors = networked.run(f"""{datagrams(program.stage())}
        podman run --name web --network net --detach -p {HOST_PORT}:{PORT}/udp \
            {server} >/dev/null
        datagrams ports 127.0.0.1 {HOST_PORT}
        podman restart --time 0 web >/dev/null; datagrams ports ::1 {HOST_PORT}
        podman rm --force --time 0 web >/dev/null; left
    """)
    assert said == [str(PORT)] * 2, errors
