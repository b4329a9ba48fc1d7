# SPDX-License-Identifier: GPL-2.0-or-later
"""Log lines for a relay's notes. Relays send numbers, which a relay that was taken over may invent;
the host monitor turns them into text here. A number without a meaning is shown as a number.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from hardsplice.ipc.channel import CROWDED_HINT
from hardsplice.ipc.messages import Kind, Note
from hardsplice.model.direction import GroupKey, group_name
from hardsplice.model.protocol import Protocol
from hardsplice.telemetry.log import Level

BY_RELAYS: frozenset[int] = frozenset(
    {Note.REFUSED, Note.TIMED_OUT, Note.ACCEPT, Note.DESCRIPTORS, Note.ERROR}
)
# Where the log wants every flow.
BY_TRACED_RELAYS: frozenset[int] = frozenset({Note.OPENED, Note.ENDED})
BY_SUPERVISORS: frozenset[int] = frozenset(
    {Note.RESTARTED, Note.DIED, Note.SOCKETS, Note.CROWDED, Note.LOOPBACK, Note.START_DELAYED}
)
# In which kind of record the namespace monitor passes them on.
NOTE_OF = {Protocol.TCP: Kind.NOTE, Protocol.UDP: Kind.NOTE_OF_UDP}
PROTOCOL_OF: dict[int, Protocol] = {kind: protocol for protocol, kind in NOTE_OF.items()}
LACKING_MAX, LACKING_LENGTH = 32, 200  # lines, and characters of a line

_WORDS: dict[int, tuple[Level, str]] = {
    Note.REFUSED: (Level.INFO, "{direction}, {where}: cannot reach the target: {reason}"),
    Note.LOOPBACK: (
        Level.WARNING,
        "{direction}, {where}: cannot reach the target: the loopback interface is down",
    ),
    Note.TIMED_OUT: (Level.WARNING, "{direction}, {where}: the target does not answer"),
    Note.ACCEPT: (Level.WARNING, "{group}: cannot accept for now: {reason}"),
    Note.DESCRIPTORS: (
        Level.WARNING,
        "{group}: all {detail} descriptors are in use, so new ones wait: raise ulimit -n",
    ),
    Note.ERROR: (Level.ERROR, "{direction}, {where}: a flow was reset: {text} {reason}"),
    Note.RESTARTED: (Level.WARNING, "{group}: the relay was started again: {text}"),
    Note.DIED: (
        Level.WARNING,
        "{group}: a relay ended before its {flows} did: {text}",
    ),
    Note.OPENED: (Level.TRACE, "{direction}, {where}: connected"),
    Note.ENDED: (Level.TRACE, "{direction}, {where}: over{reset}"),
    Note.SOCKETS: (Level.WARNING, "{group}: cannot open sockets for now: {reason}"),
    Note.CROWDED: (
        Level.WARNING,
        f"{{group}}: cannot pass {{text}} on for now: {{reason}}: {CROWDED_HINT}",
    ),
    Note.START_DELAYED: (
        Level.WARNING,
        "{group}: cannot start the relay again for now: {reason}",
    ),
}
_UNKNOWN = (Level.WARNING, "{group}: a note without a meaning")


def passed_on(*, traced: bool) -> frozenset[int]:
    """What the namespace monitor may pass on."""
    return BY_RELAYS | BY_SUPERVISORS | (BY_TRACED_RELAYS if traced else frozenset())


def in_words(group: GroupKey, where: str, kind: int, detail: int, text: bytes) -> tuple[Level, str]:
    """How much a note matters, and its line; ``where`` names the port, if it is about one.
    ``detail`` is an errno or a number, by kind.
    """
    level, line = _WORDS.get(kind, _UNKNOWN)
    direction, protocol = group
    return level, line.format(
        direction=direction,
        group=group_name(direction, protocol),
        flows="connections" if protocol is Protocol.TCP else "flows",
        where=where,
        detail=detail,
        reason=os.strerror(detail) if detail else "",
        text=text.decode(errors="replace"),
        reset=", by a reset" if detail else "",
    )


def newly_lacking(text: bytes, known: Sequence[str]) -> list[str]:
    """What the namespace monitor had to do without, one a line, where that is not known already; as
    much of it as somebody would read, since it may have been taken over.
    """
    lines = (line[:LACKING_LENGTH] for line in text.decode(errors="replace").split("\n") if line)
    return [line for line in dict.fromkeys(lines) if line not in known][:LACKING_MAX]
