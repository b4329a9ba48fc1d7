# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel says about processes: trees, CPU time, wake-ups, descriptors, sandbox state.

All of it is read from /proc at the moment of asking. Processes may end between two reads; readers
of one process raise ProcessLookupError then, readers of many leave it out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.stream import Violation

TICKS = os.sysconf("SC_CLK_TCK")

T = TypeVar("T")


def _read(pid: int | str, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except FileNotFoundError as error:
        raise ProcessLookupError(f"no process {pid}") from error


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name: state, ppid, pgrp, session, ..."""
    return _read(pid, "stat").rpartition(")")[2].split()


def status(pid: int | str) -> dict[str, str]:
    """/proc/PID/status as a mapping, or that of the thread "PID/task/TID"."""
    lines = (line.partition(":") for line in _read(pid, "status").splitlines())
    return {key: value.strip() for key, _, value in lines}


def command(pid: int) -> str:
    """The command line, its words separated by blanks."""
    return _read(pid, "cmdline").replace("\0", " ").strip()


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return stat(pid)[0] not in "ZX"
    except ProcessLookupError:
        return False


def pids() -> list[int]:
    """Every process of this PID namespace."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parents() -> dict[int, int]:
    parents = {}
    for pid in pids():
        with suppress(ProcessLookupError):
            fields = stat(pid)
            if fields[0] not in "ZX":
                parents[pid] = int(fields[1])
    return parents


def tree(root: int) -> list[int]:
    """The live process `root` and all its live descendants, parents before children."""
    parents = _parents()
    found = [root] if root in parents else []
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


def each(read: Callable[[int], T], family: Iterable[int]) -> dict[int, T]:
    """What ``read`` says of each of the processes, without those that end meanwhile."""
    found = {}
    for pid in family:
        with suppress(ProcessLookupError):
            found[pid] = read(pid)
    return found


def names(root: int) -> dict[int, str]:
    """The live process `root` and all its live descendants, by number, with their names."""
    return each(lambda pid: status(pid)["Name"], tree(root))


def descendants(root: int) -> set[int]:
    """The live descendants of `root`, without itself."""
    return set(tree(root)) - {root}


def children(parent: int) -> list[int]:
    """The processes that are children of this one, zombies too."""
    return [pid for pid, stated in each(stat, pids()).items() if int(stated[1]) == parent]


def leaves(family: Iterable[int]) -> list[int]:
    """Those of the processes that are no parent of another of them."""
    family = list(family)
    parents = _parents()
    busy = {parents.get(pid) for pid in family}
    return [pid for pid in family if pid not in busy]


def reap() -> None:
    """Collect orphans that ended: the test process is their subreaper (see conftest.py)."""
    me = os.getpid()
    for pid in pids():
        with suppress(ProcessLookupError, ChildProcessError):
            fields = stat(pid)
            if fields[0] == "Z" and int(fields[1]) == me:
                os.waitpid(pid, os.WNOHANG)


def descriptors(pid: int) -> dict[int, str]:
    """Each open descriptor and what it refers to, as /proc spells it. The test is skipped where
    only root may look: hardsplice's processes aren't dumpable.
    """
    found = {}
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError as error:
        raise ProcessLookupError(f"no process {pid}") from error
    except PermissionError:
        if os.geteuid() == 0:
            raise
        pytest.skip("only root may see the descriptors of processes that aren't dumpable")
    for name in names:
        with suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def namespace(pid: int, kind: str) -> str:
    """The identity of a namespace ("net", "user", "pid", "mnt", "ipc", "uts") of the process."""
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def resident(pid: int) -> int:
    """Resident memory that belongs to the process alone or is shared, in KiB."""
    return int(status(pid)["VmRSS"].split()[0])


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes used in a while: CPU ticks (1/100 s) in all, wake-ups of the busiest one.

    A process that is interrupted for another one didn't sleep: that is the machine's load, and no
    wake-up. One that never sleeps uses ticks.
    """

    ticks: int
    switches: int


def _snapshot(family: Iterable[int]) -> dict[int, tuple[int, int]]:
    taken = {}
    for pid in family:
        fields, switches = stat(pid), 0
        for thread in os.listdir(f"/proc/{pid}/task"):  # status counts one thread only
            state = status(f"{pid}/task/{thread}")
            switches += int(state["voluntary_ctxt_switches"])
        taken[pid] = (int(fields[11]) + int(fields[12]), switches)
    return taken


def usage(family: Iterable[int], window: float) -> Usage:
    """Watch the processes for `window` seconds."""
    family = list(family)
    before = _snapshot(family)
    time.sleep(window)
    after = _snapshot(family)
    ticks = sum(after[pid][0] - before[pid][0] for pid in family)
    return Usage(ticks, max((after[pid][1] - before[pid][1] for pid in family), default=0))


def settle(family: Iterable[int], within: float = 2.0) -> None:
    """Wait until the processes sleep through 100 ms, or until `within` is over.

    What just happened on a connection may still be under way; a process that never settles is
    judged by the measurement that follows.
    """
    family = list(family)
    deadline = time.monotonic() + within
    while time.monotonic() < deadline and usage(family, 0.1) != Usage(0, 0):
        pass


def assert_quiet(family: Iterable[int], window: float = 1.0) -> None:
    """Nothing ticks more than once a second, nothing uses CPU.

    A loop that spins makes about 100 ticks a second, or thousands of wake-ups; a process that
    sleeps makes neither, at any speed of the machine.
    """
    family = list(family)
    if not family:
        return
    settle(family)
    used = usage(family, window)
    if used.ticks > 1 + window or used.switches > 1 + window:
        raise Violation(
            f"busy while nothing can move: {used.ticks} CPU ticks and up to "
            f"{used.switches} wake-ups of one process in {window:g} s"
        )
