# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitors' event loop: descriptors with callbacks, and timers. It sleeps until one is due.

Some of a monitor's peers may be hostile, and must not keep it from serving the others. So the work
of a pass is fixed when it begins: each ready descriptor is served once, and the timers that are due
by then are run. What a callback adds, even if it is due at once, waits for the next pass, before
which epoll is called again. The kernel keeps ready descriptors in a queue and moves those that it
reports to its end (ep_send_events, fs/eventpoll.c), so that none is left out forever if more are
ready than a pass takes. A callback does a bounded piece of work: it receives one record, for
example.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable

Callback = Callable[[], None]

EVENTS_A_PASS = 16


class Loop:
    """Level-triggered epoll over a few descriptors."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Callback]] = []
        self._order = itertools.count()
        self._cancelled: set[int] = set()  # numbers of timers that are still among the others
        self.status: int | None = None  # set to end the loop

    def add(self, fd: int, callback: Callback, events: int = select.EPOLLIN) -> None:
        """Call back while ``fd`` is readable, or at other ``events``, or its other end is gone."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Call back at other ``events``; with none, once the other end is gone."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget ``fd``; call it before closing."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, seconds: float, callback: Callback) -> int:
        """Call back once, in ``seconds``; the timer's number."""
        number = next(self._order)
        heapq.heappush(self._timers, (time.monotonic() + seconds, number, callback))
        return number

    def cancel(self, number: int) -> None:
        """Don't call back, nor wake up for that, by a timer whose call is still to come."""
        self._cancelled.add(number)

    def stop(self, status: int) -> None:
        """End ``run``, which then returns ``status``; the first call counts."""
        if self.status is None:
            self.status = status

    def run(self) -> int:
        """Serve until stopped."""
        while self.status is None:
            self._pass()
        return self.status

    def _pass(self) -> None:
        timeout = -1.0
        while self._timers and self._timers[0][1] in self._cancelled:
            self._cancelled.remove(heapq.heappop(self._timers)[1])
        if self._timers:
            timeout = max(0.0, self._timers[0][0] - time.monotonic())
        for fd, _ in self._epoll.poll(timeout, EVENTS_A_PASS):
            callback = self._callbacks.get(fd)  # an earlier callback may have removed it
            if callback is not None:
                callback()
        for number, callback in self._due():
            if number in self._cancelled:
                self._cancelled.remove(number)
            else:
                callback()

    def _due(self) -> list[tuple[int, Callback]]:
        """The timers that are due now, which are no timers any more."""
        now = time.monotonic()
        due = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers)[1:])
        return due


class Alarm:
    """Something to retry later: however often it is set, there is one timer at a time."""

    def __init__(self, loop: Loop, callback: Callback) -> None:
        self._loop = loop
        self._callback = callback
        self._is_set = False
        self._number = 0  # of the timer

    def set(self, seconds: float) -> None:
        """Call back in ``seconds``, unless it is set already."""
        if not self._is_set:
            self._is_set = True
            self._number = self._loop.after(seconds, self._ring)

    def cancel(self) -> None:
        """Don't call back, if it is set: there is nothing left to be done."""
        if self._is_set:
            self._is_set = False
            self._loop.cancel(self._number)

    def _ring(self) -> None:
        self._is_set = False
        self._callback()
