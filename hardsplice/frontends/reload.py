# SPDX-License-Identifier: GPL-2.0-or-later
"""The socket at which Podman tells a container's new address: SOCK_SEQPACKET; a client sends the
address as a JSON string, and the answer is OK, or why not. All ports are then forgotten and added
again, with the new target; connections that are open go on as long as their addresses last.

The socket is bound before lock-down, and served after it by the host monitor, which can't remove
it. A shell that was started before waits for our end on a pipe, and removes it then, unless another
process has a new one at that path.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

from hardsplice.kernel import socketcalls
from hardsplice.model.errors import HardspliceError, quote, reason_of
from hardsplice.model.forward import Forward
from hardsplice.model.spec import Address
from hardsplice.monitor.host import HostMonitor
from hardsplice.monitor.registry import Registry

BACKLOG = 16
CLIENTS = 16  # that are heard at the same time
SIZE_MAX = 1024  # bytes of a message
SECONDS = 10.0  # that a client may take to say something

_REMOVER = 'read -r _; exec find "$1" -maxdepth 0 -inum "$2" -delete 2>/dev/null'


class Reload:
    """The socket, from set-up on; and what is served there."""

    def __init__(self, path: str, undo: contextlib.ExitStack) -> None:
        """Make it; ``undo`` gets what removes it. HardspliceError where that can't be done."""
        try:
            self._listener = _listen(path)
        except OSError as error:
            raise HardspliceError("bind", f"socket {path}", reason_of(error)) from error
        made = os.lstat(path).st_ino

        def remove() -> None:
            with contextlib.suppress(OSError):
                if os.lstat(path).st_ino == made:
                    os.unlink(path)

        undo.callback(remove)
        self._held = _start_remover(path, made)
        self._users = frozenset({0, os.geteuid()})  # as we see them now, and once we have ours

    @property
    def descriptors(self) -> Sequence[int]:
        """What the host monitor keeps for it."""
        return [self._listener.fileno(), *([] if self._held is None else [self._held])]

    def serve(self, monitor: HostMonitor) -> None:
        """Begin to serve."""
        Clients(self._listener.fileno(), self._users, monitor).start()


def _listen(path: str) -> socket.socket:
    """A listening socket at ``path``, in a folder for its user only. Its name there may be longer
    than a socket's address may be, so it is bound by way of the folder's descriptor.
    """
    folder, name = os.path.split(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=at)
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        listener = socket.socket(socket.AF_UNIX, kind)
        try:
            os.fchmod(listener.fileno(), 0o600)
            umask = os.umask(0o077)
            try:
                listener.bind(f"/proc/self/fd/{at}/{name}")
            finally:
                os.umask(umask)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener
    finally:
        os.close(at)


def _start_remover(path: str, inode: int) -> int | None:
    """Start what removes the socket once the descriptor that is returned is closed everywhere; None
    where there is no shell: the next one for that container replaces the socket.
    """
    waits, held = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    others = [(os.POSIX_SPAWN_DUP2, null, one) for one in (1, 2)]
    try:
        os.posix_spawn(
            "/bin/sh",
            ["hardsplice-remover", "-c", _REMOVER, "sh", path, str(inode)],
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
    """Those who are connected. Nobody is waited for."""

    def __init__(self, listener: int, users: frozenset[int], monitor: HostMonitor) -> None:
        self._listener = listener
        self._users = users
        self._monitor = monitor
        self._loop = monitor.loop
        self._open: set[int] = set()
        self._is_moving = False

    def start(self) -> None:
        """Begin to accept."""
        self._loop.add(self._listener, self._accept)

    def _accept(self) -> None:
        fd = socketcalls.accept4(self._listener)
        if fd < 0:
            return
        if socketcalls.peer_user(fd) not in self._users or len(self._open) >= CLIENTS:
            os.close(fd)
            return
        self._open.add(fd)
        self._loop.add(fd, lambda: self._hear(fd))

    def _hear(self, fd: int) -> None:
        data = socketcalls.receive(fd)
        if data == -errno.EAGAIN:
            return
        self._loop.remove(fd)
        if isinstance(data, int) or not data:
            self._close(fd)
            return

        def answer(failure: HardspliceError | None) -> None:
            self._is_moving = False
            socketcalls.send(fd, b"OK" if failure is None else str(failure).encode())
            self._close(fd)

        try:
            if self._is_moving:
                reason = "another change is under way"
                raise HardspliceError("change", "the container's address", reason)
            target = read_address(data)
        except HardspliceError as failure:
            socketcalls.send(fd, str(failure).encode())
            self._close(fd)
            return
        self._is_moving = True
        move(self._monitor.registry, target, answer)

    def _close(self, fd: int) -> None:
        self._open.discard(fd)
        os.close(fd)


def read_address(data: bytes) -> Address:
    """The address in a message. HardspliceError where there is none."""
    try:
        given: Any = json.loads(data[:SIZE_MAX])
        if isinstance(given, str):
            return ip_address(given)
    except (ValueError, RecursionError):
        pass
    reason = f"{quote(data[:SIZE_MAX].decode(errors='replace').strip())} is not one, as JSON"
    raise HardspliceError("use", "the container's new address", reason)


def move(
    registry: Registry, target: Address, done: Callable[[HardspliceError | None], None]
) -> None:
    """Have all ports lead to ``target``, one after the other; ``done`` gets the first failure,
    after which the rest is tried all the same.
    """
    left = [port for port in registry.list() if port.target != target]
    failures: list[HardspliceError] = []

    def next_one() -> None:
        if not left:
            done(failures[0] if failures else None)
            return
        port = left.pop(0)

        def added(outcome: Forward | HardspliceError) -> None:
            if isinstance(outcome, HardspliceError):
                failures.append(outcome)
            next_one()

        def removed(failure: HardspliceError | None) -> None:
            if failure is not None:
                failures.append(failure)
                next_one()
                return
            registry.add(port._replace(target=target, id=0), added)

        registry.remove(port.id, reset_flows=False, done=removed)

    next_one()
