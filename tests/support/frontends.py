# SPDX-License-Identifier: GPL-2.0-or-later
"""The package's programs for container engines, as files that an engine executes; and what asks
servers in containers.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.engines import IMAGE, Podman

_PROGRAM = """#!/usr/bin/python3 -I
import sys
sys.path.insert(0, "{stage}")
from hardsplice.frontends import programs
sys.exit(programs.{function}())
"""

# `echo_datagram ADDRESS PORT`: what a server behind a UDP port of the host's answers.
ECHO_DATAGRAM = """
echo_datagram() { /usr/bin/python3 -I -c '
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
end = socket.socket(family, socket.SOCK_DGRAM)
end.settimeout(0.2)
for _ in range(50):
    end.sendto(b"hello", (sys.argv[1], int(sys.argv[2])))
    try:
        print(*end.recvfrom(100)[0:1])
        break
    except (TimeoutError, ConnectionRefusedError):
        pass
' $1 $2; }
"""
_UDP_SERVER = """import socket
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.bind(("", 8080))
while True:
    end.sendto(*end.recvfrom(1 << 16))
"""


def udp_server(podman: Podman, stage: Path) -> str:
    """Words for `podman run`: options, the image, and a server that answers each datagram at port
    8080 with what it says. The image has no program for that.
    """
    path = stage / "udp_server.py"
    path.write_text(_UDP_SERVER)
    path.chmod(0o644)
    return f"{podman.with_python(stage)} {IMAGE} /usr/bin/python3 -I {path}"


def executable(path: Path, stage: Path, function: str) -> Path:
    """Write a program to ``path``: a function of frontends/programs.py, of the package in a folder
    that everybody can read, as a console script would start it.
    """
    path.write_text(_PROGRAM.format(stage=stage, function=function))
    path.chmod(0o755)
    return path


def docker_proxy(
    program: Path, port: int, target: int, *more: str, listener: int | None = None
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
        ["bash", "-c", f'exec "$0" "$@" {place} {closed}', program, *words],
        pass_fds=passed, cwd="/",
    )  # fmt: skip
    os.close(write)
    with open(read, "rb") as told:
        return process, told.read()
