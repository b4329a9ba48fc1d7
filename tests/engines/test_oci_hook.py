# SPDX-License-Identifier: GPL-2.0-or-later
"""The hook for OCI runtimes, as Podman has crun and runc call it, for root and for a user."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.engines import IMAGE, PORT, Podman
from tests.support.frontends import datagrams, executable, udp_server
from tests.support.netns import Identity
from tests.support.product import Program, free_ports

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

HOOKS = Path(__file__).parents[2] / "packaging/oci/hardsplice.json"
# crun takes one hierarchy of cgroups, and not two kinds of them; and where it has to do with
# cgroups, it raises a limit for root, which root may not do everywhere.
FOR_CRUN = """
umount --recursive --lazy /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
"""
# `run NAME ANNOTATION... -- COMMAND` in a container without a network; `get PORT` is what a server
# behind a port of the host's says; `left` is what is left of instances.
PRELUDE = """
podman() {{ command podman --runtime {runtime} --hooks-dir {hooks} "$@"; }}
run() {{
    name=$1 annotation=$2; shift 2
    podman run --name $name --network none {cgroups} --annotation "$annotation" "$@"
}}
serve() {{
    run $1 "$2" --detach {image} sh -c \
        'echo hello >/index.html; exec httpd -f -p {port} -h /' >/dev/null
}}
get() {{
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        busybox wget -q -O - http://127.0.0.1:$1/index.html 2>/dev/null && return
        sleep 0.1
    done
    echo nothing
}}
left() {{
    find /run -path '*/hardsplice/oci/*'
    ps -e -o comm= | grep '^hs-' || true
}}
"""


@pytest.fixture(params=["crun", "runc"])
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Hooked:
    """Podman with our hook."""

    def __init__(self, podman: Podman, stage: Path, runtime: str) -> None:
        self.podman = podman
        self.port = free_ports()
        hooks = podman.folder / "hooks"
        hooks.mkdir()
        described = json.loads(HOOKS.read_text())
        described["hook"]["path"] = str(executable(podman.folder / "hook", stage, "oci_hook"))
        (hooks / HOOKS.name).write_text(json.dumps(described))
        is_roots = runtime == "crun" and podman.owner.is_root
        self.cgroups = "--cgroups disabled" if is_roots else ""
        self.prelude = PRELUDE.format(
            runtime=runtime, hooks=hooks, port=PORT, image=IMAGE, cgroups=self.cgroups
        )
        if is_roots:
            self.prelude = FOR_CRUN + self.prelude

    def run(self, script: str) -> tuple[list[str], str]:
        """The lines that a script prints, and its errors."""
        done = self.podman.run(self.prelude + script)
        return done.stdout.splitlines(), done.stderr


@pytest.fixture
def hooked(identity: Identity, user_directory: Path, program: Program, runtime: str) -> Hooked:
    if identity.uid is None and not identity.is_root:
        pytest.skip("needs root, who makes the surroundings")
    return Hooked(Podman(identity, user_directory), program.stage(), runtime)


def tcp(port: int, target: int = PORT) -> str:
    return f"org.hardsplice.tcp=127.0.0.1/{port}:{target}"


def test_a_container_and_its_whole_life(hooked: Hooked) -> None:
    """Each start of the container has an instance of its own; nothing is left in between."""
    said, errors = hooked.run(f"""
        serve web {tcp(hooked.port)}; get {hooked.port}
        podman restart --time 0 web >/dev/null; get {hooked.port}
        podman stop --time 0 web >/dev/null; left
        podman start web >/dev/null; get {hooked.port}
        podman rm --force --time 0 web >/dev/null; left
    """)
    assert said == ["hello"] * 3, errors


def test_a_container_that_ends_by_itself(hooked: Hooked) -> None:
    said, errors = hooked.run(f"""
        run one {tcp(hooked.port)} --rm {IMAGE} true; echo $?; left
        run one {tcp(hooked.port)} --rm {IMAGE} true; echo $?; left
    """)
    assert said == ["0", "0"], errors


def test_an_instance_that_was_killed_is_no_obstacle(hooked: Hooked) -> None:
    said, errors = hooked.run(f"""
        serve web {tcp(hooked.port)}; get {hooked.port}
        pkill -KILL -x hs-host
        podman restart --time 0 web >/dev/null; get {hooked.port}
        pkill -KILL -x hs-host
        podman rm --force --time 0 web >/dev/null; sleep 0.2; left
    """)
    assert said == ["hello"] * 2, errors


def test_a_container_that_was_killed(hooked: Hooked) -> None:
    said, errors = hooked.run(f"""
        serve web {tcp(hooked.port)}; get {hooked.port}
        podman kill --signal KILL web >/dev/null; podman wait web >/dev/null
        podman start web >/dev/null; get {hooked.port}
        podman rm --force --time 0 web >/dev/null; left
    """)
    assert said == ["hello"] * 2, errors


FAILURES = {
    "a port that is taken": "127.0.0.1 port {port} on the host: Address already in use",
    "no port": "cannot parse annotation org.hardsplice.tcp='eighty'",
    "an unknown annotation": "cannot use annotation 'org.hardsplice.tpc'",
}
ANNOTATIONS = {
    "no port": "org.hardsplice.tcp=eighty",
    "an unknown annotation": "org.hardsplice.tpc=80",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_the_containers(failure: str, hooked: Hooked, runtime: str) -> None:
    annotation = ANNOTATIONS.get(failure, tcp(hooked.port))
    # crun shows what a hook says only where it is told to.
    told = f"--annotation run.oci.hooks.stderr={hooked.podman.folder}/home/said"
    said, errors = hooked.run(f"""
        serve web {tcp(hooked.port)}
        run two {annotation} {told} --rm {IMAGE} true; echo $?
        cat $HOME/said >&2
        get {hooked.port}
        podman rm --force --time 0 web >/dev/null; left
    """)
    assert said == ["126", "hello"], errors
    shown = re.findall(r"hardsplice-oci-hook: .*", errors)
    assert len(shown) == 1, errors
    assert FAILURES[failure].format(port=hooked.port) in shown[0]


def test_a_container_in_the_hosts_network_needs_no_forwarding(hooked: Hooked) -> None:
    """So says the error."""
    told = f"--annotation run.oci.hooks.stderr={hooked.podman.folder}/home/said"
    said, errors = hooked.run(f"""
        podman run {hooked.cgroups} --name one --network host \
            --annotation {tcp(hooked.port)} {told} --rm {IMAGE} true; echo $?
        cat $HOME/said >&2
        left
    """)
    assert said == ["126"], errors
    assert "the container is in the host's network, where its ports are without" in errors
    assert "leave out its annotations org.hardsplice.*" in errors


def test_a_container_without_our_annotations_is_left_alone(hooked: Hooked) -> None:
    said, errors = hooked.run(f"""
        run one other.tcp=80 --rm {IMAGE} true; echo $?
        find /run -name hardsplice
    """)
    assert said == ["0"], errors


def test_datagrams(hooked: Hooked, program: Program) -> None:
    """Of one container, beside TCP at the same port, again after its restart."""
    udp = f"org.hardsplice.udp=127.0.0.1/{hooked.port}:{PORT}"
    server = udp_server(hooked.podman, program.stage())
    said, errors = hooked.run(f"""{datagrams(program.stage())}
        run web {udp} --annotation {tcp(hooked.port)} --detach {server} >/dev/null
        datagrams ports 127.0.0.1 {hooked.port}
        podman restart --time 0 web >/dev/null; datagrams ports 127.0.0.1 {hooked.port}
        podman rm --force --time 0 web >/dev/null; left
    """)
    assert said == [str(PORT)] * 2, errors
