# SPDX-License-Identifier: GPL-2.0-or-later
"""What a flow may do next: its states as tables, and the decisions that follow from them. No I/O
here.

Theory of operation
-------------------
A flow is one accepted connection and the one made for it. It has two *sides*, CLIENT (accepted) and
TARGET (connected), and two *directions*, each named by the side that it reads: direction CLIENT
moves bytes from the client to the target. For a direction d, the *source* is side d and the *sink*
is side 1 - d.

Each direction is in one state:

    PAUSED      nothing is watched; the engine resumes it (target not connected yet, or no pipe)
    CONNECTING  the target's handshake is under way: the sink is watched for being writable
    OPEN        the direction holds no byte: its source is watched for input
    BLOCKED     the sink takes no more: the bytes wait in a pipe and the sink is watched for room
    FINISHED    nothing moves any more: end of file was passed on, or the sink is gone

Two rules keep it simple. Bytes are read only when the direction holds none, so end of file is never
met with bytes still in hand: FIN can be passed on at once and never overtakes data. And what epoll
is asked for is a function of the two directions that touch a side, `watch` below; nobody remembers
to add or remove an event.

A side *fails* when the kernel reports an error on it, as a rule a reset. Nothing can be written to
it any more, so the direction into it is FINISHED, whatever it held. But what it sent before it
failed is still in its receive queue: the direction out of it goes on until it is empty, and only
then is the other side reset. After an error was reported once, the kernel answers further reads
with end of file, so a failed side's end never counts as a clean one.

A source is watched *edge*-triggered at first: its end of file, once read, is then not reported
again and again, which saves a system call in each short connection. An edge-triggered source must
be read until it is known to be empty. Where one read does not show that, it is watched
level-triggered from then on. A change of the mask makes epoll look again, so no edge is missed
while a direction is paused or blocked.

The kernel reports EPOLLHUP and EPOLLERR unasked and for as long as they hold. A side for which
there is nothing to do but which reports them is *muted*: taken out of epoll until there is
something to do.
"""

from __future__ import annotations

from hardsplice.kernel.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardsplice.sandbox.address_book import Pointer

# select.EPOLL*: linux/eventpoll.h, the same on every architecture.
EPOLLIN = 0x001
EPOLLPRI = 0x002
EPOLLOUT = 0x004
EPOLLERR = 0x008
EPOLLHUP = 0x010
EPOLLRDHUP = 0x2000
EPOLLET = 1 << 31

CLIENT, TARGET = 0, 1
SIDES = (CLIENT, TARGET)

PAUSED, CONNECTING, OPEN, BLOCKED, FINISHED = range(5)
STATES = (PAUSED, CONNECTING, OPEN, BLOCKED, FINISHED)
STATE_NAMES = ("PAUSED", "CONNECTING", "OPEN", "BLOCKED", "FINISHED")

UNWATCHED = -1  # not in epoll at all, which is less than a mask of 0: that still reports errors


# What can happen to a direction, and what becomes of a flow whose direction has ended. Numbers, as
# the states are: to read a member off an enumeration takes Python 3.11 four times as long.
CONNECT = 0  # the handshake did not finish at once
RESUME = 1  # the target is connected, or there is a pipe again
STARVE = 2  # there is no pipe
BLOCK = 3  # the sink took less than was read
UNBLOCK = 4  # the sink took all that was held
END = 5  # end of file, and nothing is held
ABANDON = 6  # the sink is gone: what is held can't be delivered
STEPS = (CONNECT, RESUME, STARVE, BLOCK, UNBLOCK, END, ABANDON)
STEP_NAMES = ("CONNECT", "RESUME", "STARVE", "BLOCK", "UNBLOCK", "END", "ABANDON")

SHUT_SINK = 0  # pass FIN on; the other direction goes on
CLOSE = 1  # both directions are done: closing says FIN too
RESET = 2  # one side failed and all that it had sent is delivered

# A pair that is not here is a mistake in the engine, and says so with a KeyError, which ends that
# flow only.
NEXT: dict[tuple[int, int], int] = {
    (PAUSED, CONNECT): CONNECTING,
    (PAUSED, RESUME): OPEN,
    (PAUSED, ABANDON): FINISHED,
    (CONNECTING, CONNECT): CONNECTING,
    (CONNECTING, RESUME): OPEN,
    (OPEN, STARVE): PAUSED,
    (OPEN, BLOCK): BLOCKED,
    (OPEN, END): FINISHED,
    (OPEN, ABANDON): FINISHED,
    (BLOCKED, UNBLOCK): OPEN,
    (BLOCKED, ABANDON): FINISHED,
    (FINISHED, ABANDON): FINISHED,
}

INPUT = EPOLLIN | EPOLLRDHUP | EPOLLPRI
# What a direction asks of its source and of its sink, by state.
SOURCE_WATCH = (0, 0, INPUT, 0, 0)
SINK_WATCH = (0, EPOLLOUT, 0, EPOLLOUT, 0)


Pair = tuple[bool, bool]  # by side, or by direction: of what is rare, which all flows share
NEITHER, BOTH = (False, False), (True, True)


def marked(pair: Pair, side: int) -> Pair:
    """A pair as it is, but that it holds for ``side``."""
    return (True, pair[TARGET]) if side == CLIENT else (pair[CLIENT], True)


def unmarked(pair: Pair, side: int) -> Pair:
    """A pair as it is, but that it doesn't hold for ``side``."""
    return (False, pair[TARGET]) if side == CLIENT else (pair[CLIENT], False)


class Flow:
    """One connection's state. Lists and pairs are indexed by side, or by direction, which is the
    number of its source.

    The engine owns it; nothing in it refers back to it, so it is freed when the engine forgets it,
    without the garbage collector.
    """

    __slots__ = (
        "attempt",
        "deadline",
        "edge",
        "failed",
        "fd",
        "held",
        "muted",
        "pipe",
        "port_id",
        "route",
        "seen",
        "slow",
        "state",
        "tally",
        "unsent",
        "urgent_hidden",
        "watched",
    )

    def __init__(self, client: int, route: tuple[Pointer, ...], port_id: int = 0) -> None:
        self.fd = [client, -1]
        self.state = [PAUSED, PAUSED]
        self.held = [0, 0]  # bytes in the direction's pipe
        self.pipe: list[Any] = [None, None]  # the pipe that a blocked direction keeps
        self.watched = [UNWATCHED, UNWATCHED]  # the mask in epoll
        self.edge = BOTH  # input is reported once, when it comes, as far as that is enough
        self.muted = NEITHER
        self.failed = NEITHER
        # Whether it has been slow: then its send queue is limited, and its close is a reset unless
        # that is undone.
        self.slow = NEITHER
        self.urgent_hidden = NEITHER  # EPOLLPRI is left out until more input comes
        self.route = route  # each target to try, in order
        self.port_id = port_id  # of the forward whose listener accepted it
        # The counter of bytes to the target; that of bytes to the client follows it.
        self.tally = 0
        self.attempt = 0  # index into route
        self.seen = 0.0  # when something happened last, if that is needed (engine.py)
        self.unsent = 0  # bytes that its peers had still to take at the last check (engine.py)
        self.deadline = 0.0  # of the connect, or of a reset's grace; CLOCK_MONOTONIC seconds


def step(flow: Flow, direction: int, what: int) -> None:
    """Move one direction to its next state."""
    flow.state[direction] = NEXT[flow.state[direction], what]


def _level_mask(state: int, other: int) -> int:
    return SOURCE_WATCH[state] | SINK_WATCH[other]


def _edge_mask(state: int, other: int) -> int:
    """Where only input is asked for, or nothing more after it, an edge-triggered source keeps the
    mask that it has.
    """
    mask = _level_mask(state, other)
    return INPUT | EPOLLET if mask in (INPUT, 0) and state in (OPEN, FINISHED) else mask


# What a side is watched for, by whether it is edge-triggered, the state of the direction out of
# it, and that of the direction into it: worked out once, for it is asked several times a flow.
WATCH = tuple(
    tuple(tuple(mask(state, other) for other in STATES) for state in STATES)
    for mask in (_level_mask, _edge_mask)
)


def watch(flow: Flow, side: int) -> int:
    """The epoll mask that ``side`` needs now, or UNWATCHED."""
    state = flow.state
    mask = WATCH[flow.edge[side]][state[side]][state[1 - side]]
    if flow.urgent_hidden[side]:
        mask &= ~EPOLLPRI
    if mask == 0 and flow.muted[side]:
        return UNWATCHED
    return mask


def end_of_source(flow: Flow, direction: int) -> int:
    """A direction has delivered all that its source will ever send: SHUT_SINK, CLOSE or RESET."""
    if flow.failed[direction]:
        return RESET
    return CLOSE if flow.state[1 - direction] == FINISHED else SHUT_SINK


def side_failed(flow: Flow, side: int) -> bool:
    """Note that ``side`` failed. True when nothing of it remains to be delivered and the flow is to
    be reset.
    """
    flow.failed = marked(flow.failed, side)
    # The other side may go on sending: no need to wake up for that.
    flow.edge = unmarked(flow.edge, 1 - side)
    step(flow, 1 - side, ABANDON)
    return flow.state[side] == FINISHED


def diagram() -> str:
    """The transition table as a Mermaid diagram: DESIGN.md shows it, a test keeps it current."""
    lines = ["stateDiagram-v2", "    [*] --> PAUSED"]
    for (state, what), after in NEXT.items():
        lines.append(f"    {STATE_NAMES[state]} --> {STATE_NAMES[after]}: {STEP_NAMES[what]}")
    return "\n".join([*lines, "    FINISHED --> [*]"])
