# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel to play with behind the datagram relay's seam: sockets, queues, ICMP, and faults.

It reads and writes struct mmsghdr and all behind it by pointers, from definitions of its own, as
the kernel does: what the relay's memory gets wrong goes wrong here too.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from ctypes import c_int, c_size_t, c_uint, c_void_p
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple, cast

from hardsplice.kernel import socketcalls
from hardsplice.kernel.mmsghdr import SLOTS, Buffers, Inbox, Outbox, Parts
from hardsplice.kernel.prepared import Call, answer
from hardsplice.relay.udp.seam import Kernel
from hardsplice.sandbox.address_book import Pointer

IN, ERR = 1, 8
FIRST = 10  # the first descriptor handed out
HEAD = struct.Struct("@Nii")


class Iovec(ctypes.Structure):
    _fields_ = (("base", c_size_t), ("size", c_size_t))


class Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", c_void_p), ("name_size", c_uint), ("iov", c_size_t), ("iov_number", c_size_t),
        ("control", c_size_t), ("control_size", c_size_t), ("flags", c_int),
    )  # fmt: skip


class Mmsghdr(ctypes.Structure):
    _fields_ = (("header", Msghdr), ("size", c_uint))


class Datagram(NamedTuple):
    """One that a client gets."""

    client: bytes
    source: str
    payload: bytes


class Incoming(NamedTuple):
    """In a socket's queue."""

    payload: bytes
    segment: int = 0
    client: bytes = b""
    info: tuple[int, int, bytes] | None = None  # level, type, what in it
    drops: int = 0


class Sock:
    """A datagram socket."""

    def __init__(self, family: int = socket.AF_INET, *, listens: bool = False) -> None:
        self.family, self.listens = family, listens
        self.queue: deque[Incoming] = deque()
        self.target: bytes | None = None
        self.error = 0
        self.errors = 0  # in its error queue
        self.segment = 0
        self.takes_joined = listens
        self.got: list[bytes] = []  # what its target got
        self.drops = 0
        self.closed = False


class FakeEpoll:
    """Level-triggered."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.watched: set[int] = set()
        self.timeout: float | None = None

    def register(self, fd: int, mask: int) -> None:
        assert mask == IN
        assert fd not in self.watched
        self.kernel.get(fd)
        self.watched.add(fd)

    def unregister(self, fd: int) -> None:
        self.watched.remove(fd)

    def ready(self) -> list[tuple[int, int]]:
        found = []
        for fd in sorted(self.watched):
            sock = self.kernel.get(fd)
            events = (IN if sock.queue else 0) | (IN | ERR if sock.error else 0)
            events |= ERR if sock.errors else 0
            if events:
                found.append((fd, events))
        return found

    def poll(self, timeout: float | None, most: int) -> list[tuple[int, int]]:
        self.timeout = timeout
        return self.ready()[:most]


class FakeKernel(Kernel):
    """The seam's other side, and the knobs of the world."""

    def __init__(self) -> None:
        self.table: dict[int, Sock] = {}
        self.clock = 1000.0
        self.refusing: set[bytes] = set()  # targets
        self.late = False  # refusals come later than send returns
        self.largest_joined = 65507  # what the path takes of joined datagrams
        self.no_source: set[str] = set()  # addresses that can't be answered from
        self.says_no_source = errno.EINVAL
        self.ports = 1000  # how many sockets may be connected at once
        self.faults: dict[str, deque[int]] = {}  # by call; 0 lets one through
        self.calls: list[str] = []
        self.answers: list[Datagram] = []
        self.given: dict[int, Sock] = {}  # what the monitor has for whoever asks, by place
        self.sockets: list[Sock] = []  # all that were connected, in that order
        self._later: list[Sock] = []
        self._errno = 0
        self._fds = itertools.count(FIRST)

    # --- the test's side ---

    def install(self, sock: Sock) -> int:
        """Never a number twice: using a closed one is a failed assertion."""
        fd = next(self._fds)
        self.table[fd] = sock
        return fd

    def listen(self, family: int = socket.AF_INET) -> int:
        return self.install(Sock(family, listens=True))

    def pool(self, number: int) -> list[int]:
        return [self.install(Sock()) for _ in range(number)]

    def get(self, fd: int) -> Sock:
        assert fd in self.table, f"descriptor {fd} is closed"
        return self.table[fd]

    def ask(
        self, listener: int, client: bytes, payload: bytes, asked: str = "127.0.0.1", *,
        segment: int = 0, drops: int = 0,
    ) -> None:  # fmt: skip
        """A client's datagram arrives."""
        sock = self.get(listener)
        address = ip_address(asked)
        if sock.family == socket.AF_INET:
            packed = cast(IPv4Address, address).packed
            info = (socket.IPPROTO_IP, 8, struct.pack("=i4s4s", 1, packed, packed))
        else:
            six = address if address.version == 6 else IPv6Address(f"::ffff:{address}")
            info = (socket.IPPROTO_IPV6, 50, six.packed + struct.pack("=i", 1))
        sock.queue.append(Incoming(payload, segment, client, info, drops))

    def answer(self, sock: Sock, payload: bytes, *, segment: int = 0) -> None:
        """A target's datagram arrives, if the socket is still there."""
        if sock.closed:
            return
        if sock.takes_joined:
            sock.queue.append(Incoming(payload, segment, drops=sock.drops))
        else:
            sock.queue.extend(Incoming(one, drops=sock.drops) for one in cut(payload, segment))

    def deliver_refusals(self) -> None:
        for sock in self._later:
            if not sock.closed:
                sock.error = errno.ECONNREFUSED
        self._later.clear()

    def inject(self, call: str, *codes: int) -> None:
        self.faults.setdefault(call, deque()).extend(codes)

    # --- common ---

    def _code(self, call: str) -> int:
        self.calls.append(call)
        queue = self.faults.get(call)
        return -queue.popleft() if queue else 0

    def _to_target(self, sock: Sock, payload: bytes, segment: int) -> int:
        assert sock.target is not None, "not connected"
        if sock.error:
            code, sock.error = sock.error, 0
            return -code
        if segment and segment > self.largest_joined:
            return -errno.EINVAL
        if len(payload) > 65507:
            return -errno.EMSGSIZE
        pieces = list(cut(payload, segment))
        assert len(pieces) <= 64
        if sock.target in self.refusing:
            if self.late:
                self._later.append(sock)
            else:
                sock.error = errno.ECONNREFUSED
        else:
            sock.got += pieces
        return len(payload)

    # --- the seam ---

    def receive(self, fd: int, inbox: Inbox, first: int, most: int, call: str = "receive") -> int:
        sock = self.get(fd)
        code = self._code(call)
        if code:
            return code
        if sock.error:
            code, sock.error = sock.error, 0
            return -code
        number = 0
        for at in structures(inbox.references[first], most):
            if not sock.queue:
                break
            _fill(at, sock.queue.popleft())
            number += 1
        return number or -errno.EAGAIN

    def receive_single(self, fd: int, where: c_void_p, call: str = "receive_single") -> int:
        sock = self.get(fd)
        assert not sock.takes_joined, "it wouldn't be told apart from a single datagram"
        code = self._code(call)
        if code:
            return code
        if sock.error:
            code, sock.error = sock.error, 0
            return -code
        if not sock.queue:
            return -errno.EAGAIN
        payload = sock.queue.popleft().payload
        assert where.value is not None
        ctypes.memmove(where.value, payload, len(payload))
        return len(payload)

    def _prepared(self, call: Callable[[], int]) -> Call:
        """A call that tells its errno apart from its result."""

        def make() -> int:
            result = call()
            if result < 0:
                self._errno = -result
            return max(result, -1)

        return make

    def error(self) -> int:
        assert self._errno, "nothing has failed"
        code, self._errno = self._errno, 0
        return code

    def to_take(self, fd: int, inbox: Inbox) -> Call:
        return self._prepared(lambda: self.receive(fd, inbox, 0, 1, "take"))

    def to_hear(self, fd: int, buffers: Buffers) -> Call:
        return self._prepared(lambda: self.receive_single(fd, buffers.pointers[0], "hear"))

    def to_send(self, fd: int, parts: Parts) -> Call:
        def send() -> int:
            part = Iovec.from_address(address_of(parts.references[0]))
            assert part.size, "writev would send nothing"
            return self.send(fd, c_void_p(part.base), part.size)

        return self._prepared(send)

    def to_answer(self, fd: int, parts: Parts, reply: bytes) -> Call:
        # The structure is the real one's, and its last argument but one
        where, number, _ = cast("partial[int]", answer(fd, parts, reply)).args[-3:]
        assert number == 1

        def send() -> int:
            (message,) = structures(where, 1)
            return self._code("answer") or self._to_client(self.get(fd), message) or 1

        return self._prepared(send)

    def take_joined(self, fd: int) -> int:
        self.calls.append("take_joined")
        sock = self.get(fd)
        assert not sock.takes_joined, "it was told so already"
        sock.takes_joined = True
        return 0

    def discard_errors(self, fd: int, inbox: Inbox) -> int:
        sock = self.get(fd)
        assert sock.listens
        self.calls.append("discard_errors")
        number = min(sock.errors, SLOTS)
        sock.errors -= number
        for at in structures(inbox.references[0], number):  # each comes without a name
            at.header.name_size = at.header.control_size = 0
        inbox.reset()
        return number or -errno.EAGAIN

    def send(self, fd: int, where: c_void_p, size: int) -> int:
        code = self._code("send")
        sock = self.get(fd)
        payload = ctypes.string_at(where, size)
        if not code and sock.segment > self.largest_joined:
            code = -errno.EINVAL
        segment = sock.segment if sock.segment < size else 0
        return code or self._to_target(sock, payload, segment)

    def write(self, fd: int, parts: Parts, first: int, number: int) -> int:
        code = self._code("write")
        sock = self.get(fd)
        payload = _gather(address_of(parts.references[first]), number)
        assert sock.segment, "they would be one datagram"
        return code or self._to_target(sock, payload, sock.segment)

    def segment(self, fd: int, size: int) -> int:
        code = self._code("segment")
        if not code:
            self.get(fd).segment = size
        return code

    def send_all(self, fd: int, outbox: Outbox, first: int, number: int) -> int:
        sock = self.get(fd)
        assert sock.listens
        sent = 0
        for at in structures(outbox.references[first], number):
            code = self._code("send_all") or self._to_client(sock, at)
            if code:
                return sent or code
            sent += 1
        return sent

    def _to_client(self, sock: Sock, at: Mmsghdr) -> int:
        header = at.header
        assert header.name is not None
        client = ctypes.string_at(header.name, header.name_size)
        payload = _gather(header.iov, header.iov_number)
        source, segment = "", 0
        for level, kind, data in controls(ctypes.string_at(header.control, header.control_size)):
            if (level, kind) == (17, 103):
                (segment,) = struct.unpack_from("=H", data)
            elif (level, kind) == (socket.IPPROTO_IP, 8):
                source = str(IPv4Address(data[4:8]))
            else:
                assert (level, kind) == (socket.IPPROTO_IPV6, 50)
                six = IPv6Address(data[:16])
                source = str(six.ipv4_mapped or six)
        if source in self.no_source:
            return -self.says_no_source
        if segment > self.largest_joined:
            return -errno.EINVAL
        pieces = list(cut(payload, segment))
        assert len(pieces) <= 64
        assert len(payload) <= 65507
        self.answers += [Datagram(client, source, piece) for piece in pieces]
        return 0

    def connect(self, fd: int, target: Pointer) -> int:
        code = self._code("connect")
        sock = self.get(fd)
        assert sock.target is None, "a socket is connected once"
        if sum(one.target is not None for one in self.table.values()) >= self.ports:
            code = -errno.EAGAIN
        if not code:
            sock.target = target.sockaddr
            self.sockets.append(sock)
        return code

    def option(self, fd: int, level: int, name: int) -> int:
        sock = self.get(fd)
        assert level == socket.SOL_SOCKET
        if name == socket.SO_DOMAIN:
            return sock.family
        assert name == socket.SO_ERROR
        self.calls.append("SO_ERROR")
        code, sock.error = sock.error, 0
        return code

    def close(self, fd: int) -> None:
        sock = self.get(fd)
        assert not sock.listens, "a listener is never closed"
        sock.closed = True
        del self.table[fd]
        self.epoll_.watched.discard(fd)

    def take_listener(self, place: int) -> bool:
        found = self.given.pop(place, None)
        if found is None:
            self.table.pop(place, None)
            return False
        self.table[place] = found
        return True

    def now(self) -> float:
        return self.clock

    def epoll(self) -> Any:
        self.epoll_ = FakeEpoll(self)
        return self.epoll_


def address_of(reference: Any) -> int:
    found = ctypes.cast(reference, c_void_p).value
    assert found is not None
    return found


def structures(reference: Any, number: int) -> Iterator[Mmsghdr]:
    start = address_of(reference)
    for at in range(number):
        yield Mmsghdr.from_address(start + at * ctypes.sizeof(Mmsghdr))


def cut(payload: bytes, segment: int) -> Iterator[bytes]:
    """The datagrams that a payload is sent as."""
    if not segment or len(payload) <= segment:
        yield payload
        return
    for at in range(0, len(payload), segment):
        yield payload[at : at + segment]


def _gather(iov: int, number: int) -> bytes:
    parts = (Iovec.from_address(iov + at * ctypes.sizeof(Iovec)) for at in range(number))
    return b"".join(ctypes.string_at(part.base, part.size) for part in parts)


def _fill(at: Mmsghdr, incoming: Incoming) -> None:
    header = at.header
    if header.name:
        assert header.name_size >= len(incoming.client)
        ctypes.memmove(header.name, incoming.client, len(incoming.client))
        header.name_size = len(incoming.client)
    part = Iovec.from_address(header.iov)
    assert (header.iov_number, part.size) == (1, 65536)
    ctypes.memmove(part.base, incoming.payload, len(incoming.payload))
    at.size = len(incoming.payload)
    control = b""
    if incoming.drops:
        control += _control(socket.SOL_SOCKET, 40, struct.pack("=I", incoming.drops))
    if incoming.segment:
        control += _control(17, 104, struct.pack("=i", incoming.segment))
    if incoming.info is not None:
        control += _control(*incoming.info)
    assert header.control_size >= len(control), "a header wasn't renewed"
    ctypes.memmove(header.control, control, len(control))
    header.control_size = len(control)


def _control(level: int, kind: int, data: bytes) -> bytes:
    word = struct.calcsize("@N")
    space = (len(data) + word - 1) // word * word
    return HEAD.pack(HEAD.size + len(data), level, kind) + data.ljust(space, b"\0")


def controls(control: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + HEAD.size <= len(control):
        size, level, kind = HEAD.unpack_from(control, at)
        yield level, kind, control[at + HEAD.size : at + size]
        word = struct.calcsize("@N")
        at += (size + word - 1) // word * word


def client_ipv4(number: int, host: str = "192.0.2.7") -> bytes:
    """A client's sockaddr; each number is another port."""
    return socketcalls.sockaddr(ip_address(host), 1000 + number)


def client_mapped(number: int) -> bytes:
    """The same at a dual-stack listener."""
    return socketcalls.sockaddr(IPv6Address("::ffff:192.0.2.7"), 1000 + number)


def payloads(datagrams: Sequence[Datagram]) -> list[bytes]:
    return [one.payload for one in datagrams]
