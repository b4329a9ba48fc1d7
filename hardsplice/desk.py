# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host monitor alone can do where ports change: write, and end listeners for good.

It writes targets into the address books, and where the next listener is to be made; and it keeps
each listener once more, apart from those that relays accept on, so that it can end them: the filter
lets options be set behind the places of listeners only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, SHUT_RDWR, SO_DOMAIN, SOL_SOCKET

from hardsplice import listeners, socketcalls
from hardsplice.book import Book, Pointer
from hardsplice.errors import Failure
from hardsplice.forwarding import Direction, Port
from hardsplice.ports import Forward
from hardsplice.relay.sockets import ALL_FAMILIES

ATTEMPTS = 100  # to get ahead of whoever uses a listener that is being ended


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
        # Called where somebody, who must have been taken over, uses a listener while it is ended.
        self.on_misuse: Callable[[], None] = lambda: None

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

    def listener(self, index: int) -> int:
        """A port's listener; KeyError where it was ended."""
        return self._kept[index]

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
        if fd is None:
            return
        socketcalls.retire(fd)
        direction, _ = self._written.get(index, ("inbound", None))
        if direction == "inbound":  # it is the host's, and the target monitor has it
            with contextlib.suppress(OSError, Failure):  # too few descriptors, or slots
                self._use_up(fd)
        os.close(fd)

    def _use_up(self, fd: int) -> None:
        """Connect what was a listener to a socket of ours that ends at once. A socket that was
        connected can neither listen nor connect again but by connect(2) with AF_UNSPEC
        (net/ipv4/af_inet.c), which is in no address book. Where that fails, at an interface of its
        own for one, it stays deaf but for whoever sends with the largest number of hops.
        """
        ours = socketcalls.stream_socket(socketcalls.option(fd, SOL_SOCKET, SO_DOMAIN))
        try:
            socketcalls.send_far(ours)
            socketcalls.listen(ours, listeners.BACKLOG)
            there = _reached(socketcalls.local_address(fd), socketcalls.local_port(ours))
            book = self._books["outbound"]  # which is the one that this process connects by
            pointer = Pointer(book.place, book.add(there), 0, there)
            try:
                self._connect(fd, pointer)
            finally:
                book.remove(there)
        finally:
            os.close(ours)

    def _connect(self, fd: int, pointer: Pointer) -> None:
        for _ in range(ATTEMPTS):
            socketcalls.connect(fd, pointer.where, pointer.length)
            code = socketcalls.connect(fd, pointer.where, pointer.length)
            if code not in (-errno.EISCONN, -errno.EALREADY, -errno.EINVAL):
                return
            if not socketcalls.connected(fd):
                return
            socketcalls.shutdown(fd, SHUT_RDWR)  # somebody listens or connects on it meanwhile
        self.on_misuse()


def _reached(bound: bytes, port: int) -> bytes:
    """Where a socket that is bound so reaches a port of its own machine."""
    any_ipv4, any_ipv6 = bytes(4), bytes(16)
    family = int.from_bytes(bound[:2], sys.byteorder)
    if family == AF_INET and bound[4:8] == any_ipv4:
        return socketcalls.sockaddr(IPv4Address("127.0.0.1"), port)
    if family == AF_INET6 and bound[8:24] == any_ipv6:
        return socketcalls.sockaddr(IPv6Address("::1"), port)
    return bound[:2] + port.to_bytes(2, "big") + bound[4:]
