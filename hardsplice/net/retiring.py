# SPDX-License-Identifier: GPL-2.0-or-later
"""Ending a listener of the host for good, although other processes hold it: the namespace monitor
and its relays do, and they are in another network namespace.

A listener that was shut down is an unconnected socket of the namespace that it belongs to. A
process that holds it could listen again, or connect it there. So it is set to drop packets that
haven't the largest TTL or hop limit, and *used up*: connected to a socket of ours, the sink, which
sends such packets, and ends at once. A socket that was connected can neither listen nor connect
again, except by connect(2) with AF_UNSPEC (net/ipv4/af_inet.c), which is in no address book. The
sink is bound at set-up, since Landlock needs to know its port, and listens for that moment only.

If that connection isn't answered (a firewall drops it, or the socket is bound to an interface from
which the sink can't be reached), we wait until the kernel has given it up, and then shut the socket
down, with the same effect: it is neither connected nor unconnected (SS_DISCONNECTING,
inet_shutdown).
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from socket import SHUT_RDWR, SOL_SOCKET

from hardsplice.ipc.channel import close_all
from hardsplice.ipc.loop import Alarm, Loop
from hardsplice.kernel import pinned, socketcalls
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.errors import HardspliceError, reason_of
from hardsplice.model.families import FAMILIES, IPV4, IPV6
from hardsplice.model.spec import Address
from hardsplice.net.listeners import BACKLOG, LOOPBACK
from hardsplice.sandbox.address_book import Book, Pointer

ATTEMPTS = 100  # to get ahead of a process that uses a listener while it is being ended
AGAIN_SECONDS = 0.5  # until one that isn't used up yet is checked again
PATIENT_TRIES = 8  # of those, until a connection was given up: 3 s (be_impatient)
TRIES = 3 * PATIENT_TRIES
_PORTS_TRIED = 10
_MAPPED = IPv6Address("::ffff:127.0.0.1")  # by which an IPv6 socket reaches an IPv4 one
# What makes packets of the sink pass: see socketcalls.retire.
_SENT_WITH = {
    IPV4: (socket.IPPROTO_IP, socket.IP_TTL),
    IPV6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
}
MISUSED = "it uses a listener that was ended"
_HINT = "a namespace monitor that was taken over could use its port again until hardsplice ends"


class Sink(NamedTuple):
    """What listeners are connected to at their end: a socket of each family that there is, on the
    loopback address, all with the same port.
    """

    port: int
    fds: dict[int, int]  # by index into FAMILIES


def open_sink() -> Sink:
    """The sink of this network namespace, of the families that have a loopback address there, as
    far as one port can be had of all.
    """
    sink = _bound()
    for _ in range(_PORTS_TRIED):
        if len(sink.fds) == len(FAMILIES):
            break
        close_all(sink.fds.values())
        sink = _bound()
    return sink


def _bound() -> Sink:
    port, fds = 0, {}
    for family, address in LOOPBACK.items():
        # There may be no such address here, or its port may be taken.
        with suppress(OSError):
            port = port or _free_port(family)
            with socket.socket(FAMILIES[family], socket.SOCK_STREAM) as one:
                one.setblocking(False)
                one.setsockopt(*_SENT_WITH[family], 255)
                one.setsockopt(SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port is for others, too
                one.bind((str(address), port))
                fds[family] = one.detach()
    return Sink(port, fds)


def _free_port(family: int) -> int:
    """One that is named at bind(2), since the kernel takes back those that it chose itself, once a
    socket listens no longer.
    """
    with socket.socket(FAMILIES[family], socket.SOCK_STREAM) as probe:
        probe.bind((str(LOOPBACK[family]), 0))
        port: int = probe.getsockname()[1]
        return port


class _Late:
    """One that isn't used up yet."""

    __slots__ = ("fd", "is_under_way", "name", "tries")

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.is_under_way = False  # its connection
        self.tries = 0


class Retiring:
    """Ends listeners."""

    def __init__(self, book: Book, sink: Sink) -> None:
        """``book`` is the one that this process connects by."""
        self._book = book
        self._sink = sink
        self._late: deque[_Late] = deque()
        self._alarm: Alarm | None = None
        self._report: Callable[[HardspliceError], None] = lambda _: None
        # Called when a process, which must have been taken over, uses a listener while it is ended.
        self.on_misuse: Callable[[str], None] = lambda _: None

    def begin(self, loop: Loop, report: Callable[[HardspliceError], None]) -> None:
        """From now on retry what can't be done at once; ``report`` gets messages for the log."""
        self._alarm = Alarm(loop, self._try_again)
        self._report = report

    def end(self, fd: int, name: str) -> None:
        """End a listener, of which ``fd`` is ours, and closed once that is done."""
        self._go_on(_Late(fd, name))

    def _try_again(self) -> None:
        for _ in range(len(self._late)):
            self._go_on(self._late.popleft())

    def _go_on(self, late: _Late) -> None:
        try:
            reason = self._use_up(late)
        except OSError as error:
            reason = reason_of(error)
        late.tries += 1
        if reason and self._alarm and late.tries < TRIES:
            self._late.append(late)
            self._alarm.set(AGAIN_SECONDS)
            return
        os.close(late.fd)
        if reason:
            self._report(HardspliceError("free", late.name, reason, _HINT))

    def _use_up(self, late: _Late) -> str:
        """Nothing once it is used up, or why it isn't yet."""
        is_given_up = late.tries % PATIENT_TRIES == 0
        if late.is_under_way and not (
            is_given_up or socketcalls.option(late.fd, SOL_SOCKET, socket.SO_ERROR)
        ):
            return os.strerror(errno.EALREADY)
        socketcalls.retire(late.fd)  # also where its connection was given up: see above
        late.is_under_way = False
        socketcalls.be_impatient(late.fd)
        reason = os.strerror(errno.EADDRNOTAVAIL)
        for family, address in _ways(socketcalls.local_address(late.fd)):
            ours = self._sink.fds.get(family)
            if ours is None or late.is_under_way:
                continue
            socketcalls.listen(ours, BACKLOG)
            try:
                reason = self._connect(late, socketcalls.sockaddr(address, self._sink.port))
            finally:
                socketcalls.shutdown(ours, SHUT_RDWR)  # which resets what is in its queue
            if not reason:
                break
        return reason

    def _connect(self, late: _Late, there: bytes) -> str:
        try:
            pointer = Pointer(self._book.area, self._book.add(there), 0, there)
        except HardspliceError as failure:
            return failure.reason
        code = None
        try:
            for attempt in range(ATTEMPTS):
                if attempt:  # another process may listen on it, or connect it elsewhere
                    socketcalls.shutdown(late.fd, SHUT_RDWR)
                code = _connect(late.fd, pointer)
                if code not in (None, errno.EALREADY):
                    break
        finally:
            self._book.remove(there)
        late.is_under_way = code == errno.EALREADY
        if code is not None:
            return os.strerror(code) if code else ""
        self.on_misuse(MISUSED)
        return MISUSED


def _connect(fd: int, pointer: Pointer) -> int | None:
    """Connect it: 0 when it is used up, or the errno. None if another process uses it, which shows
    only in its peer address, or in that it listens: a connection that isn't answered can be our
    own.
    """
    if not socketcalls.option(fd, SOL_SOCKET, socket.SO_ACCEPTCONN):
        code = socketcalls.connect(fd, pointer.where, pointer.length)
        if code == -errno.EINPROGRESS:  # often established already, as a second call reports
            code = socketcalls.connect(fd, pointer.where, pointer.length)
        if code not in (0, -errno.EISCONN):
            return 0 if code == -errno.EINVAL else -code
        if not socketcalls.option(fd, SOL_SOCKET, socket.SO_ACCEPTCONN):
            peer = socketcalls.peer_address(fd)  # none where it has ended already
            there = peer and socketcalls.endpoint(peer)
            return 0 if there in (b"", socketcalls.endpoint(pointer.sockaddr)) else None
    return None


def _ways(bound: bytes) -> Sequence[tuple[int, Address]]:
    """Where a socket that is bound so may reach the sink: of which family that is, and how the
    socket names it. Or else its own address, whence nobody answers.
    """
    if len(bound) == pinned.IPV4_SIZE:
        mine, loopback = IPv4Address(bound[4:8]), (IPV4, LOOPBACK[IPV4])
        return (loopback,) if mine.is_unspecified else (loopback, (IPV4, mine))
    address = IPv6Address(bound[8:24])
    if address.is_unspecified:
        return (IPV4, _MAPPED), (IPV6, LOOPBACK[IPV6])
    if address.ipv4_mapped:
        return (IPV4, _MAPPED), (IPV4, address)
    return (IPV6, LOOPBACK[IPV6]), (IPV6, address)
