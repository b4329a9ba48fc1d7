# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
from pathlib import Path

import pytest

from hardsplice.kernel import linux, mounts
from tests.support.descriptors import open_descriptors

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


# --- a mount that is watched ---

TABLE = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
351 22 0:4 net:[4026532326] /run/netns/blue rw - nsfs nsfs rw
352 22 0:4 net:[4026532400] /run/netns/red rw - nsfs nsfs rw
"""


@pytest.mark.parametrize(
    ("number", "root", "is_there"),
    [
        (b"351", b"net:[4026532326]", True),
        (b"35", b"net:[4026532326]", False),
        (b"351", b"net:[4026532400]", False),  # the number was given out again
        (b"353", b"net:[4026532326]", False),
    ],
)
def test_a_mount_is_known_by_its_number_and_its_root(
    number: bytes, root: bytes, is_there: bool, tmp_path: Path
) -> None:
    (tmp_path / "table").write_text(TABLE)
    with open(tmp_path / "table", "rb") as table:
        for _ in range(2):  # it can be read again
            assert mounts.Watch(table.fileno(), number, root).is_there() == is_there


def test_a_line_that_two_readings_share_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "table").write_text(TABLE)
    with open(tmp_path / "table", "rb") as table:
        for size in range(1, len(TABLE)):
            monkeypatch.setattr(mounts, "_CHUNK", size)
            assert mounts.Watch(table.fileno(), b"352", b"net:[4026532400]").is_there(), size


def test_a_mount_that_one_reading_misses_is_watched_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings = [False, True]
    monkeypatch.setattr(mounts.Watch, "is_there", lambda _: readings.pop(0))
    with open("/proc/self/ns/net", "rb") as net:
        found = mounts.watch("/run/netns/blue", net.fileno())
    assert found is not None
    os.close(found.table)


def test_what_is_no_mount_is_not_watched() -> None:
    before = open_descriptors()
    with open("/proc/self/ns/net", "rb") as net:
        assert mounts.watch("/proc/self/ns/net", net.fileno()) is None
    assert open_descriptors() == before
