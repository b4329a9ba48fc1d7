# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of mounts (proc_pid_mountinfo(5)), and a mount that is watched.

A network namespace with a path is a mount on a file there. The name is gone when the mount is,
whatever happens to the file: `ip netns delete` removes both, Docker leaves the empty file behind
for a minute, and unmounting a directory unmounts everything in it. A poll of a table of mounts
reports that it has changed; the table is then read again, through its descriptor, which shows the
mounts of where it was opened even after its holder has left the file system.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator

from hardsplice.kernel import linux
from hardsplice.kernel.record import NamedTuple

TABLE = "/proc/self/mountinfo"
_OF_PROCESS = r"(/proc/\d+/)(?:task/\d+/)?(?:root|cwd)/.*"
_CHUNK = 1 << 16  # bytes
# A remount has to repeat the flags of the mount, or the kernel clears them (do_remount, mount(8)).
_KEPT = {
    "nosuid": linux.MS_NOSUID,
    "nodev": linux.MS_NODEV,
    "noexec": linux.MS_NOEXEC,
}


class Mount(NamedTuple):
    """A line of a table: where, what, its device, and its own flags."""

    path: str
    kind: str
    device: int
    flags: int


def parse(lines: Iterable[str]) -> Iterator[Mount]:
    """The mounts that a table names, those on top of others last."""
    for line in lines:
        before, _, after = line.partition(" - ")
        words = before.split(" ")
        device = os.makedev(*map(int, words[2].split(":")))
        flags = sum(_KEPT.get(word, 0) for word in words[5].split(","))
        yield Mount(_unescaped(words[4]), after.split(" ")[0], device, flags)


def here() -> dict[str, Mount]:
    """The mounts of this mount namespace by their paths; of several the one on top."""
    with open(TABLE, encoding="utf-8", errors="surrogateescape") as lines:
        return {one.path: one for one in parse(lines)}


def _unescaped(path: str) -> str:
    """Blanks and the like are written as a backslash and three octal digits."""
    first, *rest = path.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


class Watch(NamedTuple):
    """One mount in a table: ``table`` is the descriptor to poll for POLLPRI. IDs of mounts are
    reused, but not with the same root.
    """

    table: int
    number: bytes
    root: bytes

    def moved_to(self, table: int) -> Watch:
        """The same at another descriptor."""
        return self._replace(table=table)

    def is_there(self) -> bool:
        """Whether the mount is in the table now."""
        wanted = [self.number, self.root]
        return any(line.split(b" ", 4)[::3] == wanted for line in self._read())

    def _read(self) -> Iterator[bytes]:
        at, rest = 0, b""
        while data := os.pread(self.table, _CHUNK, at):
            at += len(data)
            *lines, rest = (rest + data).split(b"\n")
            yield from lines


def watch(path: str, fd: int) -> Watch | None:
    """Watch the mount through which ``fd`` was opened, at ``path``; None where no table that may
    be read has it.
    """
    of_process = re.fullmatch(_OF_PROCESS, path)
    with contextlib.suppress(OSError):
        with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
            fields = dict(line.split(b":", 1) for line in info if b":" in line)
        number = fields[b"mnt_id"].strip()
        name = f"{of_process[1]}mountinfo" if of_process else TABLE
        table = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        found = Watch(table, number, f"net:[{os.fstat(fd).st_ino}]".encode())
        # Mounts that come or go meanwhile may hide one that is there (monitor/departure.py).
        if found.is_there() or found.is_there():
            return found
        os.close(table)
    return None
