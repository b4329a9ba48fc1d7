# SPDX-License-Identifier: GPL-2.0-or-later
"""What only the host monitor can do where ports change: write addresses, and end listeners for
good.

It writes targets into the address books, and the address of the next listener; and it keeps a
second descriptor of each listener, apart from those that relays accept on, so that it can end them:
the filter allows setting options only above the places of listeners.

The namespace monitor may have kept a listener that it created at run time, and could set options
that connections inherit. So these are checked periodically; all listeners are checked when a relay
was replaced.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence

from hardsplice.ipc.loop import Alarm, Loop
from hardsplice.kernel import passed, pinned, socketcalls
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.families import ALL_FAMILIES
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.net import listeners
from hardsplice.net.retiring import Retiring, Sink
from hardsplice.sandbox.address_book import Book

CHECK_SECONDS = 1.0  # between checks of listeners
CHECKED_AT_ONCE = 256  # listeners


class Effects:
    """The books of both directions, and listeners by the IDs of their ports."""

    def __init__(
        self,
        books: Mapping[Direction, Book],
        families: Mapping[Direction, Sequence[int]],
        ports: Sequence[Forward],
        fds: Mapping[int, int],
        namespace_cookie: int | None,
        sink: Sink,
    ) -> None:
        """``families`` are those of the namespace that a direction's listeners are made in;
        ``ports`` are written down already, and ``fds`` are their listeners. ``namespace_cookie`` is
        that of the network namespace that is served (socketcalls.namespace_cookie).
        """
        # By the book that this process connects by.
        self.retiring = Retiring(books[Direction.OUTBOUND], sink)
        self._books = books
        self._families = families
        self._written = {port.id: port for port in ports}
        self._listeners = dict(fds)
        self._namespace_cookie = namespace_cookie
        self._foreign: set[int] = set()  # those that the namespace monitor has made at run time
        self._unseen: list[int] = []
        self._check: Alarm | None = None
        self.on_loss: Callable[[HardspliceError], None] = lambda _: (
            None
        )  # a listener is not as it was

    # --- targets --------------------------------------------------------------------------------

    def write_down(self, forward: Forward) -> dict[int, int]:
        """Have a port's targets in the book: their slots, by index into FAMILIES. HardspliceError
        when it is full.
        """
        book, written = self._books[forward.direction], []
        slots = {}
        try:
            for family, sockaddr in listeners.targets(forward, ALL_FAMILIES).items():
                slots[family] = book.add(sockaddr)
                written.append(sockaddr)
        except BaseException:
            for sockaddr in written:
                book.remove(sockaddr)
            raise
        self._written[forward.id] = forward
        return slots

    def cross_out(self, port_id: int) -> None:
        """A port was removed: no process may connect to its targets any more."""
        forward = self._written.pop(port_id, None)
        if forward is not None:
            for sockaddr in listeners.targets(forward, ALL_FAMILIES).values():
                self._books[forward.direction].remove(sockaddr)

    # --- listeners ------------------------------------------------------------------------------

    def open(self, forward: Forward) -> int:
        """Make an inbound listener here, and keep it; OSError where that is not possible."""
        listeners.write_bind_address(forward, self._families[Direction.INBOUND])
        try:
            fd = listeners.open_listener(forward, self._families[Direction.INBOUND])
        finally:
            pinned.clear_bind_address()
        self._listeners[forward.id] = fd
        return fd

    def take(self, port_id: int, fd: int) -> int:
        """Keep an inbound listener that was open already, as if it had been made here."""
        self._listeners[port_id] = fd
        return fd

    def keep(self, port_id: int, fd: int) -> None:
        """Keep a listener that the namespace monitor has made, until it is ended."""
        self._listeners[port_id] = fd
        self._foreign.add(port_id)
        self.check_soon()

    def listener(self, port_id: int) -> int:
        """A port's listener; KeyError where it was ended."""
        return self._listeners[port_id]

    def is_wanted(self, fd: int, forward: Forward) -> bool:
        """Whether what the namespace monitor sent, which may have been taken over, is the listener
        that it was asked for, as we would have made it. Before Linux 5.14 the namespace can't be
        asked for.
        """
        if not listeners.is_listener(fd, forward):
            return False
        if not (listeners.is_sound(fd, forward.protocol) and passed.never_blocks(fd)):
            return False
        found = socketcalls.namespace_cookie(fd)
        return found is None or found == self._namespace_cookie

    def offer_bind_address(self, forward: Forward) -> None:
        """Write down where the namespace monitor is to create an outbound listener."""
        written = self._books[Direction.INBOUND].written  # which is what that one sees
        listeners.write_bind_address(forward, self._families[Direction.OUTBOUND], written)

    def withdraw_bind_address(self) -> None:
        """The namespace monitor has made the listener, or not: it can make no other one there."""
        pinned.clear_bind_address(self._books[Direction.INBOUND].written)

    def end(self, port_id: int) -> None:
        """End a listener, in all processes that have it."""
        fd = self._listeners.pop(port_id, None)
        self._foreign.discard(port_id)
        if fd is None:
            return
        written = self._written.get(port_id)
        if written and written.protocol is Protocol.UDP:
            # Whoever has a copy of it still can't send from it.
            socketcalls.shutdown(fd, socket.SHUT_RDWR)
            os.close(fd)
            return
        # An outbound one is made by whoever is in its namespace, who can make more.
        if written and written.direction is Direction.OUTBOUND:
            with contextlib.suppress(OSError):
                socketcalls.retire(fd)
            os.close(fd)
        else:
            name = written.name if written else f"port {port_id}"
            self.retiring.end(fd, f"{name} {Direction.INBOUND.listens}")

    # --- are they as they were? -----------------------------------------------------------------

    def begin(self, loop: Loop, report: Callable[[HardspliceError], None]) -> None:
        """From now on listeners are looked at; ``report`` is for people."""
        self.retiring.begin(loop, report)
        self._check = Alarm(loop, self._check_some)

    def check_soon(self) -> None:
        """Check all listeners."""
        if self._check is not None:
            self._check.set(CHECK_SECONDS)

    def _check_some(self) -> None:
        if not self._unseen:
            self._unseen = list(self._listeners)
        some, self._unseen = self._unseen[:CHECKED_AT_ONCE], self._unseen[CHECKED_AT_ONCE:]
        for port_id in some:
            fd = self._listeners.get(port_id)
            if fd is not None and not listeners.is_sound(fd, self._written[port_id].protocol):
                self._lose(port_id)
                return
        if self._unseen or self._foreign:
            self.check_soon()

    def _lose(self, port_id: int) -> None:
        if port_id in self._foreign:
            self.retiring.on_misuse("it changes a listener that it has handed over")
        else:
            self.on_loss(HardspliceError("serve", self._written[port_id].where, listeners.UNSOUND))
