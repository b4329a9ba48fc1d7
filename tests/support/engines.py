# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs that make namespaces: bubblewrap, and Podman in surroundings of its own."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import procfs
from tests.support.netns import Identity
from tests.support.stream import PATIENCE, eventually
from tests.support.trees import Tree

_SURROUNDINGS = Path(__file__).with_name("podman.sh")
# Programs of the machine, to be found in a container as well
_FOLDERS = ("/usr", "/bin", "/lib", "/lib64", "/etc")
IMAGE, PORT = "hardsplice-test", 8080


def need(*programs: str) -> None:
    """Skip where a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@contextlib.contextmanager
def bubblewrap(owner: Identity, *options: str) -> Iterator[int]:
    """A web server in a sandbox with a network of its own: its PID, as --info-fd tells it."""
    need("bwrap")
    told, tell = os.pipe()
    words = ["bwrap", "--ro-bind", "/", "/", "--unshare-net", *options, "--info-fd", str(tell)]
    process = subprocess.Popen(
        owner.wrap([*words, "/usr/bin/python3", "-m", "http.server", str(PORT)]),
        pass_fds=[tell], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(tell)
    try:
        with open(told, encoding="ascii") as info:
            said = info.read()
        found = re.search(r'"child-pid": (\d+)', said)
        if found is None:
            assert process.stderr is not None
            pytest.skip(f"bwrap {' '.join(options)} does not work here: {process.stderr.read()}")
        yield int(found[1])
    finally:
        for pid in [*procfs.descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait(PATIENCE)
        if process.stderr is not None:
            process.stderr.close()


def make_image(folder: Path) -> None:
    """An image's files: busybox, by a few of its names."""
    need("busybox")
    programs = folder / "bin"
    programs.mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", programs / "busybox")
    for name in ("sh", "httpd", "true"):
        (programs / name).symlink_to("busybox")


class Podman:
    """Podman as somebody uses it. A script in there has IMAGE, and says what it wants to say."""

    def __init__(
        self, owner: Identity, folder: Path, helpers: Path | None = None, tree: Tree | None = None
    ) -> None:
        """``helpers`` is a folder with programs that Podman takes before its own. It is a tree's
        Podman, where one is given: the folder is the tree's then.
        """
        if tree is None:
            need("podman", "newuidmap", "crun", "runc")
        self.tree = tree
        self.before: list[str] = []  # words that run others, as root, in its mount namespace
        self.owner = owner
        self.folder = folder
        self.helpers = helpers
        make_image(folder / "image")

    def words(self, script: str) -> list[str]:
        """A command that runs a shell script in there, with IMAGE imported."""
        begun = f"tar -C {self.folder}/image -c . | podman import - {IMAGE} >/dev/null 2>&1"
        works = f"podman run --rm --network none {IMAGE} true"
        ended = "podman rm --all --force --time 0 >/dev/null 2>&1"
        uid = str(self.owner.uid or 0)
        script = f"trap '{ended}' EXIT; {begun}; {works} || exit 77\n{script}"
        surroundings = shutil.copy(_SURROUNDINGS, self.folder) if self.tree else _SURROUNDINGS
        words = [
            *self.before, "env", f"HELPERS={self.helpers or ''}",
            str(surroundings), str(self.folder), uid, "sh", "-c", script,
        ]  # fmt: skip
        if self.tree:
            return self.tree.words(words)
        return ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", *words]

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        done = subprocess.run(
            self.words(script),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        if done.returncode == 77:
            pytest.skip(f"Podman does not work here: {done.stderr}")
        return done

    @contextlib.contextmanager
    def running(self, script: str) -> Iterator[tuple[int, list[str]]]:
        """Run it until what it says is used: the words of its only line, and our child's PID."""
        process = subprocess.Popen(
            self.words(f"{script}\nread -r _"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            said = process.stdout.readline().split()
            if not said:
                _, errors = process.communicate(timeout=PATIENCE)
                pytest.skip(f"Podman does not work here: {errors}")
            yield process.pid, said
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate("\n", timeout=PATIENCE)
            process.kill()
            process.communicate()

    def with_python(self, stage: Path) -> str:
        """Options of `podman run` with which hardsplice runs in a container."""
        return f"{programs_of_the_machine()} -v {stage}:{stage}:ro -e PYTHONPATH={stage}"


def programs_of_the_machine() -> str:
    """Options of `run` with which a container has the programs of where the engine runs."""
    return " ".join(f"-v {folder}:{folder}:ro" for folder in _FOLDERS if os.path.exists(folder))


def outer_pid(surroundings: int, pid: int) -> int:
    """The number here of a process that has that number in the PID namespace of ``Podman``."""
    for one, status in procfs.each(procfs.status, procfs.descendants(surroundings)).items():
        numbers = status["NSpid"].split()
        if len(numbers) > 1 and int(numbers[1]) == pid:
            return one
    raise LookupError(f"no process {pid} in there")


def answers(port: int) -> int:
    """A web server answers behind a port of the host's: the status."""

    def answer() -> int | None:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            client.request("GET", "/")
            return client.getresponse().status
        except (ConnectionError, http.client.HTTPException):
            return None  # it does not listen yet
        finally:
            client.close()

    status: int = eventually(answer, "the server does not answer")
    return status
