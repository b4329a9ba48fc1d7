# SPDX-License-Identifier: GPL-2.0-or-later
"""Noticing the end of the namespace that is served: its process has ended, or the mount at its path
is no longer in the table of mounts.
"""

from __future__ import annotations

import os
import select

from hardsplice.ipc import descriptors
from hardsplice.ipc.loop import Alarm, Callback, Loop
from hardsplice.kernel.mounts import Watch
from hardsplice.net.namespaces import Served
from hardsplice.telemetry.log import Level, Log

# Seconds from one reading of the table to the next: where many mounts come and go, one is for all.
PAUSE = 0.3
AGAIN = 0.01  # ... where the one before missed the mount


def prepared(served: Served, log: Log, *, ends: bool) -> Served:
    """What is served, with a table of mounts only where its end ``ends`` hardsplice. Where its
    end will go unnoticed, the log says so.
    """
    if not ends:
        if served.watched is not None:
            os.close(served.watched.table)
        return served._replace(watched=None)
    if served.process is None and served.watched is None:
        text = f"the end of {served.name} will not be noticed: it is no mount that is seen here"
        log.line(Level.WARNING, text)
    return served


def placed(served: Served) -> Served:
    """What is served, with the watched table at its descriptor."""
    if served.watched is None:
        return served
    descriptors.move(served.watched.table, descriptors.WATCH_FD)
    return served._replace(watched=served.watched.moved_to(descriptors.WATCH_FD))


def watch(served: Served, loop: Loop, gone: Callback) -> None:
    """Call back when the namespace is gone."""
    if served.process is not None:
        loop.add(served.process, gone)
    elif served.watched is not None:
        _MountEnd(served.watched, loop, gone)


def forget(served: Served, loop: Loop) -> None:
    """Stop watching."""
    table = served.watched.table if served.watched is not None else None
    for fd in (served.process, table):
        if fd is not None:
            loop.remove(fd)


class _MountEnd:
    """The end of one mount. Mounts that come or go while the table is read may hide one that is
    there, so it is gone when two readings miss it.
    """

    def __init__(self, watched: Watch, loop: Loop, gone: Callback) -> None:
        self._watched = watched
        self._gone = gone
        self._missed = False
        self._is_resting = self._has_changed = True  # it may have gone before
        self._alarm = Alarm(loop, self._rested)
        loop.add(watched.table, self._changed, select.EPOLLPRI)  # EPOLLIN it always is
        self._alarm.set(PAUSE)

    def _changed(self) -> None:
        self._has_changed = True
        if not self._is_resting:
            self._check()

    def _rested(self) -> None:
        self._is_resting = False
        if self._missed or self._has_changed:
            self._check()

    def _check(self) -> None:
        is_there = self._watched.is_there()
        if self._missed and not is_there:
            self._gone()
            return
        self._missed, self._has_changed, self._is_resting = not is_there, False, True
        self._alarm.set(AGAIN if self._missed else PAUSE)
