# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the server is found that has the ports of a user and of a network namespace."""

from __future__ import annotations

import os

from hardsplice.frontends import offers
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.errors import HardspliceError, reason_of

ENDING = ".sock"  # of a socket's name
_OWN = "/proc/self/ns/net"


class Place(NamedTuple):
    """Where a server is found."""

    folder: str  # for its user only
    netns: str | None  # the path of the network namespace that it serves; None is our own
    quits: bool = False  # whether it ends when that path is no namespace any more
    containers: str | None = None  # the folder of the sockets that its containers have
    ports: int = 0  # of one that is this program's alone: for how many there are to be places

    @property
    def path(self) -> str:
        """Its socket's path. While a namespace is held open, no other one has its number."""
        numbers = f"{_inode(self.netns or _OWN)}-{_inode(_OWN)}"
        whose = f"-{os.getpid()}" if self.ports else ""
        return f"{self.folder}/{offers.VERSION}-{numbers}{whose}{ENDING}"


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError as error:
        raise HardspliceError("join", f"namespace {path}", reason_of(error)) from error
