# SPDX-License-Identifier: GPL-2.0-or-later
"""What a monitor's children may say to it, and when. Each of them may have been taken over.

The rules are tables: from a phase, the kinds of records that are due lead to the next phase; a kind
that isn't there is a breach of the protocol, and what comes of it is the monitor's to decide. So a
word that has been said is not heard again, however often it is sent.

    relay           STARTING ── READY ──► SERVING ── FATAL ──► ENDING
    target monitor  the same, but its relays may be busy while it still waits for the last of them
    PID 1           STARTING ── (GO) ──► PREPARING ── READY ──► SERVING ── EXITED ──► ENDING

Two more things are the same for all: descriptors come beside a kind that has them only, and an
answer is due as often as it was asked for.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Mapping
from enum import Enum, auto

from hardsplice.ipc.channel import Kind, Malformed, Record
from hardsplice.model.errors import Failure, failure_of
from hardsplice.model.unforeseen import LIMIT_HINTS


class Phase(Enum):
    """Where a child stands."""

    STARTING = auto()
    PREPARING = auto()  # PID 1: it was told to fork COMMAND
    SERVING = auto()
    ENDING = auto()  # it has said why it ends, or how COMMAND did


Rules = Mapping[Phase, Mapping[int, Phase]]

RELAY: Rules = {
    Phase.STARTING: {Kind.READY: Phase.SERVING, Kind.FATAL: Phase.ENDING},
    Phase.SERVING: {
        Kind.ASK: Phase.SERVING,
        Kind.YIELD: Phase.SERVING,
        Kind.NOTE: Phase.SERVING,
        Kind.FLOW: Phase.SERVING,
        Kind.PONG: Phase.SERVING,
        Kind.FATAL: Phase.ENDING,
    },
}
TARGET_MONITOR: Rules = {
    Phase.STARTING: {
        Kind.NOTE: Phase.STARTING,
        Kind.FLOW: Phase.STARTING,
        Kind.READY: Phase.SERVING,
        Kind.FATAL: Phase.ENDING,
    },
    Phase.SERVING: {
        Kind.NOTE: Phase.SERVING,
        Kind.FLOW: Phase.SERVING,
        Kind.PONG: Phase.SERVING,
        # That these are answers to what was asked is exchange.HostSide's to see.
        Kind.OPENED: Phase.SERVING,
        Kind.SERVED: Phase.SERVING,
        Kind.CLOSED: Phase.SERVING,
        Kind.FATAL: Phase.ENDING,
    },
}
INIT: Rules = {
    Phase.STARTING: {Kind.FATAL: Phase.ENDING},
    Phase.PREPARING: {Kind.READY: Phase.SERVING, Kind.FATAL: Phase.ENDING},
    Phase.SERVING: {
        Kind.SIGNAL: Phase.SERVING,  # it was passed on
        Kind.STOPPED: Phase.SERVING,
        Kind.PONG: Phase.SERVING,
        Kind.EXITED: Phase.ENDING,
        Kind.FATAL: Phase.ENDING,  # COMMAND could not be run
    },
}
# What is said as often as it was asked for.
_ANSWERS = frozenset({Kind.PONG, Kind.SIGNAL})


class Dialogue:
    """One child's side of it."""

    def __init__(self, rules: Rules, carriers: Collection[Kind] = ()) -> None:
        """``carriers`` are the kinds beside which there may be a descriptor."""
        self._rules = rules
        self._carriers = carriers
        self.phase = Phase.STARTING
        self._owed: collections.Counter[int] = collections.Counter()

    def asked(self, answer: Kind = Kind.PONG) -> None:
        """Something was sent to which this is the answer."""
        self._owed[answer] += 1

    def hear(self, record: Record) -> None:
        """Take note of what the child says. Malformed where that is not due, or has descriptors
        beside it; those are the caller's then.
        """
        following = self._rules.get(self.phase, {}).get(record.kind)
        if following is None:
            when = self.phase.name.lower()
            raise Malformed(f"a record of kind {record.kind} is not its to send while {when}")
        if len(record.fds) > (record.kind in self._carriers):
            raise Malformed(f"{len(record.fds)} descriptors beside a record of kind {record.kind}")
        if record.kind in _ANSWERS:
            if not self._owed[record.kind]:
                raise Malformed("an answer that nobody asked for")
            self._owed[record.kind] -= 1
        self.phase = following


# What a child that serves may be unable to do, as verb and object: its own task, and nothing else.
OF_TARGET_MONITOR = frozenset(
    {("keep", "the inbound relay running"), ("run", "the target monitor")}
)
OF_INIT = frozenset({("run", "COMMAND"), ("create", "namespaces")})


def last_words(
    text: bytes, about: Collection[tuple[str, str]] | None, hints: Collection[str] = ()
) -> Failure:
    """The Failure with which a child ends. None is for a child that has not served yet, so that
    nobody had an opportunity to take it over. Else Malformed where it is not ``about`` one of
    these; and a next step, which is a line of its own, is told if it is among ``hints``, or one
    that we know.
    """
    failure = failure_of(text)
    if about is None:
        return failure
    if (failure.verb, failure.object) not in about:
        raise Malformed("its last words are not about its task")
    if failure.hint not in LIMIT_HINTS and failure.hint not in hints:
        failure.hint = None
    return failure
