# SPDX-License-Identifier: GPL-2.0-or-later
"""Building load.c and datagrams.c, and talking to what they make: servers in namespaces, and
clients that measure.

A `Kit` is what one run of the benchmark (or of a test) needs: the compiled programs in a folder
that every user may read, and which processors each side runs on. A `Bed` is a server in a network
namespace of its own, which a forwarder is then asked to reach.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.netns import Identity

SOURCES = {"tcp": "load.c", "udp": "datagrams.c"}
"""Of the program that is both ends of a protocol's load, by the protocol's name."""
PATIENCE = 60.0
"""Seconds until a client that prints nothing is given up; it gives up by itself before that."""
SERVER_PORT = 80
SHARED_SIZE = 4096

_HEADER = struct.Struct("=cBHII")  # struct header in load.c
_INODE = struct.Struct("=Q")


class LoadError(Exception):
    """The load could not be made, or the forwarder did not carry it."""


@dataclass(frozen=True, slots=True)
class Pinning:
    """Processors for the forwarder, the client and the server; empty: any."""

    forwarder: tuple[int, ...] = ()
    client: tuple[int, ...] = ()
    server: tuple[int, ...] = ()

    @classmethod
    def named(cls, name: str) -> Pinning:
        """ "apart": the forwarder alone on a core, the client and the server on another, or two;
        "one": all on one; "any": wherever the kernel thinks best."""
        usable = _one_of_each_core()
        if name == "one":
            return cls(*[(usable[0],)] * 3)
        if name == "any" or len(usable) < 2:
            return cls()
        return cls((usable[0],), (usable[1],), (usable[2 if len(usable) > 2 else 1],))


def _one_of_each_core() -> list[int]:
    """The usable processors, one of each core where that leaves two."""
    usable = sorted(os.sched_getaffinity(0))
    cores: dict[str, int] = {}
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(siblings.read_text() if siblings.exists() else str(cpu), cpu)
    return list(cores.values()) if len(cores) > 1 else usable


def on(cpus: tuple[int, ...]) -> list[str]:
    """Words before a command that keep it on these processors."""
    return ["taskset", "-c", ",".join(map(str, cpus))] if cpus else []


class Kit:
    """The compiled programs and a folder that everybody may read, for as long as it is open."""

    def __init__(self, pinning: Pinning | None = None) -> None:
        self.pinning = pinning or Pinning()
        self.folder = Path(tempfile.mkdtemp(prefix="hardsplice-bench-"))
        self.folder.chmod(0o755)
        self.programs = {protocol: self.folder / protocol for protocol in SOURCES}
        try:
            for protocol in SOURCES:
                self._compile(protocol)
        except BaseException:
            self.close()
            raise

    def _compile(self, protocol: str) -> None:
        source, program = Path(__file__).with_name(SOURCES[protocol]), self.programs[protocol]
        compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
        if compiler is None:
            raise LoadError(
                f"cannot compile {source.name}: no C compiler (apt-get install gcc libc6-dev)"
            )
        flags = ["-O2", "-std=gnu11", "-Wall", "-pthread"]
        command = [compiler, *flags, "-o", str(program), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LoadError(f"cannot compile {source.name}: {done.stderr.strip()}")
        program.chmod(0o755)

    def shared(self, name: str) -> Path:
        """A file through which a server and its clients see each other's counts."""
        path = self.folder / name
        path.write_bytes(bytes(SHARED_SIZE))
        path.chmod(0o666)
        return path

    @property
    def server_begins(self) -> tuple[str, ...]:
        """How the command line of a server may begin."""
        return tuple(map(str, self.programs.values()))

    def server(
        self, shared: Path, port: int = SERVER_PORT, *options: str, protocol: str = "tcp"
    ) -> list[str]:
        """The command that serves on a port of the namespace it is started in."""
        return [
            *on(self.pinning.server),
            str(self.programs[protocol]), "server", *options, str(port), str(shared),
        ]  # fmt: skip

    def client(
        self, mode: str, port: int, shared: Path, *options: str, protocol: str = "tcp"
    ) -> list[str]:
        """The command that makes load on a port of this namespace."""
        return [
            *on(self.pinning.client),
            str(self.programs[protocol]), mode, *options, str(port), str(shared),
        ]  # fmt: skip

    def measure(
        self, mode: str, port: int, shared: Path, *options: str, protocol: str = "tcp"
    ) -> dict[str, Any]:
        """Run a client to its end and return what it printed."""
        command = self.client(mode, port, shared, *options, protocol=protocol)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=PATIENCE,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise LoadError(f"{mode}: no end in {PATIENCE:g} s") from None
        return _answer(mode, done.stdout, done.returncode)

    @contextlib.contextmanager
    def idle(self, port: int, shared: Path, connections: int) -> Iterator[int]:
        """Hold so many connections, each used once; yields how many there are in truth."""
        command = self.client("idle", port, shared, "--connections", str(connections))
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout is not None
            yield int(_answer("idle", client.stdout.readline(), 0)["connections"])

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Kit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(mode: str, text: str, status: int) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        raise LoadError(f"{mode}: no answer, status {status}: {text.strip()}") from None
    if "error" in answer:
        raise LoadError(f"{mode}: {answer['error']}")
    return answer


class Bed:
    """A server in a network namespace of its own, owned by `owner`; or, for direct connections,
    in this one.

    The namespace lives as long as the server, and the server as long as this object. Where root
    makes it, it has a name below /run/netns too, for those who can join no other way.
    """

    def __init__(
        self,
        kit: Kit,
        name: str,
        owner: Identity,
        *,
        here: int = 0,
        port: int = SERVER_PORT,
        protocol: str = "tcp",
    ) -> None:
        """`here` is the port to serve on in this namespace; 0 makes a new one, with `port`."""
        self.kit = kit
        self.protocol = protocol
        self.owner = owner
        self.shared = kit.shared(f"{name}.shared")
        self.name = f"hardsplice-bench-{os.getpid()}-{name}"
        self.port = here or port
        unshare = [] if here else ["unshare", "-n" if owner.is_root else "-Urn", "--"]
        options = [] if here else ["--lo"]
        self.server = subprocess.Popen(
            owner.wrap(
                [*unshare, *kit.server(self.shared, self.port, *options, protocol=protocol)]
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        self.path: Path | None = None
        try:
            assert self.server.stdout is not None
            if (said := self.server.stdout.readline()) != b"ready\n":
                raise LoadError(f"cannot serve in a new namespace as {owner.name}: {said.decode()}")
            if owner.is_root and not here:
                self.path = self._named()
        except BaseException:
            self.close()
            raise

    def _named(self) -> Path:
        path = Path("/run/netns") / self.name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        subprocess.run(["mount", "--bind", f"/proc/{self.pid}/ns/net", path], check=True)
        return path

    @property
    def pid(self) -> int:
        """The server's, and so one to join the namespace by."""
        return self.server.pid

    @property
    def nsenter(self) -> list[str]:
        """Words before a command that run it in the namespace, as the bed's owner."""
        if self.owner.is_root:
            return ["nsenter", f"--net={self.path}"]
        return ["nsenter", "-t", str(self.pid), "-U", "--preserve-credentials", "-n"]

    def close(self) -> None:
        """End the server, and with it the namespace."""
        if self.path is not None:
            subprocess.run(["umount", "--lazy", self.path], check=False)
            self.path.unlink(missing_ok=True)
        for stream in (self.server.stdin, self.server.stdout):
            if stream is not None:
                stream.close()
        self.server.kill()
        self.server.wait()


def _datagrams(port: int, timeout: float) -> socket.socket:
    """A client of datagrams."""
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(timeout)
    client.connect(("127.0.0.1", port))
    return client


def namespace_reached(port: int, protocol: str = "tcp", timeout: float = 5.0) -> int:
    """The inode number of the network namespace in which the server behind this port lives.

    Raises OSError where there is no answer, or, for a datagram, none soon.
    """
    if protocol == "udp":
        with _datagrams(port, 0.1) as client:
            client.send(b"W")
            return int(_INODE.unpack(client.recv(_INODE.size))[0])
    with socket.create_connection(("127.0.0.1", port), timeout) as client:
        client.sendall(_HEADER.pack(b"W", 0, 0, 0, 0))
        answer = client.recv(_INODE.size, socket.MSG_WAITALL)
    if len(answer) != _INODE.size:
        raise ConnectionResetError("closed without an answer")
    return int(_INODE.unpack(answer)[0])


def echoes(port: int, protocol: str = "tcp", timeout: float = 5.0) -> bool:
    """Whether bytes sent to this port come back as they were: 1 MiB, 4 KiB at a time."""
    if protocol == "udp":
        with _datagrams(port, timeout) as client:
            for _ in range(256):
                sent = b"X" + os.urandom(4095)
                client.send(sent)
                if client.recv(1 << 16) != sent:
                    return False
        return True
    with socket.create_connection(("127.0.0.1", port), timeout) as client:
        client.sendall(_HEADER.pack(b"E", 0, 0, 0, 0))
        for _ in range(256):
            sent = os.urandom(4096)
            client.sendall(sent)
            if client.recv(len(sent), socket.MSG_WAITALL) != sent:
                return False
    return True
