# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's releases with newer engines than this machine's, in folders that tests look for: Podman
5 and Docker 26 of trixie, and what sid has.

    python3 -m tools.engine_trees     # as root; a minute each, the first time and after 14 days
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools import clean_root
from tools.clean_root import Recipe

SUITES = ("trixie", "sid")
PACKAGES = (
    "aardvark-dns", "bind9-dnsutils", "busybox-static", "ca-certificates", "catatonit", "crun",
    "curl", "dnsmasq-base", "docker-cli", "docker.io", "fuse-overlayfs", "iproute2", "iptables",
    "netavark", "nftables", "passt", "podman", "procps", "python3", "python3-prctl",
    "python3-seccomp", "rootlesskit", "runc", "slirp4netns", "uidmap", "util-linux", "wget",
)  # fmt: skip


def recipe(suite: str) -> Recipe:
    """What such a folder consists of."""
    return Recipe(suite, "minbase", PACKAGES)


def found(suite: str) -> Path | None:
    """The folder, where it was made already."""
    folder = clean_root.cache_folder() / recipe(suite).name()
    return folder if folder.is_dir() else None


def main() -> int:
    """Make them all; 1 if one can't be had."""
    status = 0
    for suite in SUITES:
        try:
            clean_root.make(recipe(suite))
        except clean_root.UnavailableError as error:
            print(f"engines: no tree of {suite}: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
