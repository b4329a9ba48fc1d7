# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings inherited from our caller that COMMAND gets back, although hardsplice changes them for
itself.

Everything else needs no care: the kernel passes it on through fork and exec unchanged.

One thing is lost before any code of ours runs: Python ignores SIGPIPE and SIGXFSZ from its start,
whether the caller did or not. What remains is to check the caller. If a shell ignores a signal, so
do its children (trap, in POSIX's shell language), and systemd passes it on by default
(IgnoreSIGPIPE=). Other programs, such as Python's own subprocess module, ignore them for themselves
only, and give their children the default, which COMMAND then gets.
"""

from __future__ import annotations

import os
import signal

from hardsplice.kernel.record import NamedTuple

_PYTHONS = (signal.SIGPIPE, signal.SIGXFSZ)
# Programs that pass on ignored signals, by the names of their processes.
_HONEST = frozenset({"ash", "bash", "busybox", "dash", "ksh", "mksh", "sh", "systemd", "zsh"})


class Caller(NamedTuple):
    """What is to be restored."""

    ignores_children: bool = False  # SIGCHLD is ignored
    ignored: frozenset[int] = frozenset()  # which of Python's signals are


def take() -> Caller:
    """Read the settings, and stop ignoring SIGCHLD, with which no child can be waited for
    (wait(2)).
    """
    ignores = signal.signal(signal.SIGCHLD, signal.SIG_DFL) is signal.SIG_IGN
    return Caller(ignores, _ignored_by_parent())


def _ignored_by_parent() -> frozenset[int]:
    try:
        with open(f"/proc/{os.getppid()}/status", encoding="utf-8", errors="replace") as file:
            return ignored_by(file.read())
    except OSError:  # hidden, or not visible from a PID namespace
        return frozenset()


def ignored_by(status: str) -> frozenset[int]:
    """Those of Python's signals that a process with this status (proc_pid_status(5)) passes on as
    ignored ones.
    """
    lines = (line.partition(":") for line in status.splitlines())
    found = {name: value.strip() for name, _, value in lines}
    if found.get("Name", "") not in _HONEST:
        return frozenset()
    mask = int(found.get("SigIgn", "0"), 16)
    return frozenset(number for number in _PYTHONS if mask >> (number - 1) & 1)


def give_back(caller: Caller) -> None:
    """For a process that is about to become COMMAND."""
    for number in _PYTHONS:
        signal.signal(number, signal.SIG_IGN if number in caller.ignored else signal.SIG_DFL)
    if caller.ignores_children:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
