# SPDX-License-Identifier: GPL-2.0-or-later
"""When a monitor's children may send which message. Each of them may have been taken over.

The rules are tables over the kinds that they may send at all (ipc/messages.py): in each state,
those that are due lead to the next state; any other kind is a violation of the protocol, and the
monitor decides what to do about it. So a message that is due once has an effect once, however often
it is sent.

    relay           STARTING ── READY ──► SERVING ── FATAL ──► ENDING
    namespace monitor
                    the same, but its relays may be busy while it still waits for the last of them
    PID 1           STARTING ── (PREPARE) ──► PREPARING ── READY ──► SERVING ── EXITED ──► ENDING

An answer is due as often as it was asked for.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Mapping
from enum import Enum, auto

from hardsplice.ipc.messages import ANSWERS, Kind, MalformedError, Record
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError, error_of, relay_running
from hardsplice.model.protocol import Protocol
from hardsplice.model.unforeseen import LIMIT_HINTS


class ChildState(Enum):
    """The state of a child."""

    STARTING = auto()
    PREPARING = auto()  # PID 1: it was told to fork COMMAND
    SERVING = auto()
    ENDING = auto()  # it has reported why it ends, or how COMMAND ended


Rules = Mapping[ChildState, Mapping[int, ChildState]]

_SERVING_RELAY: Mapping[int, ChildState] = {
    Kind.WANT_SOCKETS: ChildState.SERVING,
    Kind.ACCEPT_PAUSED: ChildState.SERVING,
    Kind.NOTE: ChildState.SERVING,
    Kind.FLOW: ChildState.SERVING,
    Kind.PONG: ChildState.SERVING,
    Kind.FATAL: ChildState.ENDING,
}
RELAY: Rules = {
    ChildState.STARTING: {Kind.READY: ChildState.SERVING, Kind.FATAL: ChildState.ENDING},
    ChildState.SERVING: _SERVING_RELAY,
}
# Where ports may change.
DYNAMIC_RELAY: Rules = {
    ChildState.STARTING: {Kind.READY_PLACING: ChildState.SERVING, Kind.FATAL: ChildState.ENDING},
    ChildState.SERVING: _SERVING_RELAY,
}
NAMESPACE_MONITOR: Rules = {
    ChildState.STARTING: {
        Kind.NOTE: ChildState.STARTING,
        Kind.NOTE_OF_UDP: ChildState.STARTING,
        Kind.FLOW: ChildState.STARTING,
        Kind.READY: ChildState.SERVING,
        Kind.FATAL: ChildState.ENDING,
    },
    ChildState.SERVING: {
        Kind.NOTE: ChildState.SERVING,
        Kind.NOTE_OF_UDP: ChildState.SERVING,
        Kind.FLOW: ChildState.SERVING,
        Kind.PONG: ChildState.SERVING,
        # handover.HostSide checks that these answer what was asked.
        Kind.OPENED: ChildState.SERVING,
        Kind.SERVED: ChildState.SERVING,
        Kind.CLOSED: ChildState.SERVING,
        Kind.FATAL: ChildState.ENDING,
    },
}
INIT: Rules = {
    ChildState.STARTING: {Kind.FATAL: ChildState.ENDING},
    ChildState.PREPARING: {Kind.READY: ChildState.SERVING, Kind.FATAL: ChildState.ENDING},
    ChildState.SERVING: {
        Kind.PASSED_ON: ChildState.SERVING,
        Kind.STOPPED: ChildState.SERVING,
        Kind.CHECKED: ChildState.SERVING,
        Kind.EXITED: ChildState.ENDING,
        Kind.FATAL: ChildState.ENDING,  # COMMAND could not be run
    },
}


class Dialogue:
    """One child's side of it."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.state = ChildState.STARTING
        self._owed: collections.Counter[int] = collections.Counter()

    def expect(self, answer: Kind = Kind.PONG) -> None:
        """A message was sent to which this is the answer."""
        self._owed[answer] += 1

    def check(self, record: Record) -> None:
        """Check a message from the child, and take the step to the state that it leads to.
        MalformedError if it is not due; its descriptors are the caller's to close then.
        """
        following = self._rules.get(self.state, {}).get(record.kind)
        if following is None:
            when = self.state.name.lower()
            raise MalformedError(f"a record of kind {record.kind} is not its to send while {when}")
        if record.kind in ANSWERS:
            if not self._owed[record.kind]:
                raise MalformedError("an answer that nobody asked for")
            self._owed[record.kind] -= 1
        self.state = following


# What a child that serves may be unable to do, as verb and object: its own task, and nothing else.
OF_NAMESPACE_MONITOR = frozenset(
    {
        *(("keep", relay_running(Direction.INBOUND, protocol)) for protocol in Protocol),
        ("run", "the namespace monitor"),
    }
)
OF_INIT = frozenset({("run", "COMMAND"), ("create", "namespaces")})


def last_words(
    text: bytes, about: Collection[tuple[str, str]] | None, hints: Collection[str] = ()
) -> HardspliceError:
    """The HardspliceError with which a child ends. ``about`` None is for a child that hasn't served
    yet, and so can't have been taken over. Otherwise MalformedError if it is not ``about`` one of
    these; and a next step, which is a line of its own, is kept only if it is among ``hints``, or
    one that we know.
    """
    failure = error_of(text)
    if about is None:
        return failure
    if (failure.verb, failure.object) not in about:
        raise MalformedError("its last words are not about its task")
    if failure.hint not in LIMIT_HINTS and failure.hint not in hints:
        failure.hint = None
    return failure
