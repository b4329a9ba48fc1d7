# SPDX-License-Identifier: GPL-2.0-or-later
"""The server of the ports of many containers: a service of one host monitor, for all programs that
an engine starts for one user and one network namespace.

Each program is a client (frontends/offers.py), whose ports live as long as its connection does. The
server ends when it has had no client for a while. It is locked down, and so can't remove its
socket: a shell that was started before waits for our end on a pipe, and removes it then, unless
another server has a new one at that path.

A client is a program of our own user, which could end us as well. What is checked all the same is
what a mistake could be: who it is, that a listener is one, where it is said to be, and in the
network namespace that the server was started in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence
from functools import partial

from hardsplice.frontends import offers, packets
from hardsplice.frontends.offers import Answer, Offer
from hardsplice.frontends.reload import Reload
from hardsplice.ipc.channel import close_all
from hardsplice.ipc.loop import Alarm
from hardsplice.ipc.messages import MalformedError
from hardsplice.kernel import passed, socketcalls
from hardsplice.kernel.scm import Messages
from hardsplice.model.errors import HardspliceError, reason_of
from hardsplice.model.forward import Forward
from hardsplice.model.spec import Address
from hardsplice.monitor.host import HostMonitor
from hardsplice.net import listeners

OFFERING = 64  # clients that have not said all yet; more than starters, who wait for each other
PORTS = 1 << 16  # of one client
SECONDS = 10.0  # that a client may take to say it
IDLE_SECONDS = 2.0  # without a client
AGAIN_SECONDS = 1.0  # until what failed is tried again: accepting, and removing a port

_REMOVER = 'read -r _; exec find "$1" -maxdepth 0 -inum "$2" -exec rm -f {} + 2>/dev/null'
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_CUT = socket.MSG_TRUNC | socket.MSG_CTRUNC


class Server:
    """The socket, from set-up on (app.frontend.Service)."""

    def __init__(self, path: str) -> None:
        """Make it; HardspliceError where that can't be done."""
        try:
            self._listener = packets.listen(path)
        except OSError as error:
            raise HardspliceError("bind", f"socket {path}", reason_of(error)) from error
        self._held = _start_remover(path)
        self._users = frozenset({0, os.geteuid()})  # as we see them now, and once we have ours
        self._messages = Messages(offers.SIZE + 1, offers.FDS)

    @property
    def descriptors(self) -> Sequence[int]:
        """What the host monitor keeps for it."""
        return [self._listener.fileno(), *([] if self._held is None else [self._held])]

    def serve(self, monitor: HostMonitor) -> None:
        """Begin to serve."""
        Clients(self._listener.fileno(), self._users, self._messages, monitor).start()


def _start_remover(path: str) -> int | None:
    """Start what removes the socket once the descriptor that is returned is closed everywhere; None
    where there is no shell: the next server replaces the socket.
    """
    waits, held = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    others = [(os.POSIX_SPAWN_DUP2, null, one) for one in (1, 2)]
    try:
        os.posix_spawn(
            "/bin/sh",
            ["hardsplice-remover: /bin/sh", "-c", _REMOVER, "sh", path, str(os.lstat(path).st_ino)],
            {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            file_actions=[(os.POSIX_SPAWN_DUP2, waits, 0), *others],
            setsigdef=[signal.SIGPIPE],
        )
    except OSError:
        os.close(held)
        return None
    finally:
        os.close(waits)
        os.close(null)
    return held


class Clients:
    """All that are connected."""

    def __init__(
        self, listener: int, users: frozenset[int], messages: Messages, monitor: HostMonitor
    ) -> None:
        self._listener = listener
        self.users = users
        self.messages = messages
        self.loop, self.registry = monitor.loop, monitor.registry
        self.check_room = monitor.host.check_room
        self._namespace = socketcalls.namespace_cookie(listener)
        self._all: set[Client] = set()
        self._offering: dict[Client, None] = {}  # those that have not said all, the oldest first
        self._idle_since = time.monotonic()
        self._idle = Alarm(self.loop, self._end_if_idle)
        self._again = Alarm(self.loop, self._listen)

    def start(self) -> None:
        """Begin to accept, and to wait for the first one."""
        self._listen()
        self._idle.set(IDLE_SECONDS)

    def _listen(self) -> None:
        self.loop.add(self._listener, self._accept)

    def _accept(self) -> None:
        fd = socketcalls.accept4(self._listener)
        if fd in (-errno.EMFILE, -errno.ENFILE):
            self.loop.remove(self._listener)
            self._again.set(AGAIN_SECONDS)
        if fd < 0:
            return
        if socketcalls.peer_user(fd) not in self.users:
            os.close(fd)
            return
        client = Client(fd, self)
        self._all.add(client)
        self._offering[client] = None
        if len(self._offering) > OFFERING:
            next(iter(self._offering)).dismiss()

    def has_offered(self, client: Client) -> None:
        """One of them has said all, or ended before."""
        del self._offering[client]

    def left(self, client: Client) -> None:
        """One of them has ended."""
        self._all.discard(client)
        if not self._all:
            self._idle_since = time.monotonic()
            self._idle.set(IDLE_SECONDS)

    def _end_if_idle(self) -> None:
        if self._all:
            return
        left = self._idle_since + IDLE_SECONDS - time.monotonic()
        if left > 0:
            self._idle.set(left)
        else:
            self.loop.stop(0)

    def refuse(self, fd: int, forward: Forward) -> None:
        """HardspliceError where ``fd`` is not the forward's listener, or not like one of ours."""
        if not (
            listeners.is_listener(fd, forward)
            and listeners.is_sound(fd, forward.protocol)
            and listeners.is_bound_to(fd, forward.address)
        ):
            raise HardspliceError("serve", forward.where, "what was passed is not its listener")
        if not passed.never_blocks(fd):
            raise HardspliceError("serve", forward.where, "its listener is one that blocks")
        if self._namespace not in (None, socketcalls.namespace_cookie(fd)):
            reason = "its listener belongs to another network namespace than the server"
            raise HardspliceError("serve", forward.where, reason)


class Client:
    """One program: what it has said so far, and its ports."""

    def __init__(self, fd: int, clients: Clients) -> None:
        self._fd = fd
        self._clients = clients
        self._offered: deque[tuple[Forward, int]] = deque()
        self._is_offering = True
        self.ports: dict[int, Forward] = {}
        self._ends: int | None = None
        self._moves: int | None = None
        self._reload: Reload | None = None
        self._is_busy = False  # a port is being added, or moved
        self._is_leaving = False
        self._last = b""  # what it is told at its end
        clients.loop.add(fd, self._hear)
        self._late: int | None = clients.loop.after(SECONDS, self._check_late)  # a timer

    # --- what it says -----------------------------------------------------------------------------

    def _hear(self) -> None:
        try:
            data, fds, flags = self._clients.messages.recvmsg(self._fd, _FLAGS)
        except BlockingIOError:
            return
        except OSError:
            self._leave()
            return
        if not (data or fds) or not self._is_offering:
            close_all(fds)
            self._last = offers.ENDED if data else b""
            self._leave()
            return
        try:
            if flags & _CUT:
                raise MalformedError("a message that is too long, or has too many descriptors")
            self._take(offers.decode(data, fds))
        except MalformedError as error:
            close_all(fds)
            self._fail(HardspliceError("use", "what was asked for", str(error)))

    def _take(self, offer: Offer) -> None:
        """One message of its offer, whose descriptors are ours if this returns."""
        many = len(self._offered) + len(offer.forwards)
        is_twice = (self._ends is not None and offer.ends is not None) or (
            self._moves is not None and offer.moves is not None
        )
        if many > PORTS or is_twice:
            raise MalformedError("more than one program has")
        self._offered.extend(zip(offer.forwards, offer.listeners, strict=True))
        self._ends = self._ends if offer.ends is None else offer.ends
        self._moves = self._moves if offer.moves is None else offer.moves
        if not offer.is_last:
            return
        self._said_all()
        try:
            there = len(self._clients.registry.list())
            self._clients.check_room(there + len(self._offered))
        except HardspliceError as failure:
            self._fail(failure, is_full=True)
            return
        self._add_next()

    def _said_all(self) -> None:
        if self._is_offering:
            self._is_offering = False
            if self._late is not None:
                self._clients.loop.cancel(self._late)
            self._clients.has_offered(self)

    def dismiss(self) -> None:
        """There are too many that have not said all, and this is the oldest of them."""
        self._fail(HardspliceError("use", "what was asked for", "too many others ask"))

    def _check_late(self) -> None:
        self._late = None
        reason = f"it was not said within {SECONDS:.0f} seconds"
        self._fail(HardspliceError("use", "what was asked for", reason))

    # --- serving it -------------------------------------------------------------------------------

    def _add_next(self) -> None:
        self._is_busy = False
        if self._is_leaving:
            self._remove_all()
            return
        if not self._offered:
            self._serve()
            return
        forward, fd = self._offered[0]

        def opened() -> int:
            self._offered.popleft()
            return fd

        def added(outcome: Forward | HardspliceError) -> None:
            if isinstance(outcome, Forward):
                self.ports[outcome.id] = outcome
            elif not self._is_leaving:
                self._is_busy = False
                self._fail(outcome)
                return
            self._add_next()

        try:
            self._clients.refuse(fd, forward)
        except HardspliceError as failure:
            self._fail(failure)
            return
        self._is_busy = True
        self._clients.registry.add(forward, added, opened)

    def _serve(self) -> None:
        """All ports are there."""
        loop = self._clients.loop
        try:
            if self._ends is not None:
                if not passed.is_pipe(self._ends):  # but its own connection, perhaps
                    raise OSError(errno.EINVAL, "it is no pipe")
                loop.add(self._ends, self._on_end, 0)
            if self._moves is not None:
                self._reload = Reload(
                    self._moves, self._clients.users, loop, self._clients.registry, self
                )
        except OSError as error:
            reason = f"a descriptor that was passed can't be watched: {reason_of(error)}"
            self._fail(HardspliceError("use", "what was asked for", reason))
            return
        if socketcalls.send(self._fd, offers.SERVED) < 0:
            self._leave()

    def begin_move(self) -> bool:
        """Whether its ports may be changed now, until ``end_move``."""
        is_free = not (self._is_busy or self._is_leaving)
        self._is_busy = self._is_busy or is_free
        return is_free

    def end_move(self, target: Address) -> None:
        """They have been changed, and lead there."""
        self._is_busy = False
        for byte in offers.moved(target):
            socketcalls.send(self._fd, byte)
        if self._is_leaving:
            self._remove_all()

    # --- its end ----------------------------------------------------------------------------------

    def _on_end(self) -> None:
        self._last = offers.ENDED
        self._leave()

    def _fail(self, failure: HardspliceError, *, is_full: bool = False) -> None:
        self._last = Answer(failure, is_full).encode()
        self._leave()

    def _leave(self) -> None:
        """End all that there is of it, once nothing is under way."""
        if self._is_leaving:
            return
        self._is_leaving = True
        self._said_all()
        loop = self._clients.loop
        loop.remove(self._fd)
        if self._reload is not None:
            self._reload.close()
        for fd in (self._ends, self._moves):
            if fd is not None:
                loop.remove(fd)
                os.close(fd)
        if not self._is_busy:
            self._remove_all()

    def _remove_all(self) -> None:
        close_all(fd for _, fd in self._offered)
        self._offered.clear()
        if not self.ports:
            self._gone()
        for port_id in sorted(self.ports):
            self._remove(port_id)

    def _remove(self, port_id: int) -> None:
        registry = self._clients.registry

        def removed(failure: HardspliceError | None) -> None:
            if failure is not None and registry.find(port_id) is not None:
                self._clients.loop.after(AGAIN_SECONDS, partial(self._remove, port_id))
                return
            del self.ports[port_id]
            if not self.ports:
                self._gone()

        registry.remove(port_id, reset_flows=True, done=removed)

    def _gone(self) -> None:
        if self._last:
            with contextlib.suppress(OSError):
                socketcalls.send(self._fd, self._last)
        os.close(self._fd)
        self._clients.left(self)
