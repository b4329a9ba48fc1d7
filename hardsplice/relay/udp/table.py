# SPDX-License-Identifier: GPL-2.0-or-later
"""The flows of a datagram relay, and when they are over. Without I/O.

A flow is one client's address at one of our addresses of one listener: the answer has to come from
the address that was asked. Flows have no end of their own; so they are kept in the order of their
last use, those that were answered apart from those that weren't. That order is brought up to date
at most once in TICK for each way of a flow, not for each datagram; so a flow lives up to TICK
longer, and then until the engine ends those that are over (engine.SWEEP_SECONDS).

*Brief flows.* A server that answers everybody, as those for names do, answers made-up clients too.
So of the answered flows those are told apart whose clients have sent nothing since a question got
its answer: they are done as a rule, and may make room for others. What targets send says nothing of
that, as many repeat what nobody confirms.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator

from hardsplice.kernel.mmsghdr import LARGEST, Inbox, Outbox
from hardsplice.kernel.packet_info import reply_to
from hardsplice.kernel.prepared import Call
from hardsplice.model.lifetimes import Lifetimes
from hardsplice.net.listener import Listener
from hardsplice.relay.udp.rules import flows_a_listener
from hardsplice.sandbox.address_book import Pointer
from hardsplice.telemetry import counters as count

TICK = 0.25  # seconds
STREAM_SECONDS = 2.0  # after its beginning; what clients send then makes a flow more than brief
NEVER = float("inf")

Answer = tuple["Flow", int, int, int, int]
"""A message for a client: the first slot, how many, the size of each datagram (0: it is a single
one), and bytes in all.
"""


class ListenerState:
    """A listener and what belongs to it."""

    __slots__ = ("answers", "brief", "drops", "fd", "flows", "inbox", "is_shut", "listener",
                 "outbox", "port_id", "preferred", "take", "turn", "unanswered")  # fmt: skip

    def __init__(self, listener: Listener, take: Call, inbox: Inbox, outbox: Outbox) -> None:
        self.listener = listener
        self.fd = listener.fd
        self.port_id = listener.port_id
        self.take = take
        self.inbox, self.outbox = inbox, outbox  # of its family
        self.flows: dict[bytes, Flow] = {}
        self.unanswered: OrderedDict[Flow, None] = OrderedDict()
        self.brief: OrderedDict[Flow, None] = OrderedDict()
        self.preferred = [0, 0]  # which target of the route worked last; of IPv4 clients' route
        self.answers: list[Answer] = []  # received, and not sent yet
        self.turn = 0  # behind that in which something was received last
        self.is_shut = False  # nothing is received from it any more
        self.drops: int | None = None  # datagrams that the kernel has dropped in all


class Flow:
    """A client's address at a listener, and the socket that is connected to its target."""

    __slots__ = ("answer", "answered", "began", "drops", "fd", "hear", "is_brief", "is_refused",
                 "joinable", "joinable_back", "key", "many", "reply", "retry_at", "segment", "send",
                 "state", "tally", "target", "touch_at", "touch_back_at", "turn",
                 "used")  # fmt: skip

    def __init__(self, state: ListenerState, key: bytes, target: Pointer, now: float) -> None:
        self.state = state
        self.key = key
        self.reply = reply_to(key)
        self.target = target
        self.fd = -1
        self.answered = self.is_brief = False
        self.is_refused = False  # it ends as soon as its answers are passed on
        self.began = self.used = now
        # From when on the next datagram is noted: of the client; of the target
        self.touch_at = self.touch_back_at = now + TICK
        self.retry_at = now  # from when on it is tried whether its socket can be replaced
        self.tally = count.BYTES  # in which words its bytes are counted
        self.segment = 0  # what UDP_SEGMENT is set to
        self.joinable = self.joinable_back = LARGEST  # bytes of datagrams that may be joined
        self.many = False  # answers are received many at once, and joined
        self.turn = 0  # behind that in which an answer was received last
        # For single datagrams; prepared for those that go on
        self.hear: Call | None = None
        self.send: Call | None = None
        self.answer: Call | None = None
        self.drops = 0  # datagrams that its socket's queue has dropped


class Flows:
    """All flows, by descriptor and by key."""

    __slots__ = ("answered", "brief", "by_fd", "lifetimes", "most", "unanswered")

    def __init__(self, lifetimes: Lifetimes, most: int) -> None:
        """``most`` is how many flows there are descriptors for."""
        self.lifetimes = lifetimes
        self.most = min(lifetimes.flows, most)
        self.by_fd: dict[int, Flow] = {}
        # In the order of their last use
        self.unanswered: OrderedDict[Flow, None] = OrderedDict()
        self.answered: OrderedDict[Flow, None] = OrderedDict()
        self.brief: OrderedDict[Flow, None] = OrderedDict()  # some of the answered ones

    def add(self, flow: Flow) -> None:
        """A flow has begun, with its socket."""
        self.by_fd[flow.fd] = flow
        flow.state.flows[flow.key] = flow
        self.unanswered[flow] = flow.state.unanswered[flow] = None

    def remove(self, flow: Flow) -> None:
        """A flow is over."""
        del self.by_fd[flow.fd]
        del flow.state.flows[flow.key]
        if flow.answered:
            del self.answered[flow]
            self._no_longer_brief(flow)
        else:
            del self.unanswered[flow], flow.state.unanswered[flow]

    def _no_longer_brief(self, flow: Flow) -> None:
        if flow.is_brief:
            flow.is_brief = False
            del self.brief[flow], flow.state.brief[flow]

    def mark_answered(self, flow: Flow, now: float) -> None:
        """The target has sent its first datagram."""
        del self.unanswered[flow], flow.state.unanswered[flow]
        flow.answered = flow.is_brief = True
        # The next datagram, if one comes, tells that it goes on.
        flow.used = flow.touch_at = flow.touch_back_at = now
        self.answered[flow] = self.brief[flow] = flow.state.brief[flow] = None

    def touch(self, flow: Flow, now: float) -> None:
        """A client's datagram was passed on; to be called once ``touch_at`` is reached."""
        flow.touch_at = now + TICK
        if now - flow.began >= STREAM_SECONDS:
            self._no_longer_brief(flow)
        self.touch_back(flow, now)

    def touch_back(self, flow: Flow, now: float) -> None:
        """A target's datagram was passed on; to be called once ``touch_back_at`` is reached."""
        flow.used, flow.touch_back_at = now, now + TICK
        if flow.answered:
            self.answered.move_to_end(flow)
            if flow.is_brief:
                self.brief.move_to_end(flow)
                flow.state.brief.move_to_end(flow)
        else:
            self.unanswered.move_to_end(flow)
            flow.state.unanswered.move_to_end(flow)

    def in_the_way(self, state: ListenerState, listeners: int) -> tuple[bool, Flow | None]:
        """Whether a new flow of a listener, of so many, takes the place of another one; and which
        that is: the one that was used the longest time ago of the unanswered ones, or else of the
        brief ones. None: there is none, so there is no room.
        """
        if len(state.flows) >= flows_a_listener(self.most, listeners):
            return True, next(itertools.chain(state.unanswered, state.brief), None)
        if len(self.by_fd) >= self.most:
            return True, self.most_dispensable()
        return False, None

    def most_dispensable(self) -> Flow | None:
        """The flow that would end first for others."""
        return next(itertools.chain(self.unanswered, self.brief), None)

    def due(self) -> float:
        """When the next flow may be over; NEVER where there is none."""
        due = NEVER
        for flow in self._oldest():
            due = min(due, self._end_of(flow))
        return due

    def expired(self, now: float) -> Flow | None:
        """A flow that is over now."""
        return next((flow for flow in self._oldest() if self._end_of(flow) <= now), None)

    def _oldest(self) -> Iterator[Flow]:
        for queue in (self.unanswered, self.answered):
            if queue:
                yield next(iter(queue))

    def _end_of(self, flow: Flow) -> float:
        lifetimes = self.lifetimes
        return flow.used + (lifetimes.answered if flow.answered else lifetimes.unanswered) + TICK
