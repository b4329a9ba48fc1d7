# SPDX-License-Identifier: GPL-2.0-or-later
"""README.md's examples work as they stand there: their commands are taken from the page and run,
where the programs that they use are installed.

They run in a network namespace of the tests' own, so that no port of the machine's is in the way,
and in a mount namespace in which those programs keep nothing of theirs anywhere else: neither
images nor accounts stay behind. What is fetched from a registry is made here instead.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.netns import Identity, Namespace
from tests.support.product import Program, free_ports
from tests.support.stream import eventually
from tests.support.systemd import Systemd, skip_unless_possible

pytestmark = [
    pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root, pytest.mark.timeout(120)
]  # fmt: skip

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECONDS = 60

# What Podman and Docker need to run where they have no right to anything of the machine.
_STORAGE = '[storage]\ndriver="vfs"\ngraphroot="{0}/store"\nrunroot="{0}/run"\n'
_CONTAINERS = """[engine]
runtime="runc"
cgroup_manager="cgroupfs"
events_logger="none"
[containers]
default_ulimits=["nofile=1024:1024","nproc=4096:4096"]
"""
# An account with subordinate ids, for this mount namespace alone: folder, user id.
_ACCOUNT = """
for file in passwd group subuid subgid; do
    cat /etc/$file >"$1/$file" 2>/dev/null || true
    case $file in
        passwd) echo "hs-tests:x:$2:$2::$1:/bin/sh" ;;
        group) echo "hs-tests:x:$2:" ;;
        *) echo "hs-tests:7000000:65536" ;;
    esac >>"$1/$file"
    [ ! -e /etc/$file ] || mount --bind "$1/$file" /etc/$file
done
"""
# The commands of the page, and what shows that they work: folder, commands, what to fetch, how many
# times to try, what to do at the end.
_RUN = """
cd "$1"
eval "$2" || exit
for i in $(seq 50); do
    found=$(curl -fsS "$3" 2>/dev/null) && break
    sleep 0.1
done
echo "found: $found"
eval "$4" >/dev/null 2>&1
for i in $(seq 100); do
    curl -s "$3" >/dev/null
    [ $? = 7 ] && echo "gone" && break
    sleep 0.1
done
"""


def block(heading: str) -> list[str]:
    """The first block of commands below a heading."""
    found = re.search(rf"^### {heading}\n.*?^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1].splitlines()


def commands(heading: str) -> str:
    """What is to be run before anything is fetched; a program in the background is waited for, as
    who types the next line waits.
    """
    lines = [line for line in block(heading) if not line.startswith("curl ")]
    return "\n".join(f"{line}\nsleep 1" if line.endswith("&") else line for line in lines)


def url(heading: str) -> str:
    """What is fetched."""
    return block(heading)[-1].split()[-1]


def need(*names: str) -> None:
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


class Place:
    """Where commands run: a folder with hardsplice, and a network of its own."""

    def __init__(self, folder: Path, program: Program, identity: Identity) -> None:
        self.folder = folder
        self.identity = identity
        words, environment = program.argv(identity)
        words = words[len(identity.wrap([])) :]
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        path = environment.get("PYTHONPATH", "")
        self.interpreter = ["env", f"PYTHONPATH={path}", words[0]]
        for name, module in (("hardsplice", ""), ("hardsplicectl", ".ctl")):
            script = bin_folder / name
            line = re.sub(r"-m hardsplice$", f"-m hardsplice{module}", " ".join(words))
            script.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {line} "$@"\n')
            script.chmod(0o755)
        (folder / "xdg").mkdir(mode=0o700)
        self.environment = {
            "PATH": f"{bin_folder}:/usr/sbin:/usr/bin:/sbin:/bin:{os.environ['PATH']}",
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder / "xdg"),
        }

    def own(self) -> None:
        """Give all of it to whoever is to run there."""
        uid = self.identity.uid or 0
        for folder, _, files in os.walk(self.folder):
            for name in (folder, *(os.path.join(folder, file) for file in files)):
                os.chown(name, uid, uid)

    def run(self, script: str, *words: str, before: str = "") -> str:
        """What a script says that runs as the identity; ``before`` runs as root."""
        uid = self.identity.uid or 0
        with Namespace(Identity("root")) as network:
            inner = self.identity.wrap(["bash", "-c", script, "bash", str(self.folder), *words])
            outer = f'{before}\nshift 2\nexec "$@"'
            output = self.folder / "said"
            with output.open("wb") as said:
                subprocess.run(
                    ["nsenter", "-n", "-t", str(network.pid), "unshare", "-m", "--propagation",
                     "private", "bash", "-c", outer, "bash", str(self.folder), str(uid), *inner],
                    env=self.environment, cwd="/", check=False, stdin=subprocess.DEVNULL,
                    stdout=said, stderr=said, timeout=SECONDS,
                )  # fmt: skip
            return output.read_text(errors="replace")

    def image(self) -> None:
        """A root with busybox, as the image has it."""
        tree = self.folder / "tree"
        (tree / "bin").mkdir(parents=True)
        (tree / "etc").mkdir()
        shutil.copy(shutil.which("busybox") or "", tree / "bin" / "busybox")
        for name in ("httpd", "sh"):
            (tree / "bin" / name).symlink_to("busybox")


@pytest.fixture
def place(program: Program, identity: Identity) -> Iterator[Place]:
    folder = Path(f"/tmp/hardsplice-tests-readme-{os.getpid()}-{identity.name}")
    folder.mkdir(mode=0o755)
    made = Place(folder, program, identity)
    yield made
    shutil.rmtree(folder)


def works(said: str, what: str) -> None:
    assert re.search(rf"^found: {what}", said, re.MULTILINE), said
    assert re.search(r"^gone$", said, re.MULTILINE), said


def test_there_are_five_examples() -> None:
    part = README.partition("## Five examples\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (.*)$", part, re.MULTILINE) == [
        "One port of a program",
        "One port of the host",
        "Podman",
        "A named network namespace",
        "Ports at run time",
    ]


@pytest.mark.parametrize("heading", ["One port of a program", "Ports at run time"])
def test_a_program(place: Place, heading: str) -> None:
    need("curl")
    place.own()
    said = place.run(_RUN, commands(heading), url(heading), "kill $(jobs -p)")
    works(said, "<!DOCTYPE HTML")


def test_a_port_of_the_host(place: Place) -> None:
    need("curl")
    place.own()
    said = place.run(f'cd "$1"\n{commands("One port of the host")}\nkill $(jobs -p)')
    assert "bin/" in said, said


def test_a_named_network_namespace(place: Place) -> None:
    need("curl", "ip")
    if not place.identity.is_root:
        pytest.skip("as root, says the page")
    heading = "A named network namespace"
    end = "kill $(jobs -p); ip netns delete blue"
    said = place.run(_RUN, commands(heading), url(heading), end, before="mount -t tmpfs tmpfs /run")
    works(said, "<!DOCTYPE HTML")


def test_podman(place: Place) -> None:
    need("podman", "runc", "busybox", "curl", *(() if place.identity.is_root else ["newuidmap"]))
    folder = place.folder
    place.image()
    (folder / "storage.conf").write_text(_STORAGE.format(folder))
    (folder / "containers.conf").write_text(_CONTAINERS)
    place.own()
    place.environment |= {
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "CONTAINERS_CONF": str(folder / "containers.conf"),
    }
    image = 'tar -C "$1/tree" -c . | podman import -q - docker.io/library/busybox:latest || exit\n'
    clean = "\npodman unshare rm -rf $1/store $1/run 2>/dev/null || rm -rf $1/store $1/run"
    clean += "\n[ $UID = 0 ] || kill $(cat $XDG_RUNTIME_DIR/libpod/tmp/pause.pid)"
    said = place.run(
        image + _RUN + clean, commands("Podman"), "http://127.0.0.1:8080/hostname",
        "podman rm -f -t 0 web", before="" if place.identity.is_root else _ACCOUNT,
    )  # fmt: skip
    works(said, "[0-9a-f]{12}")


def test_docker(place: Place) -> None:
    need("dockerd", "containerd", "docker", "runc", "busybox", "curl")
    if not place.identity.is_root:
        pytest.skip("as root, like the container")
    place.image()
    place.environment["DOCKER_HOST"] = f"unix://{place.folder}/docker.sock"
    daemon = """
mount -t tmpfs tmpfs /run
dockerd --storage-driver vfs --iptables=false --bridge=none --data-root $1/data \
    --exec-root $1/exec -H unix://$1/docker.sock --pidfile $1/pid \
    --default-ulimit nofile=1024:1024 >$1/log 2>&1 &
for i in $(seq 100); do docker version >/dev/null 2>&1 && break; sleep 0.1; done
tar -C "$1/tree" -c . | docker import - busybox:latest >/dev/null || exit
"""
    end = "\nkill $(cat $1/pid); wait"
    said = place.run(
        daemon + _RUN + end, commands("Docker"), "http://127.0.0.1:8080/hostname",
        "docker rm -f web",
    )  # fmt: skip
    works(said, "[0-9a-f]{12}")


def test_bubblewrap(place: Place) -> None:
    need("bwrap", "curl")
    place.own()
    said = place.run(
        _RUN, commands("bubblewrap"), "http://127.0.0.1:8080/bin/hardsplice",
        "kill $(pgrep -P $!)",
    )  # fmt: skip
    works(said, "#!/bin/sh")


def test_systemd(program: Program, user: Identity) -> None:
    """Under a systemd of the tests' own, at a port that is free: the network is the machine's."""
    skip_unless_possible()
    need("systemd-run", "curl")
    port = str(free_ports())
    script = (
        'hardsplice() { PYTHONPATH=/program python3 -m hardsplice "$@"; }; set -e\n'
        + commands("systemd").replace("8080", port)
    )
    # What every unit wants unless it says otherwise; systemd's own are not there.
    targets = dict.fromkeys(("sysinit.target", "basic.target", "shutdown.target"), "[Unit]\n")
    targets = {name: f"{text}DefaultDependencies=no\n" for name, text in targets.items()}
    systemd = Systemd(user, program.stage(), targets, "")
    try:
        status, said = systemd.run("bash", "-c", script)
        assert status == 0, said
        url = f"http://127.0.0.1:{port}/"
        eventually(lambda: systemd.run("curl", "-fsS", url)[0] == 0, lambda: said)
        systemd.control("stop", "web")
        eventually(lambda: systemd.run("curl", "-sS", url)[0] == 7, "the port is still there")
    finally:
        systemd.close()
