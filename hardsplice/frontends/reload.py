# SPDX-License-Identifier: GPL-2.0-or-later
"""The socket at which Podman tells a container's new address: SOCK_SEQPACKET; a client sends the
address as a JSON string, and the answer is OK, or why not. All ports of the container are then
forgotten and added again, with the new target; connections that are open go on as long as their
addresses last.

The socket is bound by the program that Podman starts, and served by the server of its ports.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, MutableMapping
from ipaddress import ip_address

from hardsplice.ipc.loop import Alarm, Loop
from hardsplice.kernel import socketcalls
from hardsplice.kernel.hints import Any, Protocol
from hardsplice.model.errors import HardspliceError, quote
from hardsplice.model.forward import Forward
from hardsplice.model.spec import Address
from hardsplice.monitor.registry import Registry

CLIENTS = 16  # that are heard at the same time; the oldest makes room
AGAIN_SECONDS = 1.0  # until accepting is tried again when there was no descriptor
SIZE_MAX = 1024  # bytes of a message


class Owner(Protocol):
    """Whose ports are moved."""

    ports: dict[int, Forward]  # by their numbers

    def begin_move(self) -> bool:
        """Whether its ports may be changed now, until ``end_move``."""

    def end_move(self, target: Address) -> None:
        """They have been changed, and lead there."""


class Reload:
    """Those who are connected. Nobody is waited for."""

    def __init__(
        self, listener: int, users: frozenset[int], loop: Loop, registry: Registry, owner: Owner
    ) -> None:
        """Begin to serve; OSError where ``listener`` can't be watched."""
        self._listener = listener
        self._users = users
        self._loop = loop
        self._registry = registry
        self._owner = owner
        self._open: set[int] = set()
        self._silent: dict[int, None] = {}  # those that have said nothing, the oldest first
        self._again = Alarm(loop, self._listen)
        self._listen()

    def close(self) -> None:
        """Serve no longer."""
        self._again.cancel()
        self._loop.remove(self._listener)
        for fd in [*self._open]:
            self._close(fd)

    def _listen(self) -> None:
        self._loop.add(self._listener, self._accept)

    def _accept(self) -> None:
        fd = socketcalls.accept4(self._listener)
        if fd == -errno.EAGAIN:
            return
        if fd < 0:  # not a listener of ours, or there is no descriptor
            self._loop.remove(self._listener)
            if fd in (-errno.EMFILE, -errno.ENFILE):
                self._again.set(AGAIN_SECONDS)
            return
        if socketcalls.peer_user(fd) not in self._users:
            os.close(fd)
            return
        if len(self._silent) >= CLIENTS:
            self._close(next(iter(self._silent)))
        self._open.add(fd)
        self._silent[fd] = None
        self._loop.add(fd, lambda: self._hear(fd))

    def _hear(self, fd: int) -> None:
        data = socketcalls.receive(fd)
        if data == -errno.EAGAIN:
            return
        if isinstance(data, int) or not data:
            self._close(fd)
            return
        self._loop.remove(fd)
        del self._silent[fd]

        def answer(failure: HardspliceError | None) -> None:
            self._owner.end_move(target)
            self._answer(fd, failure)

        try:
            target = read_address(data)
            if not self._owner.begin_move():
                reason = "another change is under way"
                raise HardspliceError("change", "the container's address", reason)
        except HardspliceError as failure:
            self._answer(fd, failure)
            return
        move(self._registry, self._owner.ports, target, answer)

    def _answer(self, fd: int, failure: HardspliceError | None) -> None:
        if fd in self._open:
            socketcalls.send(fd, b"OK" if failure is None else str(failure).encode())
            self._close(fd)

    def _close(self, fd: int) -> None:
        self._open.discard(fd)
        self._silent.pop(fd, None)
        self._loop.remove(fd)
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
    registry: Registry,
    ports: MutableMapping[int, Forward],
    target: Address,
    done: Callable[[HardspliceError | None], None],
) -> None:
    """Have all ``ports``, by their numbers, lead to ``target``, one after the other, and keep that
    list; ``done`` gets the first failure, after which the rest is tried all the same.
    """
    left = [port for _, port in sorted(ports.items()) if port.target != target]
    failures: list[HardspliceError] = []

    def next_one() -> None:
        if not left:
            done(failures[0] if failures else None)
            return
        port = left.pop(0)

        def added(outcome: Forward | HardspliceError) -> None:
            if isinstance(outcome, HardspliceError):
                failures.append(outcome)
            else:
                ports[outcome.id] = outcome
            next_one()

        def removed(failure: HardspliceError | None) -> None:
            if failure is not None:
                failures.append(failure)
                next_one()
                return
            del ports[port.id]
            registry.add(port._replace(target=target, id=0), added)

        registry.remove(port.id, reset_flows=False, done=removed)

    next_one()
