# SPDX-License-Identifier: GPL-2.0-or-later
"""What may stand where a file should be."""

from __future__ import annotations

import os
import socket
from pathlib import Path

KINDS = ("fifo", "folder", "socket", "device", "link", "dangling")


def make_something(path: Path, kind: str) -> Path:
    """Put something of a kind at ``path``; where it is then. A device is one that exists."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    elif kind == "device":
        return Path(os.devnull)
    else:
        target = path.with_name("target")
        if kind == "link":
            target.touch()
        path.symlink_to(target)
    return path
