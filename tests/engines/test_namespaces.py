# SPDX-License-Identifier: GPL-2.0-or-later
"""PIDs and paths as other tools make them, where the user namespace of a process often is not the
one that owns its network namespace.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.engines import IMAGE, PORT, Podman, answers, bubblewrap, outer_pid
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import PATIENCE

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def serves(launch: Launch, identity: Identity, *target: str) -> None:
    port = free_ports()
    instance = launch(identity, "-f", "-t", f"127.0.0.1/{port}:{PORT}", *target).wait_ready()
    answers(port)
    instance.stop()


# --- bubblewrap ---

SANDBOXES = {
    "plain": (),
    "dev and proc": ("--dev", "/dev", "--proc", "/proc"),
    "another user": ("--unshare-user", "--uid", "1234", "--gid", "1234"),
    "dev and another user": ("--dev", "/dev", "--unshare-user", "--uid", "1234"),
    "no namespaces below": ("--unshare-user", "--disable-userns"),
    "everything": ("--unshare-all", "--dev", "/dev", "--proc", "/proc", "--cap-drop", "ALL"),
}


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_a_process_in_bubblewrap(sandbox: str, identity: Identity, launch: Launch) -> None:
    with bubblewrap(identity, *SANDBOXES[sandbox]) as pid:
        serves(launch, identity, str(pid))


@pytest.mark.root
def test_root_serves_a_users_bubblewrap(user: Identity, launch: Launch) -> None:
    with bubblewrap(user, *SANDBOXES["dev and another user"]) as pid:
        serves(launch, Identity("root"), str(pid))


# --- unshare ---


@contextlib.contextmanager
def below(namespace: Namespace, owner: Identity, depth: int) -> Iterator[int]:
    """A web server in that network namespace, in a user namespace so many below its owner."""
    enter = ["nsenter", f"--net={namespace.net_path}"]
    if not owner.is_root:
        enter += [f"--user={namespace.user_path}", "--preserve-credentials"]
    server = ["/usr/bin/python3", "-m", "http.server", str(PORT)]
    process = subprocess.Popen(
        owner.wrap([*enter, *["unshare", "-U", "--map-current-user"] * depth, *server]),
        cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait(PATIENCE)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_process_in_a_nested_user_namespace(
    depth: int, namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    with below(namespace, identity, depth) as pid:
        serves(launch, identity, str(pid))


# --- Podman ---

RUN = f"podman run --detach --network none {IMAGE} httpd -f -p {PORT}"
TELL = "podman inspect --format {{.State.Pid}}"
SHARED = "--network container:$(podman ps --quiet --latest)"
CONTAINERS = {
    "plain": RUN,
    "of another user": RUN.replace("--detach", "--detach --user 1000"),
    "keep-id": RUN.replace("--detach", "--detach --userns keep-id"),
    "in the network of another one": (
        f"{RUN} >/dev/null; podman run --detach --userns keep-id {SHARED} {IMAGE} httpd -f -p 8081"
    ),
}


@pytest.fixture
def podman(identity: Identity, user_directory: Path) -> Podman:
    if identity.uid is None and not identity.is_root:
        pytest.skip("needs root, who makes the surroundings")
    return Podman(identity, user_directory)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_process_in_podman(
    container: str, podman: Podman, identity: Identity, launch: Launch
) -> None:
    if identity.is_root and "keep-id" in CONTAINERS[container]:
        pytest.skip("keep-id is for others than root")
    with podman.running(f"{TELL} $({CONTAINERS[container]})") as (surroundings, (pid,)):
        serves(launch, identity, str(outer_pid(surroundings, int(pid))))


SANDBOX_KEY = """
touch $HOME/key
podman unshare sh -c 'unshare --net sh -c "mount --bind /proc/self/ns/net $HOME/key"'
"""


def test_a_path_of_another_mount_namespace(
    podman: Podman, identity: Identity, program: Program
) -> None:
    """As `podman inspect` gives it (SandboxKey): others see an empty file there."""
    if identity.is_root:
        pytest.skip("root's Podman mounts where everybody sees it")
    hardsplice = f"env PYTHONPATH={program.stage()} /usr/bin/python3 -m hardsplice"
    serve = f"{hardsplice} -P $HOME/pid -t 127.0.0.1/{free_ports()}:80 --netns $HOME/key"
    done = podman.run(f"{SANDBOX_KEY}\n{serve}; echo $?\npodman unshare {serve}; echo $?")
    assert done.stdout.split() == ["1", "0"], done.stderr
    refusal, hint = [line for line in done.stderr.splitlines() if line.startswith("hardsplice: ")]
    assert "is not a network namespace" in refusal
    assert "use the PID" in hint
    assert "podman unshare hardsplice" in hint
