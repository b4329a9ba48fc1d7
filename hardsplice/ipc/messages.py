# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages between hardsplice's processes: each kind of record, its sender and receiver, and
what it carries. Pure.

A record is one packet: a fixed header and a short text, with descriptors. A receiver treats it as
hostile, since it may come from a process that was taken over. So this table is checked on receipt
(ipc/channel.py): whether the sender may send that kind at all, and whether the record carries what
its kind carries and no more. ipc/dialogue.py has which kind is due when; what a text, a number or a
descriptor may be is checked where it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum, unique

from hardsplice.kernel.record import NamedTuple
from hardsplice.model.roles import GUARD, HOST, INIT, NAMESPACE, RELAYS

_HEADER = struct.Struct("=BBHiI")
HEADER_SIZE = _HEADER.size  # bytes
TEXT_LIMIT = 2048  # bytes of text in a record
# All descriptors that one record can carry (SCM_MAX_FD, include/net/scm.h).
FDS_LIMIT = 253


class MalformedError(Exception):
    """A record that a correct process never sends."""


class Record(NamedTuple):
    """One packet: what, two numbers, an index, a text, and descriptors, now the receiver's."""

    kind: int
    small: int = 0
    index: int = 0  # type: ignore[assignment] # of tuples: nobody searches one here
    detail: int = 0
    text: bytes = b""
    fds: tuple[int, ...] = ()


def encode(record: Record) -> bytes:
    """The packet of a record, without its descriptors."""
    text = record.text[:TEXT_LIMIT]
    return _HEADER.pack(record.kind, record.small, len(text), record.detail, record.index) + text


def decode(packet: bytes, fds: tuple[int, ...] = ()) -> Record:
    """The record in a packet; MalformedError when it is none."""
    if len(packet) < _HEADER.size:
        raise MalformedError(f"{len(packet)} bytes are no record")
    kind, small, length, detail, index = _HEADER.unpack_from(packet)
    text = packet[_HEADER.size :]
    if len(text) != length:
        raise MalformedError(f"a text of {len(text)} bytes says that it has {length}")
    return Record(kind, small, index, detail, text, fds)


@unique
class Kind(IntEnum):
    """What a record is about. MESSAGES says who sends it, and what is in it."""

    # A process's life
    READY = 1  # set up and locked down; text = the layers not in force, one a line
    READY_PLACING = 2  # as READY, with the descriptor of its calls (monitor/placing.py)
    FATAL = 3  # text says why it ends (model/errors.py), detail an exit status, where that counts
    PING = 4  # is it alive?
    PONG = 5  # it is
    # A relay and its monitor
    WANT_SOCKETS = 6  # small = family, detail = number
    SOCKETS = 7  # small = family
    NOTE = 8  # something for the log: small = Note, index = port, detail and text by that
    FLOW = 9  # a flow ended; small = how, text = its row
    ACCEPT_PAUSED = 10  # it stops accepting, so that others must accept
    POLL = 11  # clients may wait that only another relay was woken for
    ADD_LISTENER = 12  # index = port, detail = its place, text = its targets (relay/orders.py)
    REMOVE_LISTENER = 13  # index and detail as above; small: and reset its flows
    DRAIN = 14  # stop accepting, and end once no flow is left
    # Both monitors, before lock-down
    LISTENERS = 15  # listeners; text = the numbers of their forwards
    BOUND = 16  # all were sent; detail = why loopback is down, text = namespace and families
    # ... and afterwards (monitor/handover.py); index is the port's number
    OPEN = 17  # listen; text is the forward
    OPENED = 18  # its answer: the listener, or an errno in detail
    SERVE = 19  # keep this listener, and have relays accept on it; text is the forward
    SERVED = 20  # its answer; detail as above
    CLOSE = 21  # give a listener up; small: and reset its flows
    CLOSED = 22  # its answer
    DRAIN_RELAYS = 23  # text = listeners that others have too, by index; small: more of them follow
    # How COMMAND's namespaces are made
    WANTS_MAPS = 24  # it is in a user namespace of its own, which has no ids yet
    MAPPED = 25  # it has
    STARTED = 26  # PID 1; detail = its number, text = a working directory that COMMAND can't reach
    NAMESPACES = 27  # all of them stand; detail: with a /proc of their own
    ENTERED = 28  # they were opened, as long as they can be
    FOLDER = 29  # an empty root (sandbox/empty_root.py)
    # COMMAND itself
    PREPARE = 30  # fork it, and lock down
    RUN = 31  # let it run
    SIGNAL = 32  # pass on signal number detail
    PASSED_ON = 33  # its answer, once it was
    STOPPED = 34  # it was stopped, and may go on by now
    CHECK_STOPPED = 35  # is it?
    CHECKED = 36  # small: it is
    EXITED = 37  # its wait status is detail
    # The namespace monitor's reports
    NOTE_OF_UDP = 38  # as NOTE, which it passes on, where a relay of UDP has it for the log


class Note(IntEnum):
    """What a relay reports for the log."""

    REFUSED = 1
    TIMED_OUT = 2
    ACCEPT = 3
    DESCRIPTORS = 4
    ERROR = 5
    RESTARTED = 6
    SOCKETS = 7
    OPENED = 8  # with --trace: a flow's target was reached
    ENDED = 9  # with --trace: a flow is over; detail is 0 after FIN both ways, 1 after a reset
    CROWDED = 10  # see channel.Sent
    LOOPBACK = 11  # of a monitor: a target is not reached, as the loopback interface is down
    START_DELAYED = 12  # there is no process for a relay, or no memory
    DIED = 13  # of a supervisor: a relay ended with connections, and has no successor


# Senders and receivers, by the names of their processes; and those that are temporary.
_HOST, _NAMESPACE, _GUARD, _INIT = HOST.name, NAMESPACE.name, GUARD.name, INIT.name
LAUNCHER = "launcher"  # waits for the one in the background, or for what --audit shows
FOLDER_MAKER = "folder maker"  # sandbox/empty_root.py
MAPPER = "mapper"  # of ids, outside of a user namespace (sandbox/user_namespace.py)

Way = tuple[str, str]
"""Sender and receiver."""

_TO_MONITOR: tuple[Way, ...] = tuple((role.name, role.parent) for role in RELAYS.values())
_TO_RELAY: tuple[Way, ...] = tuple((role.parent, role.name) for role in RELAYS.values())
_DOWN, _UP = (_HOST, _NAMESPACE), (_NAMESPACE, _HOST)
_TO_INIT, _OF_INIT = (_HOST, _INIT), (_INIT, _HOST)
_OF_GUARD = (_GUARD, _HOST)
_TO_LAUNCHER = (_HOST, LAUNCHER)
_OF_MAKER = (FOLDER_MAKER, _HOST)


class Message(NamedTuple):
    """The senders and receivers of a kind of record, and what it carries: the numbers and the text
    that are named, and so many descriptors.
    """

    ways: tuple[Way, ...]
    carries: str = ""  # of "small index detail text"
    fds: tuple[int, int] = (0, 0)  # as few, and as many
    is_answer: bool = False  # it is due as often as it was asked for


MESSAGES: Mapping[Kind, Message] = {
    Kind.READY: Message((*_TO_MONITOR, _UP, _OF_INIT, _OF_GUARD, _TO_LAUNCHER), "text"),
    Kind.READY_PLACING: Message(_TO_MONITOR, fds=(1, 1)),
    Kind.FATAL: Message(
        (*_TO_MONITOR, _UP, _OF_INIT, _OF_GUARD, _TO_LAUNCHER, _OF_MAKER), "detail text"
    ),
    Kind.PING: Message((*_TO_RELAY, _DOWN)),
    Kind.PONG: Message((*_TO_MONITOR, _UP), is_answer=True),
    Kind.WANT_SOCKETS: Message(_TO_MONITOR, "small detail"),
    Kind.SOCKETS: Message(_TO_RELAY, "small", (0, FDS_LIMIT)),
    Kind.NOTE: Message((*_TO_MONITOR, _UP), "small index detail text"),
    Kind.NOTE_OF_UDP: Message((_UP,), "small index detail text"),
    Kind.FLOW: Message((*_TO_MONITOR, _UP), "small text"),
    Kind.ACCEPT_PAUSED: Message(_TO_MONITOR),
    Kind.POLL: Message(_TO_RELAY),
    Kind.ADD_LISTENER: Message(_TO_RELAY, "index detail text"),
    Kind.REMOVE_LISTENER: Message(_TO_RELAY, "small index detail"),
    Kind.DRAIN: Message(_TO_RELAY),
    Kind.LISTENERS: Message((_UP,), "text", (1, FDS_LIMIT)),
    Kind.BOUND: Message((_UP,), "detail text", (0, 1)),
    Kind.OPEN: Message((_DOWN,), "index text"),
    Kind.OPENED: Message((_UP,), "index detail", (0, 1)),
    Kind.SERVE: Message((_DOWN,), "index text", (1, 1)),
    Kind.SERVED: Message((_UP,), "index detail"),
    Kind.CLOSE: Message((_DOWN,), "small index"),
    Kind.CLOSED: Message((_UP,), "index"),
    Kind.DRAIN_RELAYS: Message((_DOWN,), "small text"),
    Kind.WANTS_MAPS: Message((_OF_GUARD, (_INIT, _GUARD), (_HOST, MAPPER))),
    Kind.MAPPED: Message(((_HOST, _GUARD), (_GUARD, _INIT))),
    Kind.STARTED: Message((_OF_GUARD,), "detail text"),
    Kind.NAMESPACES: Message((_OF_INIT,), "detail"),
    Kind.ENTERED: Message((_TO_INIT,)),
    Kind.FOLDER: Message((_OF_MAKER,), fds=(1, 1)),
    Kind.PREPARE: Message((_TO_INIT,)),
    Kind.RUN: Message((_TO_INIT,)),
    Kind.SIGNAL: Message((_TO_INIT,), "detail"),
    Kind.PASSED_ON: Message((_OF_INIT,), "detail", is_answer=True),
    Kind.STOPPED: Message((_OF_INIT,)),
    Kind.CHECK_STOPPED: Message((_TO_INIT,)),
    Kind.CHECKED: Message((_OF_INIT,), "small", is_answer=True),
    Kind.EXITED: Message((_OF_INIT,), "detail"),
}
ANSWERS = frozenset(kind for kind, message in MESSAGES.items() if message.is_answer)

Due = Mapping[int, Message]
"""What one end may receive."""


def on(sender: str, receiver: str) -> Due:
    """What one process may send to another, each by its name."""
    way = (sender, receiver)
    return {kind: message for kind, message in MESSAGES.items() if way in message.ways}


def check(record: Record, due: Due) -> None:
    """MalformedError if the sender may not send that record, or it carries something else."""
    message = due.get(record.kind)
    if message is None:
        raise MalformedError(f"a record of kind {record.kind} is not its to send")
    fewest, most = message.fds
    if not fewest <= len(record.fds) <= most:
        raise MalformedError(f"{len(record.fds)} descriptors beside a record of kind {record.kind}")
    carries = message.carries
    if (
        (record.small and "small" not in carries)
        or (record.index and "index" not in carries)
        or (record.detail and "detail" not in carries)
        or (record.text and "text" not in carries)
    ):
        raise MalformedError(f"a record of kind {record.kind} carries more than that")
