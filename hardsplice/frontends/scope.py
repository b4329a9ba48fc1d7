# SPDX-License-Identifier: GPL-2.0-or-later
"""A server is for many containers, and so it must not end with the unit of the one that started it:
a service manager kills what is in a unit's cgroup. So the user's manager is asked to give it a unit
of its own, a transient scope (systemd.scope(5)), as for the DNS server of rootless networks.

Root's Docker needs none: its unit has KillMode=process. Where there is no manager, or it won't, the
server stays where it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from hardsplice.ipc import child
from hardsplice.kernel import ids

SECONDS = 1.0  # that the manager has, for the answer and for the move
_PAUSE = 0.005
_CGROUP = "/proc/self/cgroup"


@contextlib.contextmanager
def leaving_unit() -> Iterator[None]:
    """Leave the unit in which this process was started, if the user has a service manager. The
    manager is asked at the beginning, and does it beside what is done meanwhile; at the end it has.
    """
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if ids.is_real_root() or not os.path.exists(f"{folder}/bus"):
        yield
        return
    before, pid, deadline = b"", 0, time.monotonic() + SECONDS
    with contextlib.suppress(OSError):
        before = _cgroup()
        pid = _start(request(os.getpid(), folder))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if pid and _end(pid, deadline) == 0:
                while _cgroup() == before and time.monotonic() < deadline:
                    time.sleep(_PAUSE)


def _start(words: list[str]) -> int:
    """Start a program: its PID."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        streams = [(os.POSIX_SPAWN_DUP2, null, stream) for stream in range(3)]
        return os.posix_spawnp(words[0], words, os.environ, file_actions=streams)
    finally:
        os.close(null)


def _end(pid: int, deadline: float) -> int:
    """Wait for a program's end, which is brought about at a ``deadline``: its wait status."""
    process = os.pidfd_open(pid)
    if not child.has_ended(process, max(0.0, deadline - time.monotonic())):
        os.kill(pid, signal.SIGKILL)
    os.close(process)
    return os.waitpid(pid, 0)[1]


def request(pid: int, folder: str) -> list[str]:
    """The command that asks the manager (org.freedesktop.systemd1(5)) whose bus is in ``folder``,
    the user's own one.
    """
    return [
        "busctl", f"--address=unix:path={folder}/bus", f"--timeout={SECONDS:.0f}", "--quiet",
        "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))",
        f"hardsplice-{pid}.scope", "fail",
        "3", "PIDs", "au", "1", str(pid),
        "Description", "s", "Ports of containers", "CollectMode", "s", "inactive-or-failed", "0",
    ]  # fmt: skip


def _cgroup() -> bytes:
    with open(_CGROUP, "rb") as file:
        return file.read()
