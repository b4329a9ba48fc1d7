# SPDX-License-Identifier: GPL-2.0-or-later
"""What a forwarder costs: CPU time, memory, descriptors, pipes, system calls of its tree.

All of it is the kernel's own account, read from /proc, or, for system calls, strace(1)'s.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import procfs

PAGE = os.sysconf("SC_PAGE_SIZE")
ATTACH_SECONDS = 20.0

_PROC = Path("/proc")


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time used by these processes, and by their children that ended and were waited for.

    A live thread's is taken from schedstat, which counts nanoseconds; stat, which counts
    hundredths of a second, serves for the children only.
    """
    used = 0.0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            waited_for = sum(map(int, procfs.stat(pid)[13:15])) / procfs.TICKS
            used += _thread_seconds(pid) + waited_for
    return used


def _thread_seconds(pid: int) -> float:
    used = 0
    for thread in (_PROC / str(pid) / "task").iterdir():
        used += int((thread / "schedstat").read_text().split()[0])
    return used / 1e9


@dataclass(frozen=True, slots=True)
class Holding:
    """What a tree holds at a moment."""

    processes: int
    descriptors: int
    pss_kib: int
    pipe_pages: int


def holding(pids: Iterable[int]) -> Holding:
    """Add up a tree; needs root where the processes can't be looked at by others.

    Pipe pages are those that the kernel charges for: each pipe's size, whether it is full or not.
    """
    pids = list(pids)
    descriptors, pss, pipes = 0, 0, dict[str, int]()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            opened = procfs.descriptors(pid)
            descriptors += len(opened)
            pss += _pss_kib(pid)
            for number, target in opened.items():
                if target.startswith("pipe:") and target not in pipes:
                    pipes[target] = _pipe_size(f"/proc/{pid}/fd/{number}")
    return Holding(len(pids), descriptors, pss, sum(pipes.values()) // PAGE)


def _pss_kib(pid: int) -> int:
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def _pipe_size(path: str) -> int:
    """The size of another process's pipe, which /proc opens anew."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    finally:
        os.close(fd)


def parse_summary(text: str) -> dict[str, int]:
    """Calls by name out of `strace -c`'s table."""
    calls = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[3].isdigit() and fields[-1] != "total":
            calls[fields[-1]] = int(fields[3])
    return calls


class TraceError(Exception):
    """strace is not there, or may not trace."""


def counted_calls(processes: Callable[[], list[int]], work: Callable[[], None]) -> dict[str, int]:
    """System calls, by name, that these processes and what they fork make during `work`."""
    with tempfile.TemporaryDirectory(prefix="hardsplice-strace-") as folder:
        summary, messages = Path(folder) / "summary", Path(folder) / "messages"
        with _attached(_settled(processes), summary, messages):
            work()
        return parse_summary(summary.read_text())


def _settled(processes: Callable[[], list[int]]) -> list[int]:
    """The processes once none comes or goes any more: strace gives up at one that it misses."""
    deadline = time.monotonic() + ATTACH_SECONDS
    family, before = processes(), list[int]()
    while family != before and time.monotonic() < deadline:
        time.sleep(0.2)
        family, before = processes(), family
    return family


@contextlib.contextmanager
def _attached(pids: list[int], summary: Path, messages: Path) -> Iterator[None]:
    command = ["strace", "-f", "-c", "-o", str(summary)]
    for pid in pids:
        command += ["-p", str(pid)]
    with messages.open("wb") as errors:
        try:
            tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=errors)
        except FileNotFoundError:
            raise TraceError("strace is not installed") from None
    try:
        _wait_attached(tracer, pids, messages)
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()


def _wait_attached(tracer: subprocess.Popen[bytes], pids: list[int], messages: Path) -> None:
    deadline = time.monotonic() + ATTACH_SECONDS
    while True:
        said = messages.read_text(errors="replace")
        if all(f"Process {pid} attached" in said for pid in pids):
            return
        if tracer.poll() is not None or time.monotonic() > deadline:
            raise TraceError(f"strace: {said.strip().splitlines()[-1] if said.strip() else 'mute'}")
        time.sleep(0.01)
