# SPDX-License-Identifier: GPL-2.0-or-later
"""A folder as an initramfs: the cpio format that the kernel unpacks, written here.

The format is "newc" of Documentation/driver-api/early-userspace/buffer-format.rst. Everything
belongs to root in it, whoever runs this, and there is a console, which only root could make as a
file. Left uncompressed: to an emulated machine, reading more is cheaper than unpacking.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

_CONSOLE = (5, 1)  # Documentation/admin-guide/devices.txt


def write(file: BinaryIO, contents: Mapping[str, Path]) -> None:
    """Write an archive of folders and files; `contents` maps places in the guest to them.

    What is given later hides what was given earlier, as on a mount.
    """
    number = 1
    for name, source in _entries(contents):
        status = source.lstat()
        data = b""
        if stat.S_ISLNK(status.st_mode):
            data = os.fsencode(os.readlink(source))
        elif stat.S_ISREG(status.st_mode):
            data = source.read_bytes()
        _entry(file, number, name, status.st_mode, data)
        number += 1
    _entry(file, number, "dev/console", stat.S_IFCHR | 0o600, b"", _CONSOLE)
    _entry(file, 0, "TRAILER!!!", 0, b"")


def _entries(contents: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    for place, source in contents.items():
        if place:
            yield place, source
        if not source.is_dir():
            continue
        for parent, folders, files in os.walk(source):
            within = os.path.relpath(parent, source)
            for name in sorted((*folders, *files)):
                path = os.path.normpath(os.path.join(place, within, name))
                yield path, Path(parent, name)


def _entry(
    file: BinaryIO,
    number: int,
    name: str,
    mode: int,
    data: bytes,
    device: tuple[int, int] = (0, 0),
) -> None:
    encoded = os.fsencode(name) + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    header = b"070701" + "".join(f"{value:08X}" for value in fields).encode()
    file.write(_padded(header + encoded) + _padded(data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
