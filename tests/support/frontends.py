# SPDX-License-Identifier: GPL-2.0-or-later
"""The package's programs for container engines, as files that an engine executes; and what asks
servers in containers.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

from tests.support.engines import IMAGE, PORT, Podman

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
    """The same folder, once it has the package's bytecode, as an installed package."""
    words = ["/usr/bin/python3", "-m", "compileall", "-q", str(stage / "hardsplice")]
    subprocess.run(words, check=True, umask=0o022)
    return stage


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
