# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os

from hardsplice import linux, mounts

LINES = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
23 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:5 master:1 - proc proc rw
24 22 0:22 / /with\\040blank\\134 ro,nodev - sysfs sysfs rw
""".splitlines()


def test_mountinfo_is_read_with_its_optional_fields_and_its_escapes() -> None:
    root, proc, odd = mounts.parse(LINES)
    assert (root.path, root.kind, root.device) == ("/", "ext4", os.makedev(254, 0))
    assert (proc.path, proc.kind, proc.device) == ("/proc", "proc", os.makedev(0, 21))
    assert (odd.path, odd.kind) == ("/with blank\\", "sysfs")


def test_what_the_kernel_would_take_for_a_change_is_kept() -> None:
    root, proc, odd = mounts.parse(LINES)
    assert root.flags == 0
    assert proc.flags == linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    assert odd.flags == linux.MS_NODEV


def test_this_machines_own_mounts_are_read() -> None:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        found = {one.path: one for one in mounts.parse(lines)}
    assert found["/proc"].kind == "proc"
    assert found["/proc"].device == os.stat("/proc").st_dev
