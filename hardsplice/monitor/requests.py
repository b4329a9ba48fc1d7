# SPDX-License-Identifier: GPL-2.0-or-later
"""The host monitor's requests to the namespace monitor about listeners (monitor/handover.py), each
from its record to its outcome, and the form of a forward in a record.
"""

from __future__ import annotations

import errno
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from hardsplice.ipc import forwards
from hardsplice.ipc.messages import Kind, MalformedError, Record
from hardsplice.kernel.hints import ClassVar
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.families import ALL_FAMILIES
from hardsplice.model.forward import Forward
from hardsplice.monitor.effects import Effects
from hardsplice.monitor.groups import RelayGroups
from hardsplice.net.listeners import cannot_listen, chosen, no_family
from hardsplice.sandbox.address_book import LARGE, SLOT

# The slots of a forward's targets in the address book, by family.
_SLOTS = struct.Struct("=II")
_NO_SLOT = 0xFFFFFFFF


def encode(forward: Forward, slots: Mapping[int, int]) -> bytes:
    """A forward and the slots of its targets as text of a record; ValueError where its interface's
    name can't be one.
    """
    found = (slots.get(family, _NO_SLOT) for family in ALL_FAMILIES)
    return forwards.pack(forward) + _SLOTS.pack(*found)


def decode(record: Record, direction: Direction) -> tuple[Forward, dict[int, int]]:
    """The forward in a record, and its slots; MalformedError if it is invalid."""
    text = record.text
    if len(text) != forwards.SIZE + _SLOTS.size:
        raise MalformedError(f"{len(text)} bytes are no forward")
    forward = forwards.unpack(text[: forwards.SIZE], direction, record.index)
    pairs = zip(ALL_FAMILIES, _SLOTS.unpack_from(text, forwards.SIZE), strict=True)
    slots = {family: slot for family, slot in pairs if slot != _NO_SLOT}
    if any(slot >= LARGE.size // SLOT for slot in slots.values()):
        raise MalformedError("a slot that no book has")
    return forward, slots


# --- requests -------------------------------------------------------------------------------------

Done = Callable[[HardspliceError | Forward], None]  # why not, or what is listened on
Opened = Callable[[], int]  # gives away a listener that is open already


class Request(ABC):
    """A request to the namespace monitor."""

    __slots__ = ()
    forward: Forward
    answer: ClassVar[Kind]
    can_wait: ClassVar[bool] = False  # for its answer, without end

    @property
    def port_id(self) -> int:
        """The port's number, which records say."""
        return self.forward.id

    @abstractmethod
    def begin(self) -> Record:
        """What to send. Raises HardspliceError where there is nothing to be sent."""

    @abstractmethod
    def end(self, answer: Record) -> HardspliceError | None:
        """Take the answer: the outcome. MalformedError if it is invalid."""

    def sent(self) -> None:  # noqa: B027 - most have nothing to do
        """It was sent: do here what goes with it."""

    @abstractmethod
    def undo(self, answer: Record) -> Request | None:
        """Take the answer after the request has failed for lack of one: the request to send next,
        so that nothing remains of it.
        """

    def give_up(self) -> None:  # noqa: B027 - some did nothing
        """It could not be sent: undo what was done here."""

    @abstractmethod
    def report(self, outcome: HardspliceError | None) -> None:
        """Report the outcome to the caller."""

    @abstractmethod
    def failed(self, reason: str, hint: str | None = None) -> HardspliceError:
        """The outcome if the monitors could not communicate."""


class ListenRequest(Request):
    """Have a port listened on, in either direction."""

    __slots__ = ("done", "effects", "forward")

    def __init__(self, forward: Forward, effects: Effects, done: Done) -> None:
        self.forward = forward
        self.effects = effects
        self.done = done

    def give_up(self) -> None:
        self.effects.end(self.port_id)
        self.effects.cross_out(self.port_id)

    def report(self, outcome: HardspliceError | None) -> None:
        self.done(outcome or self.forward)

    def failed(self, reason: str, hint: str | None = None) -> HardspliceError:
        return HardspliceError("listen on", self.forward.where, reason, hint)


class ServeRequest(ListenRequest):
    """Inbound: bind here, or take what is open already, and pass the listener on."""

    __slots__ = ("opened",)
    answer: ClassVar[Kind] = Kind.SERVED

    def __init__(
        self, forward: Forward, effects: Effects, done: Done, opened: Opened | None = None
    ) -> None:
        super().__init__(forward, effects, done)
        self.opened = opened

    def begin(self) -> Record:
        slots = self.effects.write_down(self.forward)
        text = encode(self.forward, slots)
        try:
            if self.opened is None:
                listener = self.effects.open(self.forward)
            else:
                listener = self.effects.take(self.port_id, self.opened())
        except OSError as error:
            raise cannot_listen(self.forward, error, late=True) from error
        if not self.forward.port:
            self.forward = chosen(self.forward, listener)
            text = encode(self.forward, slots)
        return Record(Kind.SERVE, index=self.port_id, text=text, fds=(listener,))

    def end(self, answer: Record) -> HardspliceError | None:
        if answer.detail == 0:
            return None
        self.give_up()
        if answer.detail == errno.EAFNOSUPPORT:
            return no_family(self.forward, self.forward.direction.connects)
        return _listen_error(self.forward, answer.detail)

    def undo(self, answer: Record) -> Request | None:
        if self.end(answer) is not None:
            return None
        return ForgetRequest(self.forward, self.effects, reset_flows=True, done=_ignore)


class OpenRequest(ListenRequest):
    """Outbound: have it bound there, and get the listener."""

    __slots__ = ("groups", "slots")
    answer: ClassVar[Kind] = Kind.OPENED

    def __init__(self, forward: Forward, effects: Effects, done: Done, groups: RelayGroups) -> None:
        super().__init__(forward, effects, done)
        self.groups = groups
        self.slots: dict[int, int] = {}

    def begin(self) -> Record:
        text = encode(self.forward, {})  # the namespace monitor doesn't need targets on the host
        self.slots = self.effects.write_down(self.forward)
        self.effects.offer_bind_address(self.forward)
        return Record(Kind.OPEN, index=self.port_id, text=text)

    def end(self, answer: Record) -> HardspliceError | None:
        self.effects.withdraw_bind_address()
        if not answer.fds:
            self.effects.cross_out(self.port_id)
            return _listen_error(self.forward, answer.detail or errno.EPROTO)
        self._keep(answer)
        try:
            self.groups.add(self.forward, answer.fds[0], self.slots)
        except BaseException as error:
            self.give_up()
            if isinstance(error, HardspliceError):
                return error
            raise
        return None

    def undo(self, answer: Record) -> Request | None:
        if answer.fds:
            self._keep(answer)
        self.give_up()
        return None

    def _keep(self, answer: Record) -> None:
        (fd,) = answer.fds
        if not self.effects.is_wanted(fd, self.forward):
            raise MalformedError("a descriptor that is not the listener")
        self.forward = chosen(self.forward, fd)
        self.effects.keep(self.port_id, fd)

    def give_up(self) -> None:
        self.effects.withdraw_bind_address()
        ListenRequest.give_up(self)


class CloseRequest(Request):
    """Inbound: have the listener ended. Where that can't be sent, it is listened on as before."""

    __slots__ = ("done", "effects", "forward", "reset_flows")
    answer: ClassVar[Kind] = Kind.CLOSED
    can_wait: ClassVar[bool] = True

    def __init__(
        self,
        forward: Forward,
        effects: Effects,
        reset_flows: bool,
        done: Callable[[HardspliceError | None], None],
    ) -> None:
        self.forward = forward
        self.effects = effects
        self.reset_flows = reset_flows
        self.done = done

    def begin(self) -> Record:
        return Record(Kind.CLOSE, int(self.reset_flows), self.port_id)

    def sent(self) -> None:
        self.effects.end(self.port_id)

    def end(self, answer: Record) -> HardspliceError | None:
        del answer
        self.effects.end(self.port_id)
        self.effects.cross_out(self.port_id)
        return None

    def undo(self, answer: Record) -> Request | None:
        del answer
        return None

    def report(self, outcome: HardspliceError | None) -> None:
        self.done(outcome)

    def failed(self, reason: str, hint: str | None = None) -> HardspliceError:
        return HardspliceError("remove", f"port {self.port_id}", reason, hint)


class ForgetRequest(CloseRequest):
    """Inbound: end a listener that was served too late, and have it given up."""

    __slots__ = ()

    def begin(self) -> Record:
        self.effects.end(self.port_id)
        return CloseRequest.begin(self)

    def give_up(self) -> None:
        self.effects.cross_out(self.port_id)


def _ignore(_: HardspliceError | None) -> None:
    """No caller waits for it."""


def _listen_error(forward: Forward, code: int) -> HardspliceError | None:
    if code == 0:
        return None
    if code not in errno.errorcode:  # a number that isn't an errno is not repeated
        code = errno.EPROTO
    return cannot_listen(forward, OSError(code, os.strerror(code)), late=True)
