# SPDX-License-Identifier: GPL-2.0-or-later
"""The fixed descriptor numbers.

Filters compare numbers, so each number has a meaning, the same in every process. From 0 on come
those with a name of their own; then listeners, each at its place for good; and from a number on
that set-up determines (FLOWS in the policies) all that comes and goes: connections, pipes, sockets
of the pools, channels. Every number below that one is occupied from the start of set-up on, by what
belongs there or by /dev/null, so that the kernel, which assigns the lowest free number, never uses
it for anything else; and no policy lets a process close one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import stat
from collections.abc import Iterable, Mapping, Sequence

from hardsplice.model.errors import HardspliceError, reason_of

NULL_FD = 0  # standard input, which is /dev/null in every process that is locked down
LOG_FD = 2  # the host monitor's messages; /dev/null elsewhere
# A process's channel to its monitor; the host monitor's to the launcher, if there is one
CHANNEL_FD = 3
READY_FD = 4  # the host monitor's --ready-fd
NOTIFY_FD = 5  # the host monitor's socket to the service manager
RULESET_FD = 6  # the Landlock ruleset, kept by monitors for the relays that they start
SIGNALS_FD = 7  # the host monitor's signalfd, and that of PID 1 of COMMAND
WATCH_FD = 8  # the host monitor's table of mounts, which it watches
LIFELINE_FD = 9  # the namespace monitor's lifeline (ipc/lifeline.py)
FIRST_LISTENER = 10

# Places for listeners that are added at run time: so many, or that part of all descriptors.
LATE_MAX, LATE_SHARE = 4096, 4
# From `reserve` on, the numbers of places that may be something else than /dev/null. It is written
# down by what changes one, since to replace each of thousands anew takes milliseconds.
_in_use: set[int] | None = None


def raise_limit() -> tuple[int, int]:
    """Raise the limit of descriptors to the hard limit; returns the previous limits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def late(limit: int) -> int:
    """How many listeners there are places for that may come at run time; ``limit`` is
    RLIMIT_NOFILE.
    """
    return min(LATE_MAX, limit // LATE_SHARE)


def first_flow(listeners: int) -> int:
    """The first number behind the places of so many listeners."""
    return FIRST_LISTENER + listeners


def take_ready(fd: int, first: int) -> int:
    """Move the --ready-fd to a number from ``first`` on. COMMAND doesn't get it, unless it is one
    of the standard streams.
    """
    moved = above(fd, first, f"--ready-fd {fd}")
    if fcntl.fcntl(moved, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise HardspliceError("write", f"--ready-fd {fd}", "it is open for reading only")
    if fd > LOG_FD:
        os.close(fd)
    return moved


def take_exit(fd: int, first: int) -> int:
    """Move the --exit-fd to a number from ``first`` on, likewise."""
    moved = above(fd, first, f"--exit-fd {fd}")
    mode = os.fstat(moved).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise HardspliceError("watch", f"--exit-fd {fd}", "it is neither a pipe nor a socket")
    if fcntl.fcntl(moved, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
        raise HardspliceError("watch", f"--exit-fd {fd}", "it is open for writing only")
    if fd > LOG_FD:
        os.close(fd)
    return moved


def set_aside(first: int) -> dict[int, int]:
    """Move the caller's descriptors, beside the standard streams, out of the way: every inheritable
    one from 3 on. Those with a number below ``first`` get one above. Returns the number that each
    had, and its present one, at which it is not inherited; ``put_back`` undoes this.

    Descriptors that the interpreter or hardsplice opens are not inheritable (PEP 446), so they are
    not affected.
    """
    aside = {}
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        with contextlib.suppress(OSError):  # the listing's own
            if fd <= LOG_FD or not os.get_inheritable(fd):
                continue
            if fd >= first:
                os.set_inheritable(fd, False)
                aside[fd] = fd
                continue
            aside[fd] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first)
            os.close(fd)
    return aside


def put_back(aside: Mapping[int, int]) -> None:
    """Give what was set aside its numbers again, for a program that is about to be executed."""
    for old, new in aside.items():
        if old == new:
            os.set_inheritable(new, True)
        else:
            os.dup2(new, old)


def reserve(first: int, ours: Sequence[int]) -> None:
    """Take every number below ``first``. What is open there is closed, but for the standard streams
    and ``ours``: a library may have left something there, or our caller.
    """
    null = open_null()
    kept = {fd for fd in (*range(LOG_FD + 1), *ours) if is_open(fd)} | {null}
    try:
        for fd in range(first):
            if fd not in kept:
                os.dup2(null, fd, inheritable=False)
    except OSError as error:
        what = f"{first - FIRST_LISTENER} listeners"
        hint = "each takes a descriptor: raise the limit with ulimit -n, or forward fewer ports"
        reason = os.strerror(errno.EMFILE if error.errno == errno.EBADF else error.errno or 0)
        raise HardspliceError("keep room for", what, reason, hint) from error
    finally:
        if null >= first:
            os.close(null)
    global _in_use
    _in_use = {fd for fd in ours if FIRST_LISTENER <= fd < first}


def above(fd: int, first: int, what: str) -> int:
    """A copy of a descriptor, at a number from ``first`` on."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first)
    except OSError as error:
        if error.errno == errno.EINVAL:  # ``first`` is behind the limit
            error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        raise HardspliceError("use", what, reason_of(error)) from error


def move(fd: int, to: int) -> None:
    """Give an open descriptor a number below the first flow's."""
    if fd != to:
        copy(fd, to)
        os.close(fd)


def copy(fd: int, to: int) -> None:
    """Have an open descriptor at a number below the first flow's, too."""
    os.dup2(fd, to, inheritable=False)
    if _in_use is not None:
        _in_use.add(to)


def clear(fds: Iterable[int]) -> None:
    """Have /dev/null at these numbers, below the first flow's, instead of what is there."""
    for fd in fds:
        os.dup2(NULL_FD, fd, inheritable=False)
        if _in_use is not None:
            _in_use.discard(fd)


def keep(wanted: Iterable[int], first: int) -> None:
    """Close every descriptor but these: any inherited one could be a way out. Below ``first``,
    /dev/null replaces the others; it must be at NULL_FD.
    """
    wanted = set(wanted)
    # Those with a name are replaced in any case.
    places = range(FIRST_LISTENER, first) if _in_use is None else [*_in_use]
    clear({*range(min(FIRST_LISTENER, first)), *places} - wanted - {NULL_FD})
    close_others((fd for fd in wanted if fd >= first), first)


def close_others(wanted: Iterable[int], first: int = 0) -> None:
    """Close every descriptor from ``first`` on but these."""
    edge = first
    for fd in sorted(set(wanted)):
        if edge < fd:  # an empty range would mean all to close_range(2)
            os.closerange(edge, fd)
        edge = fd + 1
    # The limit may have been lowered below descriptors that are open; fs.nr_open's default is
    # 2**20.
    os.closerange(edge, max(1 << 20, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def null_standard_streams(streams: Sequence[int]) -> None:
    """Put /dev/null where a terminal or a pipe to another process was."""
    null = open_null()
    for fd in streams:
        os.dup2(null, fd, inheritable=False)
    if null > 2:
        os.close(null)


def is_open(fd: int) -> bool:
    """Whether there is such a descriptor."""
    with contextlib.suppress(OSError):
        os.fstat(fd)
        return True
    return False


_PTY_MASTER = os.makedev(5, 2)  # /dev/ptmx, Documentation/admin-guide/devices.txt


def write_only(fd: int) -> None:
    """Reopen ``fd`` for writing only, if it can be read: a process that writes messages to a
    terminal must not read what is typed there. OSError where that can't be done; a socket is left
    as it is, since it can't be reopened.
    """
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
        return
    found = os.fstat(fd)
    if stat.S_ISSOCK(found.st_mode):
        return
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == _PTY_MASTER:
        raise OSError(errno.ENODEV, "the master's side of a terminal can't be opened twice")
    opened = _open_again(fd, os.O_APPEND if stat.S_ISREG(found.st_mode) else 0)
    os.dup2(opened, fd, inheritable=False)
    os.close(opened)


def _open_again(fd: int, flags: int) -> int:
    flags |= os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except PermissionError as error:
        # After su(1) and its like the terminal is another user's, but it has a second name, for
        # those whose session it controls; only of that terminal the group can be asked for.
        try:
            os.tcgetpgrp(fd)
        except OSError:
            raise error from None
        return os.open("/dev/tty", flags)


_DEVICES_HINT = "have devices in /dev: of bubblewrap that is --dev /dev"


def open_null() -> int:
    """/dev/null, to read and write."""
    try:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HardspliceError("open", os.devnull, reason_of(error), _DEVICES_HINT) from error
