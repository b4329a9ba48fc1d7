# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that are machines: another architecture's kernel, emulated by qemu.

The kernel is Debian's, its initramfs is a Debian Python with the checks, PID 1 is that Python.
Nothing else is in there: no disk, no network but loopback, no init system, so a boot takes seconds
even though each instruction is translated (TCG; no hardware helps).
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.arches import debian, initramfs, tap
from tests.arches.debian import Release, Unavailable
from tests.arches.folder import SOURCES

LIMIT = 600  # seconds for one machine, from power on to power off
_MEMORY = 1024  # MiB


@dataclass(frozen=True, slots=True)
class Machine:
    """One emulated machine and what runs on it."""

    arch: str  # hardsplice's name for the architecture
    release: Release
    image: str  # Debian's metapackage of the kernel
    uname: str  # what the kernel calls the architecture
    program: str
    package: str  # Debian's, with the program
    options: tuple[str, ...]
    console: str


MACHINES = (
    Machine(
        "arm64",
        Release("bookworm", "arm64"),
        "linux-image-arm64",
        "aarch64",
        "qemu-system-aarch64",
        "qemu-system-arm",
        ("-M", "virt", "-cpu", "cortex-a57"),
        "ttyAMA0",
    ),
    Machine(
        "s390x",
        Release("bookworm", "s390x"),
        "linux-image-s390x",
        "s390x",
        "qemu-system-s390x",
        "qemu-system-misc",
        ("-M", "s390-ccw-virtio"),
        "ttysclp0",
    ),
    Machine(
        "i686",
        Release("bookworm", "i386"),
        "linux-image-686-pae",
        "i686",
        "qemu-system-i386",
        "qemu-system-x86",
        ("-cpu", "max"),
        "ttyS0",
    ),
    Machine(
        "armhf",
        Release("bookworm", "armhf"),
        "linux-image-armmp",
        "armv7l",
        "qemu-system-arm",
        "qemu-system-arm",
        ("-M", "virt", "-cpu", "cortex-a15"),
        "ttyAMA0",
    ),
    Machine(
        "ppc64le",
        Release("bookworm", "ppc64el"),
        "linux-image-powerpc64le",
        "ppc64le",
        "qemu-system-ppc64",
        "qemu-system-ppc",
        # Without x-vof the machine spends more time in its firmware than in Linux.
        ("-M", "pseries,x-vof=on", "-cpu", "power9", "-vga", "none"),
        "hvc0",
    ),
    Machine(
        "riscv64",
        Release("trixie", "riscv64"),  # Debian has it from trixie on
        "linux-image-riscv64",
        "riscv64",
        "qemu-system-riscv64",
        "qemu-system-misc",
        ("-M", "virt"),
        "ttyS0",
    ),
)


def need(machine: Machine) -> None:
    """Have its qemu, installed if need be where we may; Unavailable says what to install."""
    if shutil.which(machine.program):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(f"there is no {machine.program}: install {machine.package}")
    command = ["apt-get", "-qq", "-y", "--no-install-recommends", "install", machine.package]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in (["apt-get", "-qq", "update"], command):
        subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False,
            timeout=LIMIT,
        )  # fmt: skip
    if shutil.which(machine.program) is None:
        raise Unavailable(f"{' '.join(command)} failed")


def _unpacked(modules: Sequence[Path], scratch: Path) -> Iterator[Path]:
    for path in modules:
        if path.suffix == ".xz":
            plain = scratch / path.stem
            plain.write_bytes(lzma.decompress(path.read_bytes()))
            yield plain
        else:
            yield path


def boot(
    machine: Machine,
    kernel: Path,
    modules: Sequence[Path],
    tree: Path,
    sources: Path,
    scratch: Path,
) -> tuple[tap.Report, str]:
    """Run the guest on the machine; its report, and all of its console."""
    debian.precompile(sources, tree)
    archive = scratch / "initramfs"
    contents = {"": tree, SOURCES.strip("/"): sources}
    contents |= {f"{path.stem}.ko": path for path in _unpacked(modules, scratch)}
    with archive.open("wb") as file:
        initramfs.write(file, contents)
    # The kernel hands what it doesn't know itself to PID 1: settings as environment, and what
    # follows the dashes as arguments.
    line = (
        f"console={machine.console} quiet panic=-1 rdinit=/usr/bin/python3"
        f" PYTHONPATH={SOURCES} LC_ALL=C.UTF-8 -- -m tests.arches.guest {machine.arch} power-off"
    )
    argv: list[str | Path] = [
        "timeout", "--kill-after=5", str(LIMIT),
        machine.program, *machine.options, "-accel", "tcg", "-m", str(_MEMORY),
        "-kernel", kernel, "-initrd", archive, "-append", line,
        "-nic", "none", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
    ]  # fmt: skip
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    ) as guest:  # fmt: skip
        try:
            assert guest.stdout is not None
            printed = list(guest.stdout)
        finally:
            guest.terminate()
    archive.unlink()
    return tap.read(printed), "".join(printed)
