# SPDX-License-Identifier: GPL-2.0-or-later
"""A folder as the root of a machine of its own, with Debian's kernel, in qemu: for what this
machine's kernel lacks. It has no disk and no network, and qemu emulates its processor.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.arches import debian, initramfs, qemu

_MACHINE = qemu.Machine(
    "x86_64",
    debian.Release("trixie", "amd64"),
    "linux-image-amd64",
    "x86_64",
    "qemu-system-x86_64",
    "qemu-system-x86",
    ("-M", "q35", "-cpu", "max", "-smp", "2"),
    "ttyS0",
)
_LIMIT = 900  # seconds for a machine to boot and to do its work
_MEMORY = 4096  # MiB
_PLACE = "srv/guest"
# What the kernel has unpacked can't be left by pivot_root(2), so it is mounted once more.
_FIRST = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mkdir -p /run/root
mount --bind / /run/root
cd /run/root
mount --move . /
exec chroot . sh /srv/guest/init
"""
# For ``init``: what a system has mounted, and what is said is said on the console.
MOUNTED = """
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t securityfs securityfs /sys/kernel/security
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
ip link set lo up
exec </dev/null >/dev/console 2>&1
"""
# With kmod: modules that the kernel would load on demand.
LOADED = "insmod /srv/guest/inet_diag.ko*; insmod /srv/guest/tcp_diag.ko*\n"


def ending(script: str) -> str:
    """The shell's words that run another script and switch the machine off."""
    return f"sh {script}\necho guest: status $?\necho o >/proc/sysrq-trigger\nsleep 60\n"


def run(root: Path, init: str, settings: str = "") -> str:
    """What is said on the console once PID 1 is a shell that runs ``init``. A script that it runs
    in the end (`ending`) succeeds. ``settings`` are the kernel's. Raises debian.Unavailable where
    there can be no such machine.
    """
    qemu.need(_MACHINE)
    kernel, modules = debian.kernel(_MACHINE.release, _MACHINE.image)
    (root / _PLACE).mkdir(exist_ok=True)
    for name, text in (("first", _FIRST), ("init", init)):
        (root / _PLACE / name).write_text(text)
        (root / _PLACE / name).chmod(0o755)
    for module in modules:
        shutil.copy(module, root / _PLACE)
    archive = root.with_name("initramfs")
    with archive.open("wb") as file:
        initramfs.write(file, {"": root})
    line = f"console={_MACHINE.console} quiet panic=-1 rdinit=/{_PLACE}/first {settings}"
    argv: list[str | Path] = [
        "timeout", "--kill-after=5", str(_LIMIT), _MACHINE.program, *_MACHINE.options,
        "-accel", "tcg", "-m", str(_MEMORY), "-kernel", kernel, "-initrd", archive,
        "-append", line, "-nic", "none", "-display", "none", "-monitor", "none",
        "-serial", "stdio", "-no-reboot",
    ]  # fmt: skip
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    archive.unlink()
    said = done.stdout.replace("\r", "")
    assert "guest: status 0\n" in said, said
    return said
