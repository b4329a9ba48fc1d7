# SPDX-License-Identifier: GPL-2.0-or-later
"""Datagrams that know their place, and a socket's end of a conversation in them.

Each `Letters` is a sequence of datagrams whose bytes are windows of its own into the block of
support/stream.py, another for each: one that is lost, doubled, moved, merged, cut or somebody
else's is seen. Nothing waits without a bound.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tests.support.stream import PATIENCE, Stream, Violation

SOL_UDP = 17  # linux/udp.h
UDP_SEGMENT, UDP_GRO = 103, 104
IP_PKTINFO = 8  # linux/in.h
IPV6_RECVPKTINFO, IPV6_PKTINFO = 49, 50  # linux/in6.h
SO_RXQ_OVFL = 40  # asm-generic/socket.h

MOST = {socket.AF_INET: 65_507, socket.AF_INET6: 65_527}
"""Bytes of the largest datagram: 65,535 without the headers of UDP and IPv4, or of UDP."""
MOST_SEGMENTED = 65_487
"""Bytes that one segmented send takes, whatever the family."""
WINDOW_BYTES, WINDOW_NUMBER = 100_000, 48
"""What every receive buffer of the default size holds, whatever the kernel adds to each."""

_ANCILLARY = 256
_STEP = 70_001  # bytes of the block between two datagrams of a sequence; prime
Address = tuple[Any, ...]


class Letters:
    """A sequence of datagrams, told apart from every other."""

    def __init__(self) -> None:
        self._stream = Stream()
        self._numbers = itertools.count()

    def next(self, size: int) -> bytes:
        """The next datagram, of so many bytes."""
        return bytes(self._stream.at(next(self._numbers) * _STEP, size))

    def some(self, sizes: Iterable[int]) -> list[bytes]:
        """The next datagrams, of these sizes."""
        return [self.next(size) for size in sizes]


class Received(NamedTuple):
    """A datagram, who sent it, and to which address it was sent, where that was asked for."""

    data: bytes
    peer: Address
    asked: str


class Post:
    """A UDP socket that sends datagrams and receives them one by one, whatever GRO makes of them.

    `gro` has the kernel hand over several of one size at once; `asks` has it say to which address
    each was sent, so that the answer can leave from there.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        gro: bool = False,
        asks: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        self.sock = sock
        self.dropped = 0
        """Datagrams that didn't fit into the receive buffer, as far as the kernel has said."""
        self._split: collections.deque[Received] = collections.deque()
        self.largest = 0
        """Bytes that came by one call, at most."""
        sock.settimeout(patience)
        sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        if gro:
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        if asks and sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        if asks and sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)

    @property
    def address(self) -> Address:
        """Where it is bound."""
        bound: Address = self.sock.getsockname()
        return bound

    def send(self, data: bytes, to: Received | Address | None = None) -> None:
        """Send one datagram: to whom it is connected, to an address, or back to whom one came
        from, from the address that this one had asked."""
        self._send(data, [], to)

    def send_segmented(
        self, datagrams: Sequence[bytes], to: Received | Address | None = None
    ) -> None:
        """Send datagrams of one size, the last of which may be shorter, by one call (GSO)."""
        size = struct.pack("=H", len(datagrams[0]))
        self._send(b"".join(datagrams), [(SOL_UDP, UDP_SEGMENT, size)], to)

    def _send(
        self,
        data: bytes,
        control: list[tuple[int, int, bytes]],
        to: Received | Address | None,
    ) -> None:
        address = to.peer if isinstance(to, Received) else to
        if isinstance(to, Received) and to.asked:
            control = [*control, self._source(to.asked)]
        self.sock.sendmsg([data], control, 0, *([] if address is None else [address]))

    def _source(self, asked: str) -> tuple[int, int, bytes]:
        if self.sock.family == socket.AF_INET:
            packed = struct.pack("=i4s4x", 0, socket.inet_aton(asked))
            return socket.IPPROTO_IP, IP_PKTINFO, packed
        packed = struct.pack("=16si", socket.inet_pton(socket.AF_INET6, asked), 0)
        return socket.IPPROTO_IPV6, IPV6_PKTINFO, packed

    def receive(self) -> Received:
        """The next datagram; a Violation if none comes."""
        if not self._split:
            try:
                self._split.extend(self._read())
            except TimeoutError:
                raise Violation("no datagram came") from None
        return self._split.popleft()

    def waiting(self) -> list[Received]:
        """All datagrams that are there."""
        patience = self.sock.gettimeout()
        self.sock.settimeout(0)
        found = list(self._split)
        self._split.clear()
        try:
            with contextlib.suppress(BlockingIOError):
                while True:
                    found += self._read()
        finally:
            self.sock.settimeout(patience)
        return found

    def _read(self) -> list[Received]:
        data, control, flags, peer = self.sock.recvmsg(1 << 16, _ANCILLARY)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise Violation(f"a datagram was cut off after {len(data)} bytes")
        self.largest = max(self.largest, len(data))
        asked, size = "", 0
        for level, kind, value in control:
            if (level, kind) == (socket.SOL_SOCKET, SO_RXQ_OVFL):
                (self.dropped,) = struct.unpack("=I", value)
            elif (level, kind) == (SOL_UDP, UDP_GRO):
                (size,) = struct.unpack("=i", value)
            elif (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                asked = socket.inet_ntoa(value[8:12])
            elif (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO):
                asked = socket.inet_ntop(socket.AF_INET6, value[:16])
        return [Received(part, peer, asked) for part in _parts(data, size)]

    def expect(self, *datagrams: bytes) -> Received:
        """Receive exactly these datagrams, in this order; the last as it was received."""
        got = None
        for number, wanted in enumerate(datagrams):
            got = self.receive()
            if got.data != wanted:
                raise Violation(f"datagram {number}: {_difference(wanted, got.data, datagrams)}")
        if got is None:
            raise ValueError("nothing is expected")
        return got

    def close(self) -> None:
        self.sock.close()


def _parts(data: bytes, size: int) -> Iterator[bytes]:
    if not size or len(data) <= size:
        yield data
        return
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _difference(wanted: bytes, got: bytes, datagrams: Sequence[bytes]) -> str:
    if got in datagrams:
        return f"number {datagrams.index(got)} came instead"
    if len(got) != len(wanted):
        same = "" if wanted[: len(got)] == got[: len(wanted)] else " of others"
        return f"{len(got)} bytes{same} came instead of {len(wanted)}"
    return f"other bytes came than the {len(wanted)} that were sent"


def windows(datagrams: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The same datagrams, as many at a time as a receive buffer holds for certain."""
    window: list[bytes] = []
    for one in datagrams:
        full = len(window) == WINDOW_NUMBER or sum(map(len, window)) + len(one) > WINDOW_BYTES
        if window and full:
            yield window
            window = []
        window.append(one)
    if window:
        yield window


def carry(
    sender: Post,
    receiver: Post,
    datagrams: Sequence[bytes],
    to: Received | Address | None = None,
) -> Received:
    """Send all, as many at a time as fit for certain, and receive exactly these; the last one."""
    got = []
    for window in windows(datagrams):
        for one in window:
            sender.send(one, to)
        got.append(receiver.expect(*window))
    return got[-1]
