# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP as a relay sees it: its own sockets, and the far ends, which are the tests' hands.

It follows Linux where an engine can get it wrong: tcp_poll, tcp_read_sock, tcp_splice_read,
tcp_recvmsg, tcp_check_urg, tcp_reset and __tcp_close of net/ipv4.

- What came before a reset stays readable. The error is reported once, to whichever call meets it
  first, and EPOLLERR lasts until then. End of file goes before the error where FIN had come.
- splice(2) stops at the urgent mark: with EAGAIN, or with 0 when FIN waits behind it.
- A send buffer with little room takes bytes, but says EPOLLOUT from a third on only.
- A closed socket goes on sending what it has, then FIN; but it sends a reset, and nothing else,
  when it has SO_LINGER 0 or was not read to its end.
"""

from __future__ import annotations

import errno
import os
import select
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.unit.relay.fake_kernel import FakeKernel

IN, PRI, OUT = select.EPOLLIN, select.EPOLLPRI, select.EPOLLOUT
ERR, HUP, RDHUP = select.EPOLLERR, select.EPOLLHUP, select.EPOLLRDHUP
ET = select.EPOLLET


def error(code: int) -> OSError:
    """The exception that a call of `os` raises for an errno."""
    return OSError(code, os.strerror(code))


class Listening:
    """A listening socket and those who wait to be accepted."""

    def __init__(self) -> None:
        self.queue: deque[Sock] = deque()

    def events(self) -> int:
        return IN if self.queue else 0


class Sock:
    """The relay's end of a connection, or a socket that is to become one."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.state = "new"  # then "connecting", "connected", "dead"
        self.from_ipv4 = False
        self.peer: Peer | None = None
        # receiving: segments, and positions in the stream as the kernel counts them
        self.queue: deque[bytearray] = deque()
        self.copied = 0
        self.arrived = 0
        self.urgent: int | None = None  # the mark's position
        self.urgent_here = False  # the byte at the mark has come (TCP_URG_VALID)
        self.inline = False
        self.fin = False
        self.error = 0
        # sending
        self.buffer = kernel.send_buffer
        self.unacknowledged = bytearray()
        self.sent = 0
        self.shut = False
        self.linger_zero = False
        self.closed: str | None = None  # "fin" or "reset": what the peer gets to see

    @property
    def room(self) -> int:
        return max(0, self.buffer - len(self.unacknowledged))

    @property
    def edge(self) -> tuple[object, ...]:
        """Changes whenever the kernel would wake those who wait for input."""
        return self.arrived, self.fin, self.state, self.error, self.urgent, self.urgent_here

    def events(self) -> int:
        """tcp_poll()."""
        if self.state == "connecting":
            return 0
        dead = self.state in ("new", "dead")
        mask = HUP if dead or (self.fin and self.shut) else 0
        if self.fin or dead:
            mask |= IN | RDHUP
        held = 1 if self.urgent == self.copied and not self.inline else 0
        if self.arrived - self.copied > held:
            mask |= IN
        if self.shut or dead or 3 * self.room >= self.buffer:
            mask |= OUT
        if self.urgent is not None and self.urgent_here:
            mask |= PRI
        return mask | (ERR if self.error else 0)

    def take_error(self) -> int:
        code, self.error = self.error, 0
        return code

    def receive(self, limit: int) -> bytes:
        """Take the next bytes of the first segment, up to the urgent mark."""
        if not self.queue:
            return b""
        if self.urgent is not None and self.urgent >= self.copied:
            limit = min(limit, self.urgent - self.copied)
        return self._consume(limit)

    def receive_byte(self, *, peek: bool) -> bytes | int:
        if self.urgent == self.copied and not self.inline and self.queue:
            self._consume(1)  # an ordinary receive steps over a mark that isn't inline
        if self.queue:
            return bytes(self.queue[0][:1]) if peek else self._consume(1)
        if self.fin:
            return b""
        if self.error:
            return -self.take_error()
        return b"" if self.state == "dead" else -errno.EAGAIN

    def _consume(self, count: int) -> bytes:
        segment = self.queue[0]
        data = bytes(segment[:count])
        del segment[:count]
        if not segment:
            self.queue.popleft()
        self.copied += len(data)
        if self.urgent is not None and self.copied > self.urgent:
            self.urgent = None
        self.kernel.progress += len(data)
        return data

    def writable(self) -> None:
        """Raise what a send would."""
        if self.error:
            raise error(self.take_error())
        if self.shut or self.state != "connected":
            raise error(errno.EPIPE)
        if not self.room:
            raise error(errno.EAGAIN)

    def send(self, data: bytes) -> None:
        assert len(data) <= self.room
        self.unacknowledged += data
        self.sent += len(data)
        self.kernel.progress += len(data)
        self.transmit()

    def transmit(self) -> None:
        """What the peer's window takes is acknowledged, read or not."""
        assert self.peer is not None
        count = max(0, self.peer.window - len(self.peer.inbox))
        self.peer.inbox += self.unacknowledged[:count]
        del self.unacknowledged[:count]

    def close(self) -> None:
        if self.linger_zero or self.queue or (self.peer is not None and self.peer.has_gone):
            self.closed = "reset"
            self.unacknowledged.clear()
        else:
            self.closed = "fin"


class Peer:
    """The far end of a connection: a client, or a server's accepted socket. The tests' hands."""

    def __init__(self, sock: Sock, *, is_client: bool) -> None:
        self.sock = sock
        self.is_client = is_client
        sock.kernel.peers += 1
        self.number = sock.kernel.peers  # tells its bytes from the others'
        sock.peer = self
        self.window = sock.kernel.window
        self.inbox = bytearray()  # in this end's kernel, not read yet
        self.received = bytearray()
        self.stream = bytearray()  # all that this end has sent, less urgent bytes that TCP dropped
        self.urgent_places: list[int] = []  # in the stream
        self.has_finished = False
        self.has_gone = False  # it has sent a reset
        self.marks: list[int] = []  # positions of urgent bytes among what came

    @property
    def saw(self) -> str:
        """What a receiver meets after the bytes that are there: "open", "fin", "reset"."""
        if self.sock.closed == "reset":
            return "reset"
        ended = self.sock.shut or self.sock.closed == "fin"
        return "fin" if ended and not self.sock.unacknowledged else "open"

    @property
    def got(self) -> bytes:
        """All bytes that came, read or not."""
        return bytes(self.received + self.inbox)

    def send(self, data: bytes) -> None:
        """Send a segment."""
        if self._is_over():
            return
        self.stream += data
        self._arrive(data)

    def send_urgent(self, byte: bytes) -> None:
        """Send one byte with MSG_OOB, in a segment of its own."""
        if self._is_over():
            return
        self.announce_urgent()
        self.urgent_places.append(len(self.stream))
        self.stream += byte
        self._arrive(byte)

    def announce_urgent(self, ahead: int = 0, *, here: bool = True) -> None:
        """tcp_check_urg(): a mark ``ahead`` bytes after what has arrived, its byte here or not."""
        sock = self.sock
        at_mark = sock.urgent is not None and sock.urgent == sock.copied
        if at_mark and not sock.inline and sock.queue:
            dropped = sock._consume(1)
            assert self.urgent_places
            place = self.urgent_places.pop()
            assert self.stream[place : place + 1] == dropped
            del self.stream[place]
        sock.urgent, sock.urgent_here = sock.arrived + ahead, here

    def _arrive(self, data: bytes) -> None:
        if self.sock.closed:
            self.sock.closed = "reset"  # nobody is left to read it
            return
        self.sock.queue.append(bytearray(data))
        self.sock.arrived += len(data)

    def finish(self) -> None:
        """Send FIN."""
        if not self._is_over():
            self.has_finished = True
            self.sock.fin = True

    def reset(self) -> None:
        """Send a reset: tcp_reset() at the relay's end."""
        if self.has_gone:
            return
        self.has_gone = True
        sock = self.sock
        if sock.closed or sock.state == "dead":
            return
        if sock.fin and sock.shut and not sock.unacknowledged:
            sock.state = "dead"  # the connection was over already
            return
        sock.error = errno.EPIPE if sock.fin else errno.ECONNRESET
        sock.state = "dead"
        sock.unacknowledged.clear()

    def read(self, count: int) -> bytes:
        """Read, as a program does; the window opens by as much."""
        data = bytes(self.inbox[:count])
        del self.inbox[:count]
        self.received += data
        if self.sock.closed != "reset" and not self.has_gone:
            self.sock.transmit()
        return data

    def _is_over(self) -> bool:
        return self.has_finished or self.has_gone or self.saw == "reset"
