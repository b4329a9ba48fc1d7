# SPDX-License-Identifier: GPL-2.0-or-later
"""Listeners that a relay gets while it runs: the monitor's side of kernel/unotify.py.

A record tells the relay of each listener that is added or removed, and the relay then makes the
call that asks for it. It gets what belongs at that place now, which may be nothing any more. It
makes one call for each record, in their order; any other call violates the protocol.

A UDP port is free again once nobody has its socket, since that can't be ended as TCP's can: so its
removal waits for that call, but not for long, as the relay may have been taken over. One that still
keeps the socket later on is ended.
"""

from __future__ import annotations

import errno
import os
import select
from collections import deque
from collections.abc import Callable

from hardsplice.ipc.descriptors import NULL_FD
from hardsplice.ipc.loop import Loop
from hardsplice.kernel import unotify

LET_GO_SECONDS = 3.0  # until a removal waits no longer
KEPT_SECONDS = 7.0  # from then on, until a relay that keeps what was removed is ended
NOT_HERE = "this kernel can't put a descriptor into another process (Linux 5.9)"


class Placing:
    """What one relay has to ask for."""

    def __init__(
        self,
        loop: Loop,
        is_there: Callable[[int, int], bool],
        ask: Callable[[Callable[[], None]], None],
        breach: Callable[[str], None],
    ) -> None:
        """``is_there`` returns whether the port with this number still has its listener at that
        place; ``ask`` pings the relay, and calls what it is given at the answer; ``breach`` ends
        the relay.
        """
        self._loop = loop
        self._is_there = is_there
        self._ask = ask
        self._breach = breach
        self._fd = -1
        self._poller = select.poll()
        self._due: deque[tuple[int, int, bool]] = deque()  # place; the port's ID; whether added
        # By the ports' IDs: what to call, and the timer that does so at the latest
        self._let_go: dict[int, tuple[Callable[[], None], int]] = {}
        self._kept: dict[int, int] = {}  # those that were late: the timer that ends the relay

    def begin(self, fd: int) -> None:
        """The relay has sent the descriptor from which its calls are read. OSError if it is another
        descriptor, or the kernel lacks support.
        """
        try:
            unotify.put(fd, 0, NULL_FD, NULL_FD)  # no process can have made this call
        except OSError as error:
            if error.errno != errno.ENOENT:
                os.close(fd)
                raise
        self._fd = fd
        self._poller.register(fd, select.POLLIN)
        self._loop.add(fd, self._on_question)

    def record_sent(self, place: int, port_id: int, *, is_added: bool) -> None:
        """The relay was sent a record: a port's listener is added at a place, or removed."""
        self._due.append((place, port_id, is_added))

    def when_let_go(self, port_id: int, call: Callable[[], None]) -> None:
        """Call that once the relay has let go of a listener whose removal it is about to be sent,
        in LET_GO_SECONDS at the latest.
        """
        timer = self._loop.after(LET_GO_SECONDS, lambda: self._is_late(port_id))
        self._let_go[port_id] = call, timer

    def _is_late(self, port_id: int) -> None:
        call, _ = self._let_go.pop(port_id)
        self._kept[port_id] = self._loop.after(KEPT_SECONDS, lambda: self._is_kept(port_id))
        call()

    def _is_kept(self, port_id: int) -> None:
        del self._kept[port_id]
        self._breach("it keeps a listener that was removed")

    def _has_let_go(self, port_id: int) -> None:
        if port_id in self._let_go:
            call, timer = self._let_go.pop(port_id)
            self._loop.cancel(timer)
            call()
        elif port_id in self._kept:
            self._loop.cancel(self._kept.pop(port_id))

    def forget(self) -> None:
        """The relay is gone."""
        self._due.clear()
        for port_id in [*self._let_go, *self._kept]:
            self._has_let_go(port_id)
        if self._fd >= 0:
            self._loop.remove(self._fd)
            self._poller.unregister(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_question(self) -> None:
        # It is also ready when the relay has ended, and reading would wait forever.
        ready = dict(self._poller.poll(0))
        if not ready.get(self._fd, 0) & select.POLLIN:
            if ready:
                self._loop.remove(self._fd)
            return
        question = unotify.next_question(self._fd)
        if question is None:
            return
        identity, place = question
        if not self._due or self._due[0][0] != place:
            self._breach(f"it asks for what is due at {place}, which is nothing")
            return
        _, port_id, is_added = self._due[0]
        is_there = is_added and self._is_there(port_id, place)
        if not self._put(identity, place, is_there=is_there):
            return  # it was interrupted, and calls again
        self._due.popleft()
        if port_id in self._let_go or port_id in self._kept:
            # The kernel closes what was there as the call returns in the relay, which is later.
            self._ask(lambda: self._has_let_go(port_id))

    def _put(self, identity: int, place: int, *, is_there: bool) -> bool:
        try:
            unotify.put(self._fd, identity, place if is_there else NULL_FD, place)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINPROGRESS, errno.ESRCH):
                raise
            return False
        return unotify.answer(self._fd, identity, place if is_there else 0)
