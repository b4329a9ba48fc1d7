# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host monitor alone can do where ports change: write, and end listeners for good.

It writes targets into the address books, and where the next listener is to be made; and it keeps
each listener once more, apart from those that relays accept on, so that it can end them: the filter
lets options be set behind the places of listeners only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from hardsplice import listeners, socketcalls
from hardsplice.book import Book
from hardsplice.forwarding import Direction, Port
from hardsplice.ports import Forward
from hardsplice.relay.sockets import ALL_FAMILIES


class Desk:
    """The books of both directions, and listeners by the numbers of their ports."""

    def __init__(
        self,
        books: Mapping[Direction, Book],
        families: Mapping[Direction, Sequence[int]],
        ports: Sequence[Port],
        kept: Mapping[int, int],
        target: int | None,
    ) -> None:
        """``families`` are those of the namespace that a direction's listeners are made in;
        ``ports`` are written down already, and their listeners ``kept``. ``target`` is the number
        of the network namespace that is served (socketcalls.namespace_cookie).
        """
        self._books = books
        self._families = families
        self._written = {port.id: (port.direction, port.forward) for port in ports}
        self._kept = dict(kept)
        self._target = target

    # --- targets --------------------------------------------------------------------------------

    def write_down(self, index: int, direction: Direction, forward: Forward) -> dict[int, int]:
        """Have a port's targets in the book: their slots, by index into FAMILIES. Failure when it
        is full.
        """
        book, written = self._books[direction], []
        slots = {}
        try:
            for family, sockaddr in listeners.targets(forward, ALL_FAMILIES).items():
                slots[family] = book.add(sockaddr)
                written.append(sockaddr)
        except BaseException:
            for sockaddr in written:
                book.remove(sockaddr)
            raise
        self._written[index] = (direction, forward)
        return slots

    def cross_out(self, index: int) -> None:
        """A port is gone: nobody is to connect to its targets any more."""
        found = self._written.pop(index, None)
        if found is not None:
            direction, forward = found
            for sockaddr in listeners.targets(forward, ALL_FAMILIES).values():
                self._books[direction].remove(sockaddr)

    # --- listeners ------------------------------------------------------------------------------

    def open(self, index: int, forward: Forward) -> int:
        """Make an inbound listener here, and keep it; OSError where that is not possible."""
        listeners.write_place(forward, self._families["inbound"])
        try:
            fd = listeners.open_listener(forward, self._families["inbound"])
        finally:
            socketcalls.clear_place()
        self.keep(index, fd)
        return fd

    def keep(self, index: int, fd: int) -> None:
        """Keep a port's listener, until it is ended."""
        self._kept[index] = fd

    def is_wanted(self, fd: int, forward: Forward) -> bool:
        """Whether what the target monitor sent, which may have been taken over, is the listener
        that it was asked for, as we would have made it. Before Linux 5.14 the namespace can't be
        asked for.
        """
        if not listeners.is_listener(fd, forward.port) or not listeners.is_sound(fd):
            return False
        found = socketcalls.namespace_cookie(fd)
        return found is None or found == self._target

    def offer_place(self, forward: Forward) -> None:
        """Write down where the target monitor is to make an outbound listener."""
        view = self._books["inbound"].view  # which is what that one sees
        listeners.write_place(forward, self._families["outbound"], view)

    def withdraw_place(self) -> None:
        """The target monitor has made the listener, or not: it can make no other one there."""
        socketcalls.clear_place(self._books["inbound"].view)

    def end(self, index: int) -> None:
        """End a listener, whoever else has it."""
        fd = self._kept.pop(index, None)
        if fd is not None:
            socketcalls.retire(fd)
            os.close(fd)
