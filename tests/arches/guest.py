# SPDX-License-Identifier: GPL-2.0-or-later
"""PID 1 of a guest: sets the place up, runs the checks, reports on the console, and ends it all.

The guest is either a virtual machine, in which this is the only program that the kernel starts, or
a folder with namespaces of its own on the host's kernel. `python3 -m tests.arches.guest ARCH`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import stat
import sys

from hardsplice.kernel import linux
from hardsplice.net import loopback
from tests.arches import captured, endtoend, forbidden, numbers
from tests.arches.tap import Writer

# What `-t auto` asks the kernel by; in the order in which they are loaded.
MODULES = ("inet_diag", "tcp_diag")
_POWER_OFF = 0x4321FEDC  # linux/reboot.h, LINUX_REBOOT_CMD_POWER_OFF
_DEVICES = {"null": (1, 3), "zero": (1, 5), "random": (1, 8), "urandom": (1, 9)}


def prepare() -> None:
    """What hardsplice expects of a system: /proc, a few devices, /tmp, lo."""
    linux.mount("proc", "/proc", "proc", 0)
    for folder in ("/dev", "/tmp", "/run"):
        linux.mount("tmpfs", folder, "tmpfs", linux.MS_NOSUID, "mode=1777")
    os.umask(0)
    for name, (major, minor) in _DEVICES.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
    os.umask(0o022)
    loopback.bring_up()
    # A process that its filter kills leaves a core file otherwise; some kernels start a program.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def load_modules(arch: str) -> None:
    """What a machine's kernel has as modules; a folder's has them built in or loaded."""
    for name in MODULES:
        with contextlib.suppress(FileNotFoundError), open(f"/{name}.ko", "rb") as file:
            call = ctypes.c_long(numbers.of(arch)["finit_module"])
            if ctypes.CDLL(None, use_errno=True).syscall(call, file.fileno(), b"", 0) != 0:
                raise OSError(ctypes.get_errno(), name)


def main() -> None:
    """Everything, in order; whatever happens, a virtual machine is switched off."""
    machine = os.uname()
    report = Writer()
    try:
        report.check("guest set up", prepare)
        report.check("modules", lambda: load_modules(sys.argv[1]))
        report.fact("kernel", f"{machine.release} {machine.machine}")
        report.fact("python", sys.version.split()[0])
        endtoend.run(report, sys.argv[1])
        captured.run(report, sys.argv[1])
        forbidden.run(report, sys.argv[1])
        report.plan()
    finally:
        sys.stdout.flush()
        if len(sys.argv) > 2 and sys.argv[2] == "power-off":
            ctypes.CDLL(None).reboot(_POWER_OFF)


if __name__ == "__main__":
    main()
