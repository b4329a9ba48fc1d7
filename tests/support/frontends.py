# SPDX-License-Identifier: GPL-2.0-or-later
"""The package's programs for container engines, as files that an engine executes; and what asks
servers in containers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.engines import IMAGE, PORT, Podman
from tests.support.stream import PATIENCE

_DATAGRAMS = Path(__file__).with_name("datagram_program.py")

_PACKAGED = Path(__file__).parents[2] / "packaging" / "engine-program.in"
_PROGRAM = """#!/usr/bin/python3 -I
import sys
sys.path.insert(0, "{stage}")
from hardsplice.frontends import programs
sys.exit(programs.{function}())
"""


def datagrams(stage: Path) -> str:
    """A shell function, `datagrams WHAT ADDRESS PORT...`: a client of datagram_program.py."""
    return f'datagrams() {{ /usr/bin/python3 -I {_datagram_program(stage)} "$@"; }}\n'


def udp_server(podman: Podman, stage: Path) -> str:
    """Words for `podman run`: options, the image, and a server of datagrams at PORT. The image has
    no program for that.
    """
    return f"{podman.with_python(stage)} {IMAGE} {datagram_server(str(PORT), stage)}"


def datagram_server(ports: str, folder: Path) -> str:
    """Words that start a server of datagrams at these ports, from a folder that it can read."""
    return f"/usr/bin/python3 -I {_datagram_program(folder)} serve {ports}"


def _datagram_program(stage: Path) -> Path:
    """A copy that everybody can read."""
    path = stage / _DATAGRAMS.name
    shutil.copy(_DATAGRAMS, path)
    path.chmod(0o644)
    return path


def executable(path: Path, stage: Path, function: str) -> Path:
    """Write a program to ``path``: a function of frontends/programs.py, of the package in a folder
    that everybody can read, as a console script would start it.
    """
    path.write_text(_PROGRAM.format(stage=stage, function=function))
    path.chmod(0o755)
    return path


def packaged(path: Path, stage: Path, module: str) -> Path:
    """Write a program to ``path`` as packages install it: a module of the room, of the package in
    a folder that everybody can read.
    """
    values = {
        "PYTHON": "/usr/bin/python3", "FOLDERS": f"{stage}:/usr/lib/python3/dist-packages",
        "HOME": str(stage), "PROGRAM": module,
    }  # fmt: skip
    text = _PACKAGED.read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    path.write_text(text)
    path.chmod(0o755)
    return path


@functools.cache
def compiled(stage: Path) -> Path:
    """The same folder, once it has the bytecode of the package and of what it imports, as where
    they are installed.
    """
    words = ["/usr/bin/python3", "-m", "compileall", "-q", str(stage)]
    subprocess.run(words, check=True, umask=0o022)
    return stage


class Rootlessport:
    """One rootlessport, and the ends that Podman has."""

    def __init__(
        self,
        program: Path,
        folder: Path,
        netns: str,
        port: int,
        target: int,
        name: str = "ab",
        before: Sequence[str] = (),
        **more: object,
    ) -> None:
        """``name`` is one of two hexadecimal digits; ``before`` are words that run the program;
        ``more`` is what a mapping has else.
        """
        self.container = name * 32
        self.socket = folder / "rp" / self.container
        exit_fd, self.exit = os.pipe()
        self.ready, ready_fd = os.pipe()
        request = {
            "Mappings": [{"host_port": port, "container_port": target, "range": 1, **more}],
            "NetNSPath": netns, "ExitFD": exit_fd, "ReadyFD": ready_fd, "TmpDir": str(folder),
            "ChildIP": "127.0.0.1", "ContainerID": self.container, "RootlessCNI": True,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [*before, program], pass_fds=[exit_fd, ready_fd], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, cwd="/",
        )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode())
        self.process.stdin.close()
        os.close(exit_fd)
        os.close(ready_fd)

    def ask(self, message: str) -> bytes:
        """Tell it an address, as Podman does; the answer."""
        at = os.open(self.socket.parent, os.O_RDONLY | os.O_DIRECTORY)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(PATIENCE)
            client.connect(f"/proc/self/fd/{at}/{self.container}")
            os.close(at)
            client.send(message.encode())
            return client.recv(1024)

    def let_go(self) -> int:
        """The container has ended: the exit status."""
        os.close(self.exit)
        self.exit = -1
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.exit >= 0:
            os.close(self.exit)
        self.process.wait(PATIENCE)
        os.close(self.ready)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def own_run() -> Iterator[list[str]]:
    """Words before a command that has a /run of its own, where programs of root find each other:
    other tests' are apart.
    """
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /run; echo; read -r _"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        holder.stdout.readline()
        yield ["nsenter", "--mount", f"--target={holder.pid}", "--wd=/"]


def docker_proxy(
    program: Sequence[str], port: int, target: int, *more: str, listener: int | None = None
) -> tuple[subprocess.Popen[bytes], bytes]:
    """Start it, as a shell puts descriptors in their places; it, and what descriptor 3 got."""
    read, write = os.pipe()
    place = f"3>&{write}" + (f" 4>&{listener}" if listener is not None else "")
    words = [
        "-proto", "tcp", "-host-ip", "127.0.0.1", "-host-port", str(port),
        "-container-ip", "127.0.0.1", "-container-port", str(target), *more,
    ]  # fmt: skip
    passed = [write, *([] if listener is None else [listener])]
    closed = " ".join(f"{fd}>&-" for fd in passed if fd > 4)
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$0" "$@" {place} {closed}', *program, *words],
        pass_fds=passed, cwd="/",
    )  # fmt: skip
    os.close(write)
    with open(read, "rb") as told:
        return process, told.read()


def assert_leads_to(server: socket.socket, port: int) -> None:
    """Who connects to a port of this machine is the server's client, and what he says arrives."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"
