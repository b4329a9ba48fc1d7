# SPDX-License-Identifier: GPL-2.0-or-later
"""A forwarder that is compared: where it is put, and the words that start it. What each is started
with: peers.py.
"""

from __future__ import annotations

import functools
import os
import re
import resource
import shutil
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from bench.load import Bed, Kit, on
from tests.support.netns import Identity, clean_environment

LISTENER = "{listener}"
BACKLOG = 4096
MOST_CONNECTIONS = 20_000
ENOUGH_FILES = 65_536
THIS_USER = Identity("root" if os.geteuid() == 0 else "user")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a forwarder is to be put: its port here, and the bed that it leads to."""

    kit: Kit
    bed: Bed
    port: int

    @property
    def owner(self) -> Identity:
        """Who runs it, and owns the bed."""
        return self.bed.owner

    @property
    def protocol(self) -> str:
        """Whose port it is: "tcp" or "udp"."""
        return self.bed.protocol

    def file(self, name: str) -> Path:
        """A file's path in a folder where the owner may write."""
        folder = self.kit.folder / f"{self.bed.name}.d"
        if not folder.exists():
            folder.mkdir(mode=0o755)
            if self.owner.uid is not None:
                os.chown(folder, self.owner.uid, self.owner.uid)
        return folder / name


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a forwarder: words for its user, and `before` them, words for who measures."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)


class Peer(ABC):
    """One kind of forwarder."""

    name: str
    program: str
    protocols: tuple[str, ...] = ("tcp",)
    wants_root = False
    wants_listener = False  # a socket listening on the port, whose number replaces LISTENER
    brings_own_bed = False  # makes its own namespace and runs the server in it
    serves_here = False  # enters no namespace: the server is in that of the clients

    def __init__(self, label: str = "", program: str = "") -> None:
        """`label` tells two of a kind apart; `program` is another path than the usual one."""
        self.label = f"{self.name}.{label}" if label else self.name
        self.path = shutil.which(program or self.program, path=search_path()) or ""

    def owner(self, wanted: Identity) -> Identity:
        """Who it runs as, where `wanted` is who it should."""
        return THIS_USER if self.wants_root else wanted

    def obstacle(self, wanted: Identity) -> str:
        """Why this can't be measured here; empty if it can."""
        if not self.path:
            return f"{self.program} is not installed"
        if self.wants_root and os.geteuid() != 0:
            return "it needs root"
        return self._obstacle(self.owner(wanted))

    def _obstacle(self, owner: Identity) -> str:
        del owner
        return ""

    @abstractmethod
    def command(self, place: Place) -> Command:
        """How to start it there."""

    def close(self) -> None:  # noqa: B027 - most have nothing
        """Remove what was made in order to run it."""

    def version(self) -> str:
        """The program's own word."""
        said = output([self.path, "--version"])
        return next((line.strip() for line in said.splitlines() if re.search(r"\d", line)), "?")


def search_path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin:/usr/lib/systemd:/lib/systemd"


def output(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


class Direct(Peer):
    """No forwarder: the client reaches a server in its own namespace. What loopback TCP can do."""

    name = "direct"
    program = "true"
    protocols = ("tcp", "udp")

    def command(self, place: Place) -> Command:
        raise NotImplementedError("there is nothing to start")

    def version(self) -> str:
        return os.uname().release


def environment_for(command: Command) -> dict[str, str]:
    """The environment to start it in."""
    return clean_environment({"LC_ALL": "C.UTF-8", **command.environment})


def start_words(place: Place, command: Command, listener: int | None) -> list[str]:
    """All words: processors, open files and user first, then the command's own."""
    words = [str(listener) if word == LISTENER else word for word in command.words]
    files = ["prlimit", f"--nofile={most_files()}"]
    before = [*on(place.kit.pinning.forwarder), *files, *command.before]
    return [*before, *place.owner.wrap(words)]


@functools.cache
def most_files() -> int:
    """How many files a forwarder may open: ENOUGH_FILES, or what this machine lets us allow."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = ["prlimit", f"--nofile={ENOUGH_FILES}", "true"]
    if subprocess.run(raised, capture_output=True, check=False).returncode == 0:
        return ENOUGH_FILES
    return min(hard, ENOUGH_FILES)
