# SPDX-License-Identifier: GPL-2.0-or-later
"""The ports that are forwarded, and how they change at run time: the registry, in the host monitor.

Each port has a number, which is never reused: connections of a port that was removed go on, and
reports about them must not be attributed to another port. A change reports its outcome to its
caller once it is known, which may be at once.

The registry decides what may be asked; monitor/handover.py does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from hardsplice.kernel import hints
from hardsplice.model.direction import Direction, GroupKey
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol


class ConflictError(HardspliceError):
    """The port is forwarded already, or about to be."""

    def __init__(self, forward: Forward, conflict: int) -> None:
        reason = f"it is forwarded already, with the id {conflict}"
        super().__init__("listen on", forward.where, reason)
        self.conflict = conflict


class Worker(hints.Protocol):
    """What makes and ends listeners; each outcome is told once, maybe at once."""

    def add(
        self,
        forward: Forward,
        done: Callable[[HardspliceError | Forward], None],
        opened: Callable[[], int] | None = None,
    ) -> None:
        """Listen, and have connections served: told is what is listened on, with the port that was
        chosen for it where any would do. An inbound listener may be ``opened`` already.
        """

    def remove(
        self, forward: Forward, *, reset_flows: bool, done: Callable[[HardspliceError | None], None]
    ) -> None:
        """Stop listening: told is why it is listened on as before, or nothing."""


Key = tuple[Direction, Protocol, object, object, int]


def _key(forward: Forward) -> Key:
    return forward.direction, forward.protocol, forward.address, forward.interface, forward.port


class Registry:
    """All forwarded ports, by number."""

    def __init__(
        self,
        ports: Sequence[Forward],
        first_free: int,
        dynamic: frozenset[GroupKey],
        worker: Worker | None,
        check_room: Callable[[int], None],
        check_loop: Callable[[Forward, Iterable[Forward]], None],
    ) -> None:
        """``ports`` are there already; numbers from ``first_free`` on are unused. Only
        ``dynamic`` groups can change, which takes a ``worker``. ``check_room`` raises a
        HardspliceError where a relay with so many listeners would have too few descriptors,
        ``check_loop`` where one more port would lead back to itself by way of those that there are
        (loops.check).
        """
        self._ports = {port.id: port for port in ports}
        self._keys = {_key(port): port.id for port in ports}
        self._held = dict(self._ports)
        self.changes = 0  # how often a port has been taken, got, or let go
        self._next = first_free
        self._dynamic = dynamic
        self._worker = worker
        self._check_room, self._check_loop = check_room, check_loop
        self.is_closed = False  # no more changes are taken
        # Told of each port that was added, and of the number of each that was removed.
        self.on_added: Callable[[Forward], None] = lambda _: None
        self.on_removed: Callable[[int], None] = lambda _: None
        self._listening = {one: sum(p.direction == one for p in ports) for one in Direction}

    def close(self) -> None:
        """Take no more changes."""
        self.is_closed = True

    def list(self) -> Sequence[Forward]:
        """The ports that are listened on, in the order in which they were asked for."""
        return sorted(self._ports.values(), key=lambda port: port.id)

    def held(self, direction: Direction) -> Sequence[Forward]:
        """What a direction listens on, is about to, or has not quite ceased to."""
        return [port for port in self._held.values() if port.direction is direction]

    def find(self, port_id: int) -> Forward | None:
        """The port with this number, if it is still there."""
        return self._ports.get(port_id)

    def add(
        self,
        asked: Forward,
        done: Callable[[Forward | HardspliceError], None],
        opened: Callable[[], int] | None = None,
    ) -> None:
        """Forward a port, which gets a number; ``done`` gets it as it is listened on, or the
        HardspliceError (a ConflictError where it is forwarded already). ``opened`` gives away an
        inbound listener that is open already, when it is needed.
        """
        key = _key(asked)
        try:
            self._check(asked, key)
        except HardspliceError as failure:
            done(failure)
            return
        port = asked._replace(id=self._next)
        self._next += 1
        if port.port:  # of a free one the number is known later
            self._keys[key] = port.id
        self._held[port.id] = port
        self.changes += 1
        self._listening[port.direction] += 1

        def finish(outcome: HardspliceError | Forward) -> None:
            if isinstance(outcome, HardspliceError):
                self._forget(port)
                self._release(port.id)
                done(outcome)
                return
            self._keys[_key(outcome)] = port.id
            self._ports[port.id] = self._held[port.id] = outcome
            self.changes += 1
            self.on_added(outcome)
            done(outcome)

        assert self._worker is not None
        self._worker.add(port, finish, opened)

    def _check(self, asked: Forward, key: Key) -> None:
        direction = asked.direction
        if self.is_closed:
            raise HardspliceError("listen on", asked.where, "hardsplice is about to end")
        if reason := self._fixed(asked):
            raise HardspliceError("listen on", asked.where, reason)
        if key in self._keys:
            raise ConflictError(asked, self._keys[key])
        self._check_room(self._listening[direction] + 1)
        self._check_loop(asked, self._held.values())

    def _fixed(self, port: Forward) -> str:
        """Why there can't be more or fewer ports of its kind; nothing where there can."""
        if (port.direction, port.protocol) in self._dynamic:
            return ""
        return (
            f"{port.direction} {port.protocol} ports were not to change when hardsplice was started"
        )

    def remove(
        self, port_id: int, *, reset_flows: bool, done: Callable[[HardspliceError | None], None]
    ) -> None:
        """Stop listening; connections of the port go on, or are reset. ``done`` gets the
        HardspliceError where the port is there as before, or None.
        """
        port = self._ports.get(port_id)
        if port is None:
            done(HardspliceError("remove", f"port {port_id}", "there is no port with that id"))
            return
        if self.is_closed:
            done(HardspliceError("remove", f"port {port_id}", "hardsplice is about to end"))
            return
        if reason := self._fixed(port):
            done(HardspliceError("remove", f"port {port_id}", reason))
            return
        assert self._worker is not None
        del self._ports[port_id]
        self._forget(port)

        def finish(failure: HardspliceError | None) -> None:
            if failure is None:
                self._release(port_id)
                self.on_removed(port_id)
            else:
                self._ports[port_id] = port
                self._keys[_key(port)] = port_id
                self._listening[port.direction] += 1
                self.changes += 1
            done(failure)

        self._worker.remove(port, reset_flows=reset_flows, done=finish)

    def _release(self, port_id: int) -> None:
        del self._held[port_id]
        self.changes += 1

    def _forget(self, port: Forward) -> None:
        key = _key(port)
        if self._keys.get(key) == port.id:
            del self._keys[key]
        self._listening[port.direction] -= 1
