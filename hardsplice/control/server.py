# SPDX-License-Identifier: GPL-2.0-or-later
"""Serves the control socket on the host monitor's loop: accepts, checks the client, reads, writes.

It never waits: sockets are non-blocking, and what a client does not receive is written when it
does. Nor does it grow: at most CONNECTIONS are open, each holds one request and one answer, and no
more is read before that answer is sent. A client that takes too long is disconnected; if there is
no room for a new one, the connection that has been idle longest is closed, or else the one that has
taken longest to send its request or to receive its answer. So slow clients keep nobody waiting,
however many there are; and a request that has arrived when its connection is accepted is served
before any other connection is closed.

*Which users.* The socket's mode keeps others out, and SO_PEERCRED is checked as well. It gives IDs
as this process's own user namespace maps them (from_kuid_munged). An ordinary user's monitor is in
a namespace that maps that one user; all others, root included, appear as the overflow ID there and
can't be distinguished, so they are all refused. A monitor that root started has no user namespace
of its own, and sees every ID as it is.

*From which namespace.* The accepted end of a UNIX connection belongs to the network namespace of
the client (unix_stream_connect, net/unix/af_unix.c), which SO_NETNS_COOKIE identifies. Only clients
in the host's namespace are accepted: a COMMAND runs as the same user and sees the same files, and
must not open ports for itself. With --control-from-namespace, those in the served namespace are
accepted too, and their requests are marked (routes.py says what they may request).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from hardsplice.control.http import (
    CONTINUE,
    Continue,
    Parser,
    Refusal,
    Request,
    Response,
    encode,
)
from hardsplice.control.world import refusal
from hardsplice.ipc.loop import Alarm, Loop
from hardsplice.kernel import socketcalls

CONNECTIONS = 64
ACCEPTED_A_TURN = 8
CHUNK = 16 * 1024  # bytes read at once
REQUEST_SECONDS = 10.0  # for a request to come, or an answer to be taken
IDLE_SECONDS = 60.0  # between two requests
LEAVE_SECONDS = 1.0  # for a peer to take note that it was refused
CHECK_SECONDS = 1.0  # between two checks for peers that are late
RETRY_SECONDS = 1.0  # until accepting is tried again when there was no descriptor

# No client was there after all.
_NOT_OURS = (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPROTO)

Respond = Callable[[Response], None]
Handle = Callable[[Request, Respond], None]


@dataclass(frozen=True, slots=True)
class Admission:
    """Which clients are accepted."""

    users: frozenset[int] | None  # effective ids, as this process sees them; None is everybody
    namespace: int | None  # the network namespace's cookie; None where the kernel can't tell
    served: int | None = None  # that of the one that is served, where it is to be heard too

    def objection(self, user: int, namespace: int | None) -> str | None:
        """Why a peer is refused, if it is."""
        if self.users is not None and user not in self.users:
            return "this socket is for the user who started hardsplice: connect as that user"
        if self.namespace is None or namespace == self.namespace or self.is_inside(namespace):
            return None
        return "this socket is for the network namespace in which hardsplice was started"

    def is_inside(self, namespace: int | None) -> bool:
        """Whether a peer is in the namespace that is served, and not in ours."""
        return namespace is not None and namespace == self.served != self.namespace


class Connection:
    """One peer: either a request of it is read, or an answer to it is written."""

    __slots__ = (
        "answering", "closing", "deadline", "fd", "inside", "is_known", "leaving", "parser",
        "unwritten", "watched",
    )  # fmt: skip

    def __init__(self, fd: int, deadline: float) -> None:
        self.fd = fd
        self.parser = Parser()
        self.deadline = deadline
        self.watched = select.EPOLLIN
        self.answering = False  # a request was handed on, or its answer is on its way
        self.unwritten = b""  # what the peer has not taken of that answer
        self.closing = False  # hang up once all is written
        self.is_known = False  # it has had an answer
        self.inside = False  # the peer is in the namespace that is served
        self.leaving = False  # ... but not before the peer had a chance to read it

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a request has come, and no answer is on its way."""
        return self.parser.is_idle and not self.answering

    @property
    def is_slow(self) -> bool:
        """Whether we wait for its peer: for the rest of a request, or to take an answer."""
        return not self.answering or bool(self.unwritten)


class Server:
    """The control socket and its connections."""

    def __init__(self, listener: int, admission: Admission, loop: Loop, handle: Handle) -> None:
        self.listener = listener
        self.admission = admission
        self.loop = loop
        self.handle = handle
        self.connections: dict[int, Connection] = {}  # the one that was heard longest ago first
        self.refused = 0  # peers that were not admitted
        self.listening = False
        self.clock = Alarm(loop, self._check_late)

    def start(self) -> None:
        """Begin to accept."""
        self._listen()

    # --- accepting --------------------------------------------------------------------------------

    def _listen(self) -> None:
        if not self.listening:
            self.listening = True
            self.loop.add(self.listener, self._accept)

    def _stop_listening(self) -> None:
        self.listening = False
        self.loop.remove(self.listener)

    def _accept(self) -> None:
        for number in range(ACCEPTED_A_TURN):
            leaves = self._spare() if len(self.connections) >= CONNECTIONS else None
            if leaves is None and len(self.connections) >= CONNECTIONS:
                self._stop_listening()  # until one is closed
                return
            fd = socketcalls.accept4(self.listener)
            if fd < 0:
                # No descriptor, or no memory: only of the first it is sure that somebody is there.
                if -fd not in _NOT_OURS and number == 0:
                    self._make_do()
                return
            if leaves is not None:
                self._close(leaves)
            self._meet(fd)

    def _make_do(self) -> None:
        """There is no descriptor for a new connection: have that of another, or wait for one."""
        leaves = self._spare()
        if leaves is not None:
            self._close(leaves)
        else:
            self._stop_listening()
            self.loop.after(RETRY_SECONDS, self._listen)

    def _spare(self) -> Connection | None:
        """A connection that can go: one that was refused, so that those who are not heard can't
        push others out; else the one that is idle longest since its last answer; else the one that
        we have waited for longest. Who waits for us stays.
        """
        found = self.connections.values()
        refused = (one for one in found if one.leaving)
        idle = (one for one in found if one.is_idle and one.is_known)
        slow = (one for one in found if one.is_slow)
        return (
            next(refused, None)
            or next(idle, None)
            or min(slow, key=lambda one: one.deadline, default=None)
        )

    def _meet(self, fd: int) -> None:
        connection = Connection(fd, time.monotonic() + REQUEST_SECONDS)
        self.connections[fd] = connection
        self.loop.add(fd, lambda: self._on_event(connection))
        self._watch_clock()
        who, where = socketcalls.peer_user(fd), socketcalls.namespace_cookie(fd)
        objection = self.admission.objection(who, where)
        if objection is not None:
            self.refused += 1
            self._dismiss(connection, refusal(403, objection))
            return
        connection.inside = self.admission.is_inside(where)
        self._read(connection)

    # --- a peer's turn ----------------------------------------------------------------------------

    def _on_event(self, connection: Connection) -> None:
        self.connections[connection.fd] = self.connections.pop(connection.fd)
        if connection.unwritten:
            self._write(connection)
        elif not connection.watched:
            self._close(connection)  # it hung up: nobody is left to answer
        else:
            self._read(connection)

    def _read(self, connection: Connection) -> None:
        data = socketcalls.receive(connection.fd)
        if data == -errno.EAGAIN:
            return
        if isinstance(data, int):
            data = b""
        if not data:
            self._close(connection)
            return
        if connection.parser.is_idle:
            connection.deadline = time.monotonic() + REQUEST_SECONDS
        connection.parser.feed(data)
        self._advance(connection)

    def _advance(self, connection: Connection) -> None:
        """Take the next thing that the parser has. One request a turn: others want theirs."""
        if connection.fd < 0:
            return
        event = connection.parser.next()
        if isinstance(event, Continue):
            if socketcalls.send(connection.fd, CONTINUE) != len(CONTINUE):
                self._close(connection)  # it takes nothing, and yet it waits for that
                return
            event = connection.parser.next()
        if isinstance(event, Request):
            self._serve(connection, event)
        elif isinstance(event, Refusal):
            self._dismiss(connection, refusal(event.status, event.reason))
        else:
            self._watch(connection, select.EPOLLIN)

    def _serve(self, connection: Connection, request: Request) -> None:
        connection.answering = True
        connection.closing = not request.keep_alive
        connection.deadline = time.monotonic() + REQUEST_SECONDS
        is_open = True

        def respond(response: Response) -> None:
            nonlocal is_open
            if is_open and connection.fd >= 0:
                is_open = False
                self._answer(connection, response, with_body=request.method != "HEAD")

        self.handle(replace(request, inside=connection.inside), respond)
        if is_open:
            self._watch(connection, 0)  # the answer comes later; nothing is read until then

    def _answer(
        self, connection: Connection, response: Response, *, with_body: bool = True
    ) -> None:
        connection.answering = True
        connection.closing = connection.closing or response.close
        response = replace(response, close=connection.closing)
        connection.unwritten = encode(response, with_body=with_body)
        self._write(connection)

    def _write(self, connection: Connection) -> None:
        sent = socketcalls.send(connection.fd, connection.unwritten)
        if sent >= 0:
            connection.unwritten = connection.unwritten[sent:]
        elif sent != -errno.EAGAIN:
            self._close(connection)
            return
        if connection.unwritten:
            self._watch(connection, select.EPOLLOUT)
        elif connection.leaving:
            self._leave(connection)
        elif connection.closing:
            self._close(connection)
        else:
            self._answered(connection)

    def _dismiss(self, connection: Connection, response: Response) -> None:
        """Answer a peer from which nothing more is read."""
        connection.leaving = True
        self._answer(connection, response)

    def _leave(self, connection: Connection) -> None:
        """Wait a moment for the peer to hang up: if we did, what it is still sending would be an
        error to it, and the answer be lost on it.
        """
        connection.deadline = time.monotonic() + LEAVE_SECONDS
        socketcalls.shutdown(connection.fd, socket.SHUT_WR)
        self._watch(connection, 0)

    def _answered(self, connection: Connection) -> None:
        connection.answering, connection.is_known = False, True
        connection.deadline = time.monotonic() + IDLE_SECONDS
        self._listen()  # there is one again that can make room
        if connection.parser.is_idle:
            self._watch(connection, select.EPOLLIN)
            return
        # It sent more already. What it holds goes first; until then nothing is read.
        connection.deadline = time.monotonic() + REQUEST_SECONDS
        self._watch(connection, 0)
        self.loop.after(0, lambda: self._advance(connection))

    def _watch(self, connection: Connection, events: int) -> None:
        if connection.watched != events:
            connection.watched = events
            self.loop.modify(connection.fd, events)

    # --- the end ----------------------------------------------------------------------------------

    def _watch_clock(self) -> None:
        """Look for late peers while there are any at all: an idle monitor sleeps."""
        if self.connections:
            self.clock.set(CHECK_SECONDS)
        else:
            self.clock.cancel()

    def _check_late(self) -> None:
        now = time.monotonic()
        for connection in [one for one in self.connections.values() if one.deadline <= now]:
            self._close(connection)
        self._watch_clock()

    def _close(self, connection: Connection) -> None:
        fd, connection.fd = connection.fd, -1
        connection.unwritten = b""
        del self.connections[fd]
        self.loop.remove(fd)
        os.close(fd)
        self._listen()
        self._watch_clock()
