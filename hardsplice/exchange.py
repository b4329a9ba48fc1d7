# SPDX-License-Identifier: GPL-2.0-or-later
"""Listeners that come and go at run time: what the two monitors do for it, and say to each other.

A listener belongs to the namespace where its clients are; the relays that accept on it live in the
other one, and so does the monitor that keeps it for them. So the host monitor makes those of the
inbound direction and hands them to the target monitor; those of the outbound direction the target
monitor makes and hands back.

    inbound, add       host monitor: bind  ── SERVE, listener ──►  target monitor: keep it
                                           ◄───────── SERVED ────
    inbound, remove    host monitor        ────────── CLOSE ────►  target monitor: end it
                                           ◄───────── CLOSED ────
    outbound, add      host monitor        ────────── OPEN ─────►  target monitor: bind
                       keep it             ◄─ OPENED, listener ──
    outbound, remove   host monitor: end it

One request is under way at a time, so that its record always fits into the channel, and an answer
that nobody waits for is known to be none. Either monitor takes what the other one says for hostile:
records have a fixed form, and what is called a listener is looked at before it is kept.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar, Protocol

from hardsplice.channel import Channel, Kind, Malformed, Record
from hardsplice.crew import Crew
from hardsplice.errors import Failure
from hardsplice.forwarding import PLACES, Direction
from hardsplice.listeners import (
    cannot_listen,
    is_listener,
    listener_for,
    no_family,
    open_listener,
)
from hardsplice.ports import Address, Forward

# Version and bytes of an address, twice; two ports; the interface's name (IFNAMSIZ).
_FORWARD = struct.Struct("=B16sB16sHH16s")


def encode(forward: Forward) -> bytes:
    """A forward as text of a record."""
    return _FORWARD.pack(
        *_packed(forward.address),
        *_packed(forward.target),
        forward.port,
        forward.target_port,
        os.fsencode(forward.interface or ""),
    )


def _packed(address: Address | None) -> tuple[int, bytes]:
    return (0, b"") if address is None else (address.version, address.packed)


def decode(text: bytes) -> Forward:
    """The forward in a record's text; Malformed when it is none."""
    if len(text) != _FORWARD.size:
        raise Malformed(f"{len(text)} bytes are no forward")
    version, packed, target_version, target, port, target_port, name = _FORWARD.unpack(text)
    if not port or not target_port:
        raise Malformed("port 0")
    return Forward(
        address=_unpacked(version, packed),
        interface=os.fsdecode(name.rstrip(b"\0")) or None,
        port=port,
        target=_unpacked(target_version, target),
        target_port=target_port,
        required=True,
    )


def _unpacked(version: int, packed: bytes) -> Address | None:
    if version == 0:
        return None
    if version == 4:
        return IPv4Address(packed[:4])
    if version == 6:
        return IPv6Address(packed)
    raise Malformed(f"an address of IP version {version}")


# --- the host monitor's part ----------------------------------------------------------------------

Done = Callable[[Failure | None], None]


class _Request(Protocol):
    """Something to have the target monitor do."""

    index: int
    answer: ClassVar[Kind]

    def begin(self) -> Record | None:
        """What to send; None when it has come to its end already."""

    def end(self, answer: Record) -> None:
        """Hear the answer; Malformed when it can't be one."""


@dataclass(slots=True)
class _Serve:
    """Inbound: bind here, and hand the listener over."""

    answer: ClassVar[Kind] = Kind.SERVED
    index: int
    forward: Forward
    families: Sequence[int]
    done: Done
    listener: int = -1

    def begin(self) -> Record | None:
        try:
            self.listener = open_listener(self.forward, self.families)
        except OSError as error:
            self.done(cannot_listen(self.forward, PLACES["inbound"], error))
            return None
        text = encode(self.forward)
        return Record(Kind.SERVE, index=self.index, text=text, fds=(self.listener,))

    def end(self, answer: Record) -> None:
        os.close(self.listener)  # the target monitor has it, or nobody has
        if answer.detail == errno.EAFNOSUPPORT:
            self.done(no_family(self.forward, PLACES["outbound"]))
        else:
            self.done(_failure(self.forward, "inbound", answer.detail))


@dataclass(slots=True)
class _Open:
    """Outbound: have it bound there, and take the listener."""

    answer: ClassVar[Kind] = Kind.OPENED
    index: int
    forward: Forward
    crew: Crew
    done: Done

    def begin(self) -> Record | None:
        return Record(Kind.OPEN, index=self.index, text=encode(self.forward))

    def end(self, answer: Record) -> None:
        if not answer.fds:
            self.done(_failure(self.forward, "outbound", answer.detail or errno.EPROTO))
            return
        (fd,) = answer.fds
        if not is_listener(fd, self.forward.port):
            raise Malformed("a descriptor that is not the listener")
        try:
            self.crew.add(listener_for(self.index, fd, self.forward, self.crew.families))
        except Failure as failure:
            os.close(fd)
            self.done(failure)
        else:
            self.done(None)


@dataclass(slots=True)
class _Close:
    """Inbound: have the listener ended."""

    answer: ClassVar[Kind] = Kind.CLOSED
    index: int
    reset_flows: bool
    done: Callable[[], None]

    def begin(self) -> Record | None:
        return Record(Kind.CLOSE, int(self.reset_flows), self.index)

    def end(self, _: Record) -> None:
        self.done()


def _failure(forward: Forward, direction: Direction, code: int) -> Failure | None:
    if code == 0:
        return None
    return cannot_listen(forward, PLACES[direction], OSError(code, os.strerror(code)))


class HostSide:
    """Does what the registry of ports decides (forwarding.Worker)."""

    def __init__(self, channel: Channel, crew: Crew, families: Sequence[int]) -> None:
        """``channel`` leads to the target monitor; ``families`` are the host's; ``crew`` are the
        outbound relays.
        """
        self.channel = channel
        self.crew = crew
        self.families = families
        self.waiting: deque[_Request] = deque()
        self.current: _Request | None = None

    def add(self, index: int, direction: Direction, forward: Forward, done: Done) -> None:
        """Listen, and have connections served."""
        if direction == "inbound":
            self._ask(_Serve(index, forward, self.families, done))
        else:
            self._ask(_Open(index, forward, self.crew, done))

    def remove(
        self, index: int, direction: Direction, *, reset_flows: bool, done: Callable[[], None]
    ) -> None:
        """Stop listening."""
        if direction == "inbound":
            self._ask(_Close(index, reset_flows, done))
        else:
            self.crew.remove(index, reset_flows=reset_flows)
            done()

    def _ask(self, request: _Request) -> None:
        self.waiting.append(request)
        self._next()

    def _next(self) -> None:
        while self.current is None and self.waiting:
            request = self.current = self.waiting.popleft()
            record = request.begin()
            if record is None:
                self.current = None
            elif not self.channel.send(record, wait=False):
                # It has ended, of which we hear next; or too many descriptors of this user are on
                # their way somewhere.
                self.current = None
                request.end(Record(request.answer, detail=errno.ETOOMANYREFS))

    def take(self, record: Record) -> None:
        """An answer. Malformed when nobody waits for it; its descriptors are the caller's then."""
        request = self.current
        if request is None or (record.kind, record.index) != (request.answer, request.index):
            raise Malformed(f"an answer of kind {record.kind} that nobody waits for")
        if len(record.fds) > (record.kind == Kind.OPENED):
            raise Malformed(f"{len(record.fds)} descriptors beside an answer")
        self.current = None
        request.end(record)
        self._next()


# --- the target monitor's part --------------------------------------------------------------------


class TargetSide:
    """Serves the host monitor's requests."""

    def __init__(self, parent: Channel, crew: Crew, families: Sequence[int]) -> None:
        """``families`` are the namespace's; ``crew`` are the inbound relays."""
        self.parent = parent
        self.crew = crew
        self.families = families

    def take(self, record: Record) -> None:
        """A request. Malformed when it is none; its descriptors are the caller's then."""
        handler = _HANDLERS.get(record.kind)
        if handler is None:
            raise Malformed(f"a request of kind {record.kind}")
        if len(record.fds) != (record.kind == Kind.SERVE):
            raise Malformed(f"{len(record.fds)} descriptors beside a request")
        handler(self, record)

    def _open(self, record: Record) -> None:
        try:
            listener = open_listener(decode(record.text), self.families)
        except OSError as error:
            self._answer(Kind.OPENED, record, error.errno or errno.EIO)
            return
        answer = Record(Kind.OPENED, index=record.index, fds=(listener,))
        if not self.parent.send(answer):
            self._answer(Kind.OPENED, record, errno.ETOOMANYREFS)
        os.close(listener)

    def _serve(self, record: Record) -> None:
        forward = decode(record.text)
        (fd,) = record.fds
        if record.index in self.crew.listeners or not is_listener(fd, forward.port):
            raise Malformed("a descriptor that is not a new listener")
        try:
            self.crew.add(listener_for(record.index, fd, forward, self.crew.families))
        except Failure:
            os.close(fd)
            self._answer(Kind.SERVED, record, errno.EAFNOSUPPORT)
        else:
            self._answer(Kind.SERVED, record)

    def _close(self, record: Record) -> None:
        self.crew.remove(record.index, reset_flows=bool(record.small))
        self._answer(Kind.CLOSED, record)

    def _answer(self, kind: Kind, record: Record, code: int = 0) -> None:
        self.parent.send(Record(kind, index=record.index, detail=code))


# What the host monitor may ask for. There is nothing else.
_HANDLERS: dict[int, Callable[[TargetSide, Record], None]] = {
    Kind.OPEN: TargetSide._open,
    Kind.SERVE: TargetSide._serve,
    Kind.CLOSE: TargetSide._close,
}
