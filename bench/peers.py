# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is compared, and how each is started: with what its own documentation recommends for the job.

The job is the same for all: 127.0.0.1:PORT of this namespace leads to 127.0.0.1:80 of a bed's. Each
runs as the same ordinary user where it can, has one core where the run is pinned, may open as many
files as any other, and logs no connections; each that can be told how deep to queue is told the
most. Whoever finds a better setting for a peer should put it here: the benchmark is worth something
only as long as its losers agree with it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from bench.peer import (
    BACKLOG,
    LISTENER,
    MOST_CONNECTIONS,
    THIS_USER,
    Command,
    Direct,
    Peer,
    Place,
    most_files,
    output,
    search_path,
)
from tests.support.netns import Identity, ordinary_user
from tests.support.product import Program

TUN = Path("/dev/net/tun")


class Hardsplice(Peer):
    """This checkout, or an installed one; its sandbox is always on."""

    name = "hardsplice"
    program = "python3"
    protocols = ("tcp", "udp")

    def __init__(self, label: str = "", program: str = "") -> None:
        """`program` is an installed hardsplice to measure instead of the checkout."""
        super().__init__(label)
        self._program = Program(program or None)
        self._compiled: set[str] = set()

    def command(self, place: Place) -> Command:
        # Program puts the owner's words in front, which whoever starts the command does too.
        words, environment = self._program.argv(place.owner)
        words = words[len(place.owner.wrap([])) :]
        self._compile(words, environment.get("PYTHONPATH", ""))
        # Started by root it becomes nobody, who may have used up a user's allowance of pipes.
        user = ordinary_user().uid if place.owner.is_root else None
        runas = ["--runas", f"{user}:{user}"] if user else []
        spec = f"127.0.0.1/{place.port}:{place.bed.port}"
        option = "-u" if place.protocol == "udp" else "-t"
        return Command([*words, "-f", "-q", option, spec, *runas, *_target(place)], environment)

    def _compile(self, words: list[str], source: str) -> None:
        """An installed package has its bytecode; so has what is measured, though its user may not
        be allowed to write it."""
        if source and source not in self._compiled:
            package = str(Path(source) / "hardsplice")
            subprocess.run([words[0], "-m", "compileall", "-q", package], check=False, umask=0o022)
            self._compiled.add(source)

    def close(self) -> None:
        self._program.close()

    def version(self) -> str:
        words, environment = self._program.argv(Identity("this"))
        done = subprocess.run(
            [*words, "--version"], env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or "?"


def _may_open_tun(owner: Identity) -> bool:
    words = owner.wrap(["test", "-w", str(TUN)])
    return subprocess.run(words, check=False).returncode == 0


def _open_tun(place: Place) -> Path:
    """A device node like TUN that everybody may open; needs root."""
    node = place.file("tun")
    if not node.exists():
        os.mknod(node, stat.S_IFCHR | 0o666, TUN.stat().st_rdev)
        node.chmod(0o666)
    return node


def _showing(ours: Path, *theirs: Path) -> list[str]:
    """Words before a command that show it `ours` in the place of other files; needs root.

    The mount namespace that this takes ends with the command; nobody else sees anything of it.
    """
    mounts = " && ".join(f'mount --bind "$0" {path}' for path in theirs)
    script = f'{mounts} && exec "$@"'
    return ["unshare", "-m", "--propagation", "private", "bash", "-c", script, str(ours)]


def _target(place: Place) -> list[str]:
    """What hardsplice and pasta are told about the namespace: in the same words."""
    if place.bed.path is not None:
        return ["--netns", str(place.bed.path)]
    return [str(place.bed.pid)]


class Pasta(Peer):
    """passt's namespace half. TCP from loopback to loopback takes its spliced path, without the tap
    device, though it has one, and so does UDP; the rest is off."""

    name = "pasta"
    program = "pasta"
    protocols = ("tcp", "udp")

    def _obstacle(self, owner: Identity) -> str:
        if self._splices_only() or _may_open_tun(owner) or os.geteuid() == 0:
            return ""
        return f"{owner.name} may not open {TUN}"

    def _splices_only(self) -> bool:
        return "--splice-only" in output([self.path, "--help"])

    def command(self, place: Place) -> Command:
        spec = f"127.0.0.1/{place.port}:{place.bed.port}"
        option, other = ("-u", "-t") if place.protocol == "udp" else ("-t", "-u")
        off = [other, "none", "-T", "none", "-U", "none"]
        words = [self.path, "-f", "-q", option, spec, *off]
        if place.owner.is_root:
            words += ["--runas", "0:0"]  # as its default, nobody, it could not join
        if self._splices_only():
            return Command([*words, "--splice-only", *_target(place)])
        # On most systems everybody may open it. Where not, show this one process another node.
        before = [] if _may_open_tun(place.owner) else _showing(_open_tun(place), TUN)
        return Command([*words, *_target(place)], before=before)

    def version(self) -> str:
        said = output([self.path, "--version"]).split("\n")[0]
        if "unknown" not in said:
            return said
        # Debian's says nothing of itself.
        return output(["dpkg-query", "-W", "-f", "passt ${Version}", "passt"]).strip() or said


class Haproxy(Peer):
    """As its manual says for a TCP relay: mode tcp, splicing where it thinks that pays, one thread
    as there is one core, and pipes as large as the others'."""

    name = "haproxy"
    program = "haproxy"
    wants_root = True  # for setns(2)

    def command(self, place: Place) -> Command:
        settings = place.file("haproxy.cfg")
        # It wants two files a connection, and half a file for pipes, or it doesn't start.
        most = min(MOST_CONNECTIONS, (most_files() - 64) * 2 // 5)
        settings.write_text(f"""\
global
    nbthread 1
    maxconn {most}
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
        return output([self.path, "-v"]).partition(" - ")[0].strip() or "?"


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
    for each connection, and be slower. Datagrams stay apart, as that is a SOCK_SEQPACKET then."""

    name = "socat"
    program = "socat"
    protocols = ("tcp", "udp")

    def command(self, place: Place) -> Command:
        middle = place.file("socat.sock")
        middle.unlink(missing_ok=True)
        both = 'inner=("${@:1:$1+1}"); "${inner[@]:1}" & shift $(($1 + 1)); exec "$@"'
        socat = [self.path, "-b", "65536"]
        listen = f"fork,backlog={BACKLOG}"
        if place.protocol == "udp":
            kind = f",type={int(socket.SOCK_SEQPACKET)}"
            here = f"UDP4-LISTEN:{place.port},bind=127.0.0.1,fork"
            there = f"UDP4:127.0.0.1:{place.bed.port}"
        else:
            kind = ""
            here = f"TCP4-LISTEN:{place.port},bind=127.0.0.1,reuseaddr,nodelay,{listen}"
            there = f"TCP4:127.0.0.1:{place.bed.port},nodelay"
        inner = [*place.bed.nsenter, *socat, f"UNIX-LISTEN:{middle},{listen}{kind}", there]
        outer = [*socat, here, f"UNIX-CONNECT:{middle}{kind}"]
        return Command(["bash", "-c", both, "both", str(len(inner)), *inner, *outer])

    def version(self) -> str:
        return " ".join(output([self.path, "-V"]).split("\n")[1:2]) or "?"


class Rootlesskit(Peer):
    """The builtin port driver that rootless Docker uses; slirp4netns is its network, which the
    forwarded connections don't touch. It makes its own namespace, so the server is its command.

    An ordinary user needs a range of subordinate IDs and a login; the benchmark's has neither, so
    root runs it, with a range of its own. It makes a user namespace all the same."""

    name = "rootlesskit"
    program = "rootlesskit"
    protocols = ("tcp", "udp")
    brings_own_bed = True

    def owner(self, wanted: Identity) -> Identity:
        del wanted
        return THIS_USER

    def _obstacle(self, owner: Identity) -> str:
        for needed in ("slirp4netns", "newuidmap"):
            if not shutil.which(needed, path=search_path()):
                return f"{needed} is not installed"
        if not _may_open_tun(owner):
            return f"{owner.name} may not open {TUN}"
        if not owner.is_root and not _has_subordinate_ids():
            return "this user has no range in /etc/subuid"
        return ""

    def command(self, place: Place) -> Command:
        state = place.file("rootlesskit")
        words = [
            self.path, "--state-dir", str(state), "--net=slirp4netns", "--port-driver=builtin",
            "--disable-host-loopback", "--publish",
            f"127.0.0.1:{place.port}:{place.bed.port}/{place.protocol}",
            *place.kit.server(place.bed.shared, place.bed.port, protocol=place.protocol),
        ]  # fmt: skip
        environment = {"XDG_RUNTIME_DIR": str(state.parent), "HOME": str(state.parent)}
        if not place.owner.is_root:
            return Command(words, environment)
        ranges = place.file("subid")
        ranges.write_text("root:100000:65536\n")
        files = Path("/etc/subuid"), Path("/etc/subgid")
        return Command(words, environment, before=_showing(ranges, *files))


class Rootlessport(Peer):
    """Podman's, which has RootlessKit's builtin port driver in it. Podman tells it on standard
    input what to do, and by a descriptor when to end."""

    name = "rootlessport"
    program = "/usr/lib/podman/rootlessport"
    protocols = ("tcp", "udp")

    def command(self, place: Place) -> Command:
        settings = {
            "Mappings": [{
                "host_ip": "127.0.0.1", "host_port": place.port, "container_port": place.bed.port,
                "range": 1, "protocol": place.protocol,
            }],
            "NetNSPath": str(place.bed.path or f"/proc/{place.bed.pid}/ns/net"),
            "ExitFD": 3, "ReadyFD": 4, "TmpDir": str(place.file("rootlessport").parent),
        }  # fmt: skip
        script = 'exec 3<&0 4>/dev/null; exec "$1" <<<"$2"'
        words = ["bash", "-c", script, "bash", self.path, json.dumps(settings)]
        if not place.owner.is_root:
            enter = ["nsenter", "-t", str(place.bed.pid), "-U", "--preserve-credentials"]
            words = [*enter, *words]
        return Command(words)

    def version(self) -> str:
        return output(["podman", "--version"]).strip() or "?"


class DockerProxy(Peer):
    """Docker's userland proxy. It enters no namespace but connects to the container's address, over
    a bridge; here to a server on the loopback, which is the shorter way."""

    name = "docker-proxy"
    program = "docker-proxy"
    protocols = ("tcp", "udp")
    serves_here = True

    def command(self, place: Place) -> Command:
        # It reports on descriptor 3.
        words = [
            self.path, "-proto", place.protocol,
            "-host-ip", "127.0.0.1", "-host-port", str(place.port),
            "-container-ip", "127.0.0.1", "-container-port", str(place.bed.port),
        ]  # fmt: skip
        return Command(["bash", "-c", 'exec 3>/dev/null; exec "$@"', "bash", *words])

    def version(self) -> str:
        return output(["dockerd", "--version"]).strip() or "?"  # it says nothing of itself


def _has_subordinate_ids() -> bool:
    user = os.environ.get("USER", "")
    try:
        lines = Path("/etc/subuid").read_text().splitlines()
    except OSError:
        return False
    return any(line.split(":")[0] in (user, str(os.geteuid())) for line in lines if line)


KINDS: dict[str, type[Peer]] = {
    kind.name: kind
    for kind in (
        Direct, Hardsplice, Pasta, Haproxy, SocketProxyd, Socat, Rootlesskit, Rootlessport,
        DockerProxy,
    )
}  # fmt: skip
