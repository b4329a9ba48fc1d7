# SPDX-License-Identifier: GPL-2.0-or-later
"""A running hardsplice, started by its command line, and what /proc says of its processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from tests.arches import numbers

PATIENCE = 60.0  # seconds; emulated machines are slow, and a stall is for ever
_CAP_KILL = 5  # linux/capability.h


class Instance:
    """A hardsplice in the foreground."""

    def __init__(
        self,
        *arguments: str,
        user: int | None = None,
        stdout: int | None = None,
        module: str = "hardsplice",
    ) -> None:
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as this is
        self._ready, told = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "-f", "-d", f"--ready-fd={told}", *arguments],
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=self._messages, pass_fds=[told],
                user=user, group=user, extra_groups=None if user is None else [],
            )  # fmt: skip
        finally:
            os.close(told)

    def wait_ready(self) -> None:
        """Until it says so."""
        readable, _, _ = select.select([self._ready], [], [], PATIENCE)
        assert readable, self._told("it is not ready")
        assert os.read(self._ready, 1), self._told("it ended before it was ready")

    def processes(self) -> dict[str, int]:
        """Its processes by name."""
        parents = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="ascii") as stat:
                parents[int(name)] = int(stat.read().rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        names = {}
        for pid in found:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8") as comm:
                names[comm.read().strip()] = pid
        return {name: pid for name, pid in names.items() if name.startswith("hs-")}

    def end(self, wanted: int) -> None:
        """It ends by itself, or was asked to: with this status, and nothing stays behind."""
        family = self.processes().values()
        try:
            status = self.process.wait(PATIENCE)
            assert status == wanted, self._told(f"it ended with {status} instead of {wanted}")
            left = [pid for pid in family if os.path.exists(f"/proc/{pid}/exe")]
            eventually(lambda: not any(map(_runs, left)), self._told("it left processes behind"))
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._ready)

    def _told(self, what: str) -> str:
        said = os.pread(self._messages.fileno(), 1 << 16, 0).decode(errors="replace")
        return f"{what}; it said:\n{said}"


def _state(pid: int) -> str:
    """The letter that proc_pid_stat(5) gives for what a process does."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _runs(pid: int) -> bool:
    return _state(pid) not in "ZX"


def pause(pid: int) -> None:
    """Stop a process and let it go on, at which the kernel has it make some calls again."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: _state(pid) == "T", "a process does not stop")
    os.kill(pid, signal.SIGCONT)


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Poll for a state of another process that has no event to wait for."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def is_locked_down(instance: Instance, names: set[str]) -> None:
    """What /proc says of each process: a filter, no way to new privileges, no capability.

    PID 1 of a command may signal what became another user's.
    """
    family = instance.processes()
    assert set(family) == names, f"processes: {sorted(family)}"
    for name, pid in family.items():
        with open(f"/proc/{pid}/status", encoding="utf-8") as lines:
            fields = (line.partition(":") for line in lines)
            status = {key: value.strip() for key, _, value in fields}
        assert status["Seccomp"] == "2", f"{name} has no filter"
        assert status["NoNewPrivs"] == "1", f"{name} may gain privileges"
        held = {key: int(value, 16) for key, value in status.items() if key.startswith("Cap")}
        assert len(held) == 5, f"capability sets: {sorted(held)}"
        permitted = 1 << _CAP_KILL if name == "hs-init" else 0
        assert not any(value & ~permitted for value in held.values()), f"{name} holds {held}"


def calls_are(instance: Instance, arch: str) -> None:
    """A waiting relay's system call has this architecture's number.

    That tells an i686 process on an x86-64 kernel apart: epoll_wait is 256 there, here 232.
    """
    known = numbers.of(arch)
    waits = {known[name] for name in ("epoll_wait", "epoll_pwait") if name in known}
    path = f"/proc/{instance.processes()['hs-relay-in']}/syscall"

    def waiting() -> bool:
        with open(path, encoding="ascii") as file:
            number = file.read().split()[0]
        return number.isdigit() and int(number) in waits

    eventually(waiting, f"the relay never waits in epoll_wait as {arch} numbers it")
