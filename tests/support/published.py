# SPDX-License-Identifier: GPL-2.0-or-later
"""Podman and Docker, of this machine and of trees, with the same words: for tests that judge ports
which they publish, whichever engine it is.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.docker import Docker
from tests.support.engines import IMAGE, Podman, need, programs_of_the_machine
from tests.support.frontends import compiled, datagrams, executable, packaged
from tests.support.netns import Identity
from tests.support.product import Program
from tests.support.trees import Tree

_SERVED = Path(__file__).with_name("served.sh")
# `serve NAME OPTION...` starts a container with all of served.sh, in the network $network, or where
# $where says.
_FUNCTIONS = """
set -u
network=bridge
image={image}
engine() {{ {engine} "$@"; }}
serve() {{
    name=$1; shift
    engine run -d --name $name ${{where---network $network}} --ulimit nofile=1024:1024 \
        --stop-timeout 0 "$@" {volumes} $image \
        sh {folder}/served.sh {folder}/datagram_program.py >/dev/null
}}
get() {{
    for _ in $(seq 50); do curl -gfs -m 5 "http://$1/index.html" && return; sleep 0.1; done
    echo none
}}
name() {{ dig +short +tries=10 +timeout=1 hello.test "$@"; }}
remove() {{ engine kill "$@" >/dev/null; engine rm --force "$@" >/dev/null; }}
ours() {{
    ps -e -o stat=,comm=,args= | grep -Ev '^(Z[^ ]*|[^ ]+ +(dockerd|bash|sh|grep)) ' |
        grep -E '^[^ ]+ +(hs-|docker-proxy|rootlessport)|/(docker-proxy|rootlessport)( |$)'
}}
left() {{ # processes, sockets (ports from $1 to $2) and files of ours that a few seconds leave
    for _ in $(seq 50); do ours >/dev/null || break; sleep 0.1; done
    ours
    ss -Htulpn "sport >= :$1 and sport <= :$2"
    find /run ! -type d '(' -path '*/rp/*' -o -path '*hardsplice*' ')'
    echo "end of what is left"
}}
"""
NOTHING = ["end", "of", "what", "is", "left"]


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that starts our program."""

    runner: Podman | Docker
    functions: str

    def run(self, script: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Run a script to its end; ``more`` are options of Docker's daemon."""
        text = self.functions + script
        if isinstance(self.runner, Docker):
            return self.runner.run(text, *more)
        return self.runner.run(text)

    @property
    def stub(self) -> str:
        """What waits for the end of a port, by its process's name."""
        return "docker-proxy" if self.is_docker else "rootlessport"

    @property
    def is_docker(self) -> bool:
        return isinstance(self.runner, Docker)


@contextlib.contextmanager
def runner(
    name: str, user: Identity, program: Program | None, *, by_pip: bool = False
) -> Iterator[Podman | Docker]:
    """An engine by its name: podman or docker, behind it an @ and its tree, if it is of one. The
    user is Podman's. With a program its ports are published by ours, as packages install it or, by
    pip, which starts Python once more. Skips where there is no such engine.
    """
    kind, _, suite = name.partition("@")
    with tempfile.TemporaryDirectory(prefix="hardsplice-tests-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        tree = Tree(suite, folder) if suite else None
        helpers = None
        if program is not None:
            helpers = folder / "helpers"
            helpers.mkdir()
            stage = tree.stage() if tree else compiled(program.stage())
            for file, module in (
                ("rootlessport", "rootlessport"),
                ("docker-proxy", "docker_proxy"),
            ):
                install = executable if by_pip else packaged
                install(helpers / file, stage, module)
        if kind == "docker":
            yield Docker(folder, helpers and helpers / "docker-proxy", tree)
            return
        if not suite:
            need("slirp4netns")
            for needed in ("/dev/net/tun", "/usr/lib/podman/netavark"):
                if not Path(needed).exists():
                    pytest.skip(f"there is no {needed}")
        yield Podman(user, folder, helpers, tree)


@contextlib.contextmanager
def engine(name: str, user: Identity, program: Program) -> Iterator[Engine]:
    """An engine by its name, as ``runner`` knows it, that starts our program."""
    need(*(() if "@" in name else ("curl", "dig", "dnsmasq", "ss")))
    # Those of trees get it as packages install it, the others as pip does: both ways are tried.
    with runner(name, user, program, by_pip="@" not in name) as made:
        served = made.folder / "served"
        served.mkdir()
        shutil.copy(_SERVED, served)
        text = _FUNCTIONS + datagrams(served).replace("{", "{{").replace("}", "}}")
        is_docker = isinstance(made, Docker)
        functions = text.format(
            folder=served, volumes=f"-v {served}:{served}:ro {programs_of_the_machine()}",
            engine="docker" if is_docker else "podman", image="test" if is_docker else IMAGE,
        )  # fmt: skip
        yield Engine(made, functions)
