# SPDX-License-Identifier: GPL-2.0-or-later
"""Docker, unmodified, whose docker-proxy is another one by nothing but userland-proxy-path. Its
daemon has namespaces, images and sockets of its own.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.engines import make_image, need
from tests.support.trees import Tree

_BEGUN = """
set -u
ip link set lo up
mount -t tmpfs none /run
export DOCKER_HOST=unix:///run/docker-test.sock
daemon() {{
    dockerd --data-root {folder}/root --exec-root /run/exec --pidfile /run/docker-test.pid \
        --host $DOCKER_HOST --storage-driver vfs --iptables=false --ip6tables=false \
        {more} >>{folder}/log 2>&1 &
    for _ in $(seq 100); do docker info >/dev/null 2>&1 && break; sleep 0.1; done
    docker info >/dev/null 2>&1
}}
daemon || exit 77
tar -C {folder}/image -c . | docker import - test >/dev/null || exit 77
docker run --rm --ulimit nofile=1024:1024 test true >/dev/null || exit 77
"""


class Docker:
    """Docker as root uses it, here or in a tree. A script has the image
    "test", and `daemon` to start the daemon again."""

    def __init__(self, folder: Path, proxy: Path | None = None, tree: Tree | None = None) -> None:
        """``proxy`` is what it starts in the place of its own docker-proxy."""
        if tree is None:
            need("docker", "dockerd", "bash", "runc")
        self.folder = folder
        self.tree = tree
        self.proxy = proxy
        make_image(folder / "image")

    def words(self, script: str, *more: str) -> list[str]:
        """A command that runs a script by bash; ``more`` are options of the daemon."""
        if self.proxy:
            more = (f"--userland-proxy-path={self.proxy}", *more)
        begun = _BEGUN.format(folder=self.folder, more=" ".join(more))
        words = ["bash", "-c", begun + script]
        if self.tree:
            return self.tree.words(words)
        own = ["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        return ["unshare", *own, *words]

    def run(self, script: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Run a script to its end."""
        done = subprocess.run(
            self.words(script, *more),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=100,
        )  # fmt: skip
        if done.returncode == 77:
            log = (self.folder / "log").read_text()[-500:]
            pytest.skip(f"Docker does not work here: {done.stderr}{log}")
        return done
