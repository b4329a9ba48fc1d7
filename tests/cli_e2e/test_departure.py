# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of the namespace that is served, however it comes: the port is free within two seconds.

The tests' mounts are in a mount namespace of their own (`Room`), in which hardsplice runs, too.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, can_bind, free_ports
from tests.support.stream import PATIENCE

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]
Serve = Callable[..., tuple[Instance, int]]
SECONDS = 2.0


class Room(Program):
    """A mount namespace with a tmpfs at ``folder``, in which hardsplice is started by root."""

    def __init__(self, program: Program, folder: Path) -> None:
        super().__init__()
        self.program = program
        self.folder = folder
        self.supervisor = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {folder}; echo +; exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.supervisor.stdout is not None
        assert self.supervisor.stdout.readline() == "+\n"

    @property
    def enter(self) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self.supervisor.pid}/ns/mnt"]

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = self.program.argv(identity)
        return [*self.enter, *argv], environment

    def do(self, script: str) -> None:
        """Run a shell script in there, in the folder."""
        words = [*self.enter, "sh", "-ec", f"cd {self.folder}; {script}"]
        subprocess.run(words, check=True, timeout=PATIENCE)

    def close(self) -> None:
        self.supervisor.communicate(timeout=PATIENCE)


@pytest.fixture
def room(program: Program, tmp_path: Path) -> Iterator[Room]:
    made = Room(program, tmp_path)
    yield made
    made.close()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace(Identity("root")) as made:
        yield made


@pytest.fixture
def serve(room: Room, namespace: Namespace) -> Iterator[Callable[..., tuple[Instance, int]]]:
    """Start hardsplice for the mount called ``net`` in the room's folder: it, and its port."""
    started: list[Instance] = []

    def start(where: str, *options: str) -> tuple[Instance, int]:
        room.do(f"mkdir -p {Path(where).parent}; touch {where}")
        room.do(f"mount --bind {namespace.net_path} {where}")
        port = free_ports()
        words = ["-f", "-t", f"127.0.0.1/{port}:80", *options]
        target = ["--netns", str(room.folder / where)]
        instance = Instance(room, Identity("root"), [*words, *target])
        started.append(instance)
        return instance.wait_ready(), port

    yield start
    for instance in started:
        instance.discard()


ENDS = {
    "as ip netns delete does": "umount -l net; rm net",
    "unmounted": "umount net",
    "unmounted, the file stays": "umount -l net; test -e net",
    "another one in its place": "umount -l net; unshare --net mount --bind /proc/self/ns/net net",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_mount_that_goes(end: str, room: Room, serve: Serve) -> None:
    """As Docker leaves an empty file behind, for a minute."""
    instance, port = serve("net")
    began = time.monotonic()
    room.do(ENDS[end])
    assert instance.wait(SECONDS) == 0
    assert can_bind("127.0.0.1", port)
    assert time.monotonic() - began < SECONDS


def test_a_folder_that_goes_with_it(room: Room, serve: Callable[..., tuple[Instance, int]]) -> None:
    room.do("mkdir folder; mount -t tmpfs none folder")
    instance, _ = serve("folder/net")
    room.do("umount --lazy folder")
    assert instance.wait(SECONDS) == 0


def test_a_link_to_it(room: Room, serve: Callable[..., tuple[Instance, int]]) -> None:
    room.do("mkdir real; ln -s real/net link; touch real/net")
    instance, _ = serve("link")
    room.do("umount real/net")
    assert instance.wait(SECONDS) == 0


def test_other_mounts_that_come_and_go_are_no_end(room: Room, serve: Serve) -> None:
    instance, _ = serve("net")
    room.do("mkdir other; for i in $(seq 50); do mount -t tmpfs none other; umount other; done")
    room.do("mkdir twice; touch twice/net; mount --bind net twice/net; umount twice/net")
    assert instance.process.poll() is None
    room.do("umount net")
    assert instance.wait(SECONDS) == 0


def test_nothing_is_watched_where_it_is_not_to_end(room: Room, serve: Serve) -> None:
    instance, _ = serve("net", "--no-netns-quit")
    held = procfs.descriptors(instance.pid).values()
    assert not any("mountinfo" in what for what in held)
    room.do("umount net")
    instance.stop()


def test_no_inotify_instance_is_needed(room: Room, serve: Serve, namespace: Namespace) -> None:
    """They are counted by user, and few."""
    hold = "import ctypes, sys\nwhile ctypes.CDLL(None).inotify_init() >= 0: pass\n"
    hold += "print('+', flush=True); sys.stdin.read()"
    greedy = subprocess.Popen(
        ["prlimit", "--nofile=20000", "/usr/bin/python3", "-c", hold],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert greedy.stdout is not None
        assert greedy.stdout.readline() == "+\n"
        instance, _ = serve("net")
        room.do("umount net")
        assert instance.wait(SECONDS) == 0
    finally:
        greedy.communicate(timeout=PATIENCE)


def test_what_cannot_be_watched_is_said(program: Program, namespace: Namespace) -> None:
    """A descriptor's link in /proc leads to a namespace that is no mount."""
    with open(namespace.net_path, "rb") as held:
        path = f"/proc/{os.getpid()}/fd/{held.fileno()}"
        instance = Instance(
            program, Identity("root"), ["-f", "-t", str(free_ports()), "--netns", path]
        )
        try:
            instance.wait_ready()
            assert "will not be noticed" in instance.messages()
            instance.stop()
        finally:
            instance.discard()


@pytest.mark.parametrize("path", ["/proc/{}/ns/net", "{room}/link"])
def test_a_process_that_ends(path: str, program: Program, room: Room, namespace: Namespace) -> None:
    room.do(f"ln -s {namespace.net_path} link")
    where = path.format(namespace.pid, room=room.folder)
    instance = Instance(room, Identity("root"), ["-f", "-t", str(free_ports()), "--netns", where])
    try:
        instance.wait_ready()
        namespace.kill()
        assert instance.wait(SECONDS) == 0
    finally:
        instance.discard()
