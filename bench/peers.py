# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is compared, and how each is started: with what its own documentation recommends for the job.

The job is the same for all: 127.0.0.1:PORT of this namespace leads to 127.0.0.1:80 of a bed's. Each has one
core, where the run is pinned; each may open as many files as it likes; none logs connections; each
that can be told how deep to queue is told the most. Whoever finds a better setting for
a peer should put it here: the benchmark is worth something only as long as its losers agree with it.
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
from tests.support.product import Program

BACKLOG = 4096
MOST_CONNECTIONS = 20_000
ENOUGH_FILES = 65_536


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
    """How to start a forwarder. `listener`: pass a listening socket, by its number."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)


class Peer(ABC):
    """One kind of forwarder."""

    name: str
    program: str
    wants_listener = False  # a socket listening on the port, whose number replaces LISTENER
    brings_own_bed = False  # makes its own namespace and runs the server in it

    def __init__(self, label: str = "", program: str = "") -> None:
        """`label` tells two of a kind apart; `program` is another path than the usual one."""
        self.label = f"{self.name}.{label}" if label else self.name
        self.path = shutil.which(program or self.program, path=_search_path()) or ""

    def obstacle(self, owner: Identity) -> str:
        """Why this can't be measured here, for this owner; empty if it can."""
        if not self.path:
            return f"{self.program} is not installed"
        return self._refuses(owner)

    def _refuses(self, owner: Identity) -> str:
        del owner
        return ""

    @abstractmethod
    def command(self, place: Place) -> Command:
        """How to start it there, as the place's owner (who is not yet part of the words)."""

    def version(self) -> str:
        """The program's own word."""
        said = _output([self.path, "--version"])
        return next((line.strip() for line in said.splitlines() if re.search(r"\d", line)), "?")


LISTENER = "{listener}"


def _search_path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin:/usr/lib/systemd:/lib/systemd"


def _output(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


class Direct(Peer):
    """No forwarder: the client reaches a server in its own namespace. What loopback TCP can do."""

    name = "direct"
    program = "true"

    def command(self, place: Place) -> Command:
        raise NotImplementedError("there is nothing to start")

    def version(self) -> str:
        return os.uname().release


class Hardsplice(Peer):
    """This checkout, or an installed one; its sandbox is always on."""

    name = "hardsplice"
    program = "python3"

    def __init__(self, label: str = "", program: str = "") -> None:
        """`program` is an installed hardsplice to measure instead of the checkout."""
        super().__init__(label)
        self._program = Program(program or None)

    def command(self, place: Place) -> Command:
        # Program puts the owner's words in front, which whoever starts the command does too.
        words, environment = self._program.argv(place.owner)
        words = words[len(place.owner.wrap([])) :]
        spec = f"127.0.0.1/{place.port}:{place.bed.port}"
        return Command([*words, "-f", "-q", "-t", spec, *_target(place)], environment)

    def version(self) -> str:
        words, environment = self._program.argv(Identity("this"))
        done = subprocess.run(
            [*words, "--version"], env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or "?"


def _target(place: Place) -> list[str]:
    """What hardsplice and pasta are told about the namespace: in the same words."""
    if place.bed.path is not None:
        return ["--netns", str(place.bed.path)]
    return [str(place.bed.pid)]


class Pasta(Peer):
    """passt's namespace half. TCP from loopback to loopback takes its spliced path, without the tap
    device; UDP and the other direction are off."""

    name = "pasta"
    program = "pasta"

    def command(self, place: Place) -> Command:
        spec = f"127.0.0.1/{place.port}:{place.bed.port}"
        nothing_else = ["-T", "none", "-u", "none", "-U", "none"]
        if "--splice-only" in _output([self.path, "--help"]):
            nothing_else.append("--splice-only")
        return Command([self.path, "-f", "-q", "-t", spec, *nothing_else, *_target(place)])

    def version(self) -> str:
        packaged = _output(["dpkg-query", "-W", "-f", "passt ${Version}", "passt"])
        said = super().version()
        return packaged.strip() if "unknown" in said or said == "?" else said


class Haproxy(Peer):
    """As its manual says for a TCP relay: mode tcp, splicing where it thinks that pays, one thread
    as there is one core, and pipes as large as the others'."""

    name = "haproxy"
    program = "haproxy"

    def _refuses(self, owner: Identity) -> str:
        return "" if owner.is_root else "its option namespace needs root"

    def command(self, place: Place) -> Command:
        settings = place.file("haproxy.cfg")
        settings.write_text(f"""\
global
    nbthread 1
    maxconn {MOST_CONNECTIONS}
    tune.pipesize 1048576
defaults
    mode tcp
    option splice-auto
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen bench
    bind 127.0.0.1:{place.port} backlog {BACKLOG}
    server inside 127.0.0.1:{place.bed.port} namespace {place.bed.name}
""")
        return Command([self.path, "-db", "-q", "-f", str(settings)])

    def version(self) -> str:
        return _output([self.path, "-v"]).partition(" - ")[0].strip() or "?"


class SocketProxyd(Peer):
    """systemd-socket-proxyd, joined into the namespace as a unit with NetworkNamespacePath= or
    JoinsNamespaceOf= is, with a listening socket from outside (NoDelay=yes, Backlog= the most)."""

    name = "systemd-socket-proxyd"
    program = "systemd-socket-proxyd"
    wants_listener = True

    def command(self, place: Place) -> Command:
        # sd_listen_fds(3): descriptor 3 on, and the PID must be that of who uses it; nothing forks.
        activate = 'exec 3<&"$1"; export LISTEN_PID=$$ LISTEN_FDS=1; shift; exec "$@"'
        proxy = [self.path, f"--connections-max={MOST_CONNECTIONS}", f"127.0.0.1:{place.bed.port}"]
        words = ["bash", "-c", activate, "activate", LISTENER, *place.bed.nsenter, *proxy]
        return Command(words)


class Socat(Peer):
    """Two of them: one listens here, the other connects inside, a UNIX socket joins them. A process
    for each connection in each. The usual EXEC:"nsenter ... socat" would start two programs more
    for each connection, and be slower."""

    name = "socat"
    program = "socat"

    def command(self, place: Place) -> Command:
        middle = place.file("socat.sock")
        middle.unlink(missing_ok=True)
        both = 'inner=("${@:1:$1+1}"); "${inner[@]:1}" & shift $(($1 + 1)); exec "$@"'
        socat = [self.path, "-b", "65536"]
        listen = f"fork,backlog={BACKLOG}"
        inner = [
            *place.bed.nsenter, *socat,
            f"UNIX-LISTEN:{middle},{listen}", f"TCP4:127.0.0.1:{place.bed.port},nodelay",
        ]  # fmt: skip
        outer = [
            *socat,
            f"TCP4-LISTEN:{place.port},bind=127.0.0.1,reuseaddr,nodelay,{listen}",
            f"UNIX-CONNECT:{middle}",
        ]
        return Command(["bash", "-c", both, "both", str(len(inner)), *inner, *outer])

    def version(self) -> str:
        return " ".join(_output([self.path, "-V"]).split("\n")[1:2]) or "?"


class Rootlesskit(Peer):
    """The builtin port driver that rootless Docker uses; slirp4netns is its network, which the
    forwarded connections don't touch. It makes its own namespace, so the server is its command."""

    name = "rootlesskit"
    program = "rootlesskit"
    brings_own_bed = True

    def _refuses(self, owner: Identity) -> str:
        for needed in ("slirp4netns", "newuidmap"):
            if not shutil.which(needed, path=_search_path()):
                return f"{needed} is not installed"
        if not Path("/dev/net/tun").exists():
            return "there is no /dev/net/tun for slirp4netns"
        if os.geteuid() != 0 and not _has_subordinate_ids():
            return "this user has no range in /etc/subuid"
        del owner
        return ""

    def command(self, place: Place) -> Command:
        state = place.file("rootlesskit")
        words = [
            self.path, "--state-dir", str(state), "--net=slirp4netns", "--port-driver=builtin",
            "--disable-host-loopback", "--publish", f"127.0.0.1:{place.port}:{place.bed.port}/tcp",
            *place.kit.server(place.bed.shared, place.bed.port),
        ]  # fmt: skip
        environment = {"XDG_RUNTIME_DIR": str(state.parent), "HOME": str(state.parent)}
        if os.geteuid() != 0:
            return Command(words, environment)
        return Command([*self._with_ids(place), *words], environment)

    @staticmethod
    def _with_ids(place: Place) -> list[str]:
        """Root may have no subordinate IDs either: show it a file that grants some, in a mount
        namespace that ends with the command."""
        ranges = place.file("subid")
        ranges.write_text("root:100000:65536\n")
        show = (
            'mount --bind "$1" /etc/subuid && mount --bind "$1" /etc/subgid && shift && exec "$@"'
        )
        return ["unshare", "-m", "--propagation", "private", "bash", "-c", show, "ids", str(ranges)]


def _has_subordinate_ids() -> bool:
    user = os.environ.get("USER", "")
    try:
        lines = Path("/etc/subuid").read_text().splitlines()
    except OSError:
        return False
    return any(line.split(":")[0] in (user, str(os.geteuid())) for line in lines if line)


KINDS: dict[str, type[Peer]] = {
    kind.name: kind
    for kind in (Direct, Hardsplice, Pasta, Haproxy, SocketProxyd, Socat, Rootlesskit)
}


def environment_for(command: Command) -> dict[str, str]:
    """The environment to start it in."""
    return clean_environment({"LC_ALL": "C.UTF-8", **command.environment})


def start_words(place: Place, command: Command, listener: int | None) -> list[str]:
    """All words: processors, open files and user first, then the command's own."""
    words = [str(listener) if word == LISTENER else word for word in command.words]
    files = ["prlimit", f"--nofile={_most_files()}"]
    return [*on(place.kit.pinning.forwarder), *files, *place.owner.wrap(words)]


@functools.cache
def _most_files() -> int:
    """How many files a forwarder may open: ENOUGH_FILES, or what this machine lets us allow."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = ["prlimit", f"--nofile={ENOUGH_FILES}", "true"]
    if subprocess.run(raised, capture_output=True, check=False).returncode == 0:
        return ENOUGH_FILES
    return min(hard, ENOUGH_FILES)
