# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel to play with behind the relay's seam (seam.py): descriptors, pipes, epoll, and faults.

TCP itself is in fake_tcp.py. Numbers are small in place of large: a page has 16 bytes.

- The lowest free descriptor is the next one. Using a closed one is a failed assertion.
- A pipe is full by slots, each with at most a page of one segment.
- epoll is level-triggered, and reports EPOLLHUP and EPOLLERR whether asked or not.
- Any call can be made to fail: `FakeKernel.inject`.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from collections import deque
from ipaddress import IPv4Address
from typing import TypeVar, cast

from hardsplice.kernel import socketcalls
from hardsplice.relay.tcp.seam import Kernel
from hardsplice.sandbox.address_book import Pointer
from tests.unit.relay.fake_tcp import ERR, ET, HUP, Listening, Peer, Sock, error

PAGE = 16  # bytes in a slot of a pipe
FIRST = 3  # the first descriptor handed out
CLIENT = (IPv4Address("192.0.2.7"), 40000)  # where every client comes from

Thing = TypeVar("Thing")


class Pipe:
    """A pipe: slots with at most a page of one segment each."""

    def __init__(self, slots: int) -> None:
        self.capacity = slots
        self.slots: deque[bytearray] = deque()
        self.ends = 2


class ReadEnd:
    """A pipe's end for reading."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe


class WriteEnd:
    """A pipe's end for writing."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe


class Null:
    """/dev/null, at the place of a listener that isn't there."""


class FakeEpoll:
    """Level- or edge-triggered, and fair: whoever was reported goes to the end of the line."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.masks: dict[int, int] = {}
        self.told: dict[int, object] = {}  # the last edge that was reported, by descriptor
        self.blocked = False  # the last wait found nothing and had time to spend
        self.timeout = -1.0
        self.changes = 0

    def register(self, fd: int, mask: int) -> None:
        assert fd not in self.masks, f"{fd} is watched already"
        self._change(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        assert fd in self.masks, f"{fd} is not watched"
        self._change(fd, mask)

    def _change(self, fd: int, mask: int) -> None:
        self.kernel.fail("epoll_ctl")
        assert isinstance(self.kernel.table.get(fd), Sock | Listening), f"{fd} is nothing to watch"
        self.masks[fd] = mask
        self.told.pop(fd, None)  # a change makes epoll look again
        self.changes += 1

    def unregister(self, fd: int) -> None:
        assert fd in self.kernel.table, f"{fd} is closed"
        del self.masks[fd]
        self.changes += 1

    def ready(self, most: int = sys.maxsize) -> list[tuple[int, int]]:
        """What a wait would report now; the first so many of it."""
        found: list[tuple[int, int]] = []
        for fd, mask in self.masks.items():
            thing = self.kernel.table[fd]
            assert isinstance(thing, Sock | Listening)
            events = thing.events() & (mask | ERR | HUP)
            if mask & ET and isinstance(thing, Sock) and self.told.get(fd) == thing.edge:
                continue
            if events:
                found.append((fd, events))
                if len(found) == most:
                    break
        return found

    def poll(self, timeout: float | None, most: int) -> list[tuple[int, int]]:
        found = self.ready(most)
        for fd, _ in found:
            self.masks[fd] = self.masks.pop(fd)
            thing = self.kernel.table[fd]
            if isinstance(thing, Sock):
                self.told[fd] = thing.edge
        self.blocked = not found and timeout != 0
        self.timeout = -1.0 if timeout is None else timeout  # both wait for ever
        return found


class FakeKernel(Kernel):
    """The seam's other side, and the knobs of the world."""

    page_size = PAGE

    def __init__(
        self,
        *,
        descriptors: int = 200,
        send_buffer: int = 96,
        window: int = 64,
        pipe_slots: int = 4,
    ) -> None:
        self.table: dict[int, object] = {}
        self._low = FIRST  # everything below it is taken
        self.limit = descriptors
        self.send_buffer = send_buffer
        self.window = window
        self.pipe_slots = pipe_slots
        self.pipes_open = 0
        self.pipes_most = 1_000_000  # past it: ENFILE, as past pipe-user-pages-hard
        self.files_short = False  # the whole system has none left: ENFILE
        self.clock = 1000.0
        self.progress = 0  # grows with whatever a relay achieves
        self.behaviour: dict[bytes, str] = {}  # of targets, by address; "at once" if not here
        self.pending: list[Sock] = []  # connects that wait for the test's answer
        self.peers = 0
        self.servers: list[Peer] = []  # in the order in which they were connected
        self.faults: dict[str, deque[Exception | None]] = {}  # by call, in order; None is none
        self.given: dict[int, Listening] = {}  # what the monitor has for whoever asks, by place
        self.hit: list[Sock] = []  # sockets whose call met such a fault
        self.calls: list[str] = []
        self._peer: Sock | None = None  # who was accepted last, if that was asked for

    # --- the test's side ---

    def listen(self) -> int:
        return self._install(Listening())

    def listeners(self) -> list[Listening]:
        return [thing for thing in self.table.values() if isinstance(thing, Listening)]

    def reserve(self) -> int:
        """A place for a listener that may come at run time."""
        return self._install(Null())

    def give(self, place: int) -> None:
        """Have a listener for that place, once the relay asks for it."""
        self.given[place] = Listening()

    def sockets(self, count: int) -> list[int]:
        """Sockets as a monitor sends them."""
        return [self._install(Sock(self)) for _ in range(count)]

    def dial(self, listener: int, *, ipv4: bool = False) -> Peer:
        """A client that the kernel has connected and that waits to be accepted."""
        sock = Sock(self)
        sock.state, sock.from_ipv4 = "connected", ipv4
        self._get(listener, Listening).queue.append(sock)
        return Peer(sock, is_client=True)

    def answer(self, sock: Sock, *, refuse: bool = False) -> None:
        """Decide a connect that is under way."""
        self.pending.remove(sock)
        if sock.closed:
            return
        if refuse:
            sock.state, sock.error = "dead", errno.ECONNREFUSED
        else:
            self._establish(sock)

    def inject(self, call: str, *faults: int | Exception | None) -> None:
        """Let the next calls fail so, one after the other; None lets one through."""
        self.faults.setdefault(call, deque()).extend(
            error(fault) if isinstance(fault, int) else fault for fault in faults
        )

    def count(self, kind: type[object]) -> int:
        return sum(isinstance(thing, kind) for thing in self.table.values())

    # --- common ---

    def fail(self, call: str, sock: Sock | None = None) -> None:
        self.calls.append(call)
        queue = self.faults.get(call)
        if queue:
            fault = queue.popleft()
            if fault is not None:
                if sock is not None:
                    self.hit.append(sock)
                raise fault

    def _code(self, call: str, sock: Sock | None = None) -> int:
        """For the calls that return negated errnos."""
        try:
            self.fail(call, sock)
        except OSError as fault:
            return -(fault.errno or errno.EIO)
        return 0

    def lowest(self) -> int:
        """The descriptor that comes next."""
        while self._low in self.table:
            self._low += 1
        return self._low

    def _free(self, fd: int) -> None:
        del self.table[fd]
        self._low = min(self._low, fd)

    def _install(self, thing: object) -> int:
        fd = self.lowest()
        if fd >= self.limit:
            raise error(errno.EMFILE)
        self.table[fd] = thing
        return fd

    def _get(self, fd: int, kind: type[Thing]) -> Thing:
        assert fd in self.table, f"descriptor {fd} is closed"
        thing = self.table[fd]
        assert isinstance(thing, kind), f"descriptor {fd} is a {type(thing).__name__}"
        return thing

    def _establish(self, sock: Sock) -> Peer:
        sock.state = "connected"
        self.servers.append(Peer(sock, is_client=False))
        return self.servers[-1]

    # --- the seam ---

    def accept(self, listener: int) -> int:
        waiting = self._get(listener, Listening).queue
        code = self._code("accept")
        if code:
            return code
        if not waiting:
            return -errno.EAGAIN
        if self.files_short:
            return -errno.ENFILE
        try:
            fd = self._install(waiting[0])
        except OSError:
            return -errno.EMFILE
        self._accepted = waiting.popleft()
        self._peer = None
        self.progress += 1
        return fd

    def accept_from(self, listener: int) -> int:
        fd = self.accept(listener)
        if fd >= 0:
            self._peer = self._accepted
        return fd

    def from_ipv4(self) -> bool:
        assert self._peer is not None, "it was not asked for"
        return self._peer.from_ipv4

    def accepted_from(self) -> tuple[bytes, int]:
        assert self._peer is not None, "it was not asked for"
        return socketcalls.endpoint(socketcalls.sockaddr(*CLIENT))

    def connect(self, fd: int, target: Pointer) -> int:
        """As over loopback: EINPROGRESS first, the outcome to whoever asks after it."""
        sock = self._get(fd, Sock)
        code = self._code("connect", sock)
        if code:
            return code
        assert sock.state == "new", f"descriptor {fd} was connected before"
        self.progress += 1
        how = self.behaviour.get(target.sockaddr, "at once")
        if how == "refuse at once":
            sock.state = "dead"
            return -errno.ECONNREFUSED
        if how == "refuse":
            sock.state, sock.error = "dead", errno.ECONNREFUSED
        elif how == "pend":
            sock.state = "connecting"
            self.pending.append(sock)
        else:
            peer = self._establish(sock)
            if how == "no delay":
                return 0
            if how == "reset":
                peer.send(b"last words")
                peer.reset()
        return -errno.EINPROGRESS

    def connected(self, fd: int) -> int:
        """socketcalls.connected(): getpeername(2), and SO_ERROR where it has no answer."""
        sock = self._get(fd, Sock)
        code = self._code("connected", sock)
        if code or sock.state == "connected":
            return code
        code = sock.take_error()
        if code in (errno.ECONNRESET, errno.EPIPE):
            return -errno.ECONNRESET
        return -(code or errno.EINPROGRESS)

    def shutdown(self, fd: int, how: int) -> int:
        sock = self._get(fd, Sock)
        assert how == socket.SHUT_WR
        assert not sock.shut, f"descriptor {fd} was shut down already"
        code = self._code("shutdown", sock)
        if code == 0 and sock.state == "dead":
            code = -errno.ENOTCONN
        if code == 0:
            sock.shut = True
            self.progress += 1
        return code

    def abort(self, fd: int) -> int:
        self.calls.append("abort")
        self._get(fd, Sock).linger_zero = True
        return 0

    def spare(self, fd: int) -> int:
        self.calls.append("spare")
        self._get(fd, Sock).linger_zero = False
        return 0

    def limit_unsent(self, fd: int, size: int) -> int:
        """TCP_NOTSENT_LOWAT: from now on there is room for less, maybe for nothing."""
        self.calls.append("limit_unsent")
        assert size > 0
        sock = self._get(fd, Sock)
        sock.buffer = max(sock.buffer // 2, 4)
        return 0

    def keep_alive(self, fd: int) -> None:
        self.calls.append("keep_alive")
        self._get(fd, Sock)

    def keep_urgent_inline(self, fd: int) -> int:
        self.calls.append("keep_urgent_inline")
        self._get(fd, Sock).inline = True
        return 0

    def at_mark(self, fd: int) -> bool:
        sock = self._get(fd, Sock)
        return sock.urgent is not None and sock.urgent == sock.copied

    def receive_byte(self, fd: int, flags: int) -> bytes | int:
        sock = self._get(fd, Sock)
        code = self._code("receive_byte", sock)
        return code or sock.receive_byte(peek=bool(flags & socket.MSG_PEEK))

    def send_byte(self, fd: int, byte: bytes, flags: int) -> int:
        sock = self._get(fd, Sock)
        assert flags == socket.MSG_OOB
        assert len(byte) == 1
        try:
            self.fail("send_byte", sock)
            sock.writable()
        except OSError as fault:
            return -(fault.errno or errno.EIO)
        assert sock.peer is not None
        sock.peer.marks.append(sock.sent)
        sock.send(byte)
        return 1

    def unsent(self, fd: int) -> int:
        return len(self._get(fd, Sock).unacknowledged)

    def splice(
        self, source: int, sink: int, count: int, offset_in: None, offset_out: None, flags: int
    ) -> int:
        assert flags == os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        assert count > 0
        if isinstance(self.table.get(source), Sock):
            return self._splice_in(self._get(source, Sock), self._get(sink, WriteEnd).pipe, count)
        return self._splice_out(self._get(source, ReadEnd).pipe, self._get(sink, Sock), count)

    def _splice_in(self, sock: Sock, pipe: Pipe, count: int) -> int:
        self.fail("splice in", sock)
        assert not pipe.slots, "a pipe that holds bytes is used for others"
        moved = 0
        while moved < count and len(pipe.slots) < pipe.capacity:
            data = sock.receive(min(PAGE, count - moved))
            if not data:
                break
            pipe.slots.append(bytearray(data))
            moved += len(data)
        if moved or sock.fin:
            return moved
        if sock.error:
            raise error(sock.take_error())
        if sock.state == "dead":
            return 0
        raise error(errno.EAGAIN)

    def _splice_out(self, pipe: Pipe, sock: Sock, count: int) -> int:
        assert pipe.slots, "an empty pipe has nothing to give"
        self.fail("splice out", sock)
        sock.writable()
        moved = 0
        while moved < count and pipe.slots and sock.room:
            data = bytes(pipe.slots[0][: min(sock.room, count - moved)])
            del pipe.slots[0][: len(data)]
            if not pipe.slots[0]:
                pipe.slots.popleft()
            sock.send(data)
            moved += len(data)
        return moved

    def close(self, fd: int) -> None:
        self.calls.append("close")
        thing = self._get(fd, object)
        self._free(fd)
        for epoll in self.table.values():
            if isinstance(epoll, FakeEpoll):
                epoll.masks.pop(fd, None)
        self.progress += 1
        if isinstance(thing, Sock):
            thing.close()
        elif isinstance(thing, ReadEnd | WriteEnd):
            thing.pipe.ends -= 1
            self.pipes_open -= thing.pipe.ends == 0

    def open_pipe(self) -> tuple[int, int]:
        self.fail("open_pipe")
        if self.files_short or self.pipes_open >= self.pipes_most:
            raise error(errno.ENFILE)
        pipe = Pipe(self.pipe_slots)
        read = self._install(ReadEnd(pipe))
        try:
            write = self._install(WriteEnd(pipe))
        except OSError:
            self._free(read)
            raise
        self.pipes_open += 1
        return read, write

    def resize_pipe(self, fd: int, size: int) -> int:
        self.fail("resize_pipe")
        pipe = self._get(fd, ReadEnd).pipe
        return pipe.capacity * PAGE

    def take_listener(self, place: int) -> bool:
        """unotify.request_descriptor(): the monitor puts there what it has for it, or /dev/null."""
        self.calls.append("take_listener")
        assert isinstance(self.table.get(place), Listening | Null), f"{place} is no place for one"
        for epoll in self.table.values():
            if isinstance(epoll, FakeEpoll):
                assert place not in epoll.masks, f"{place} is watched still"
        self.table[place] = self.given.pop(place, None) or Null()
        self.progress += 1
        return isinstance(self.table[place], Listening)

    def now(self) -> float:
        return self.clock

    def epoll(self) -> select.epoll:
        made = FakeEpoll(self)
        self._install(made)
        return cast(select.epoll, made)
