# SPDX-License-Identifier: GPL-2.0-or-later
"""Counters in anonymous shared memory: a relay writes them, monitors read them, and neither asks
the kernel.

The monitor makes the memory before it forks the relay, so the counts outlive a relay that died. A
relay may have been taken over: its memory can contain anything, and readers expect that. Its
successor doesn't read it: when a relay has ended, its monitor takes over its counts and resets the
memory. Otherwise a number left there, to which nothing can be added, would end each successor at
its first connection.

What monitors count about a relay is in a page of their own, which no relay has: the relay's monitor
writes it, the host monitor reads it. No process has memory that it doesn't need: a fork gets that
of the relays for which it is `shared`, and no other.

If single flows are to be shown, the flow table (telemetry/flow_table.py) follows the counters
in the same memory, and so bytes are counted in the same way with and without it: each flow has the
index of the two words in which its bytes are counted, its own row's or, without a table, the
relay's.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import mmap
from collections.abc import Iterable, Iterator, Mapping

from hardsplice.kernel.record import NamedTuple
from hardsplice.model.protocol import Protocol
from hardsplice.telemetry.flow_table import WORD_MASK, WORDS_A_ROW, FlowTable


class Counter(NamedTuple):
    """A counter of a relay: its names, and what it counts."""

    name: str  # in the control socket's JSON
    help: str
    metric: str | None  # without hardsplice_; None where another metric has it (control/metrics.py)
    labels: Mapping[str, str]  # besides the relay's, where a metric is made of several counters
    protocol: Protocol | None = None  # that of the relays which count it; None: all of them


BY_RELAY: list[Counter] = []  # each at the index of its word in the relay's memory
BY_MONITOR: list[Counter] = []  # likewise in the monitors' page: what the relay can't count


def _counter(table: list[Counter], name: str, metric: str | None, help_: str, **labels: str) -> int:
    """Declare a counter, here and nowhere else; its index."""
    table.append(Counter(name, help_, metric, labels))
    return len(table) - 1


def _of_datagrams(name: str, metric: str, help_: str, **labels: str) -> int:
    """The same of one that only relays of datagrams count."""
    BY_RELAY.append(Counter(name, help_, metric, labels, Protocol.UDP))
    return len(BY_RELAY) - 1


_MOVED = "Bytes moved, by destination, including those of open flows."
BYTES = _counter(BY_RELAY, "bytes_to_target", "bytes_total", _MOVED, to="target")
_counter(BY_RELAY, "bytes_to_client", "bytes_total", _MOVED, to="client")  # at BYTES + 1
ACCEPTED = _counter(BY_RELAY, "accepted", "accepted_total", "Connections accepted.")
CONNECTED = _counter(
    BY_RELAY, "connected", "connected_total", "Connections whose target was connected."
)
CLOSED = _counter(BY_RELAY, "closed", "closed_total", "Flows that ended with FIN both ways.")
RESET = _counter(
    BY_RELAY,
    "reset",
    "resets_total",
    "Flows that ended by a reset of either side, which was passed on.",
)
REFUSED = _counter(
    BY_RELAY, "refused", "refused_total", "Flows whose target refused; the client got a reset."
)
TIMED_OUT = _counter(
    BY_RELAY, "timed_out", "timed_out_total", "Flows whose target did not answer in time."
)
ERRORS = _counter(BY_RELAY, "errors", "errors_total", "Flows that ended by an error in hardsplice.")
URGENT = _counter(BY_RELAY, "urgent", "urgent_bytes_total", "Urgent bytes passed on.")
BLOCKED = _counter(
    BY_RELAY, "blocked", "blocked_total", "Times that a receiver took less than was read."
)
STARVED = _counter(BY_RELAY, "starved", "starved_total", "Times that a flow waited for a pipe.")
PAUSED = _counter(
    BY_RELAY,
    "paused",
    "accept_pauses_total",
    "Times that accepting was suspended for lack of a socket or a descriptor.",
)
UNLISTED = _counter(
    BY_RELAY, "unlisted", "unlisted_flows_total", "Flows for which the flow table had no row."
)
UNLOGGED = _counter(
    BY_RELAY,
    "unlogged",
    "unlogged_flows_total",
    "Ends of flows that are not in the log, since the relay's monitor was too busy.",
)
STOPPED = _counter(
    BY_RELAY, "stopped", "stopped_flows_total", "Flows that were reset because hardsplice ended."
)
DRAINED = _counter(
    BY_RELAY,
    "drained",
    "drained_flows_total",
    "Flows that finished while hardsplice was draining.",
)
IDLE = _counter(
    BY_RELAY,
    "idle",
    "idle_flows_total",
    "Flows that were reset because nothing had moved for the time of --idle-timeout.",
)
JAMMED = _counter(
    BY_RELAY,
    "jammed",
    "jammed_flows_total",
    "Half-closed flows that were reset for lack of descriptors.",
)
_PASSED_ON = "Datagrams passed on, by destination."
DATAGRAMS = _of_datagrams("datagrams_to_target", "datagrams_total", _PASSED_ON, to="target")
_of_datagrams("datagrams_to_client", "datagrams_total", _PASSED_ON, to="client")  # at DATAGRAMS + 1
_DROPPED = (
    "Datagrams dropped: by the kernel since a socket's queue was full, since a receiver took no"
    " more, for lack of room for a new flow, or since they came from no address to answer to."
)
DROPPED_QUEUE = _of_datagrams("dropped_queue", "datagrams_dropped_total", _DROPPED, reason="queue")
DROPPED_SEND = _of_datagrams("dropped_send", "datagrams_dropped_total", _DROPPED, reason="send")
DROPPED_LIMIT = _of_datagrams("dropped_limit", "datagrams_dropped_total", _DROPPED, reason="limit")
DROPPED_SOURCE = _of_datagrams(
    "dropped_source", "datagrams_dropped_total", _DROPPED, reason="source"
)
EVICTED = _of_datagrams(
    "evicted",
    "evicted_flows_total",
    "Flows that ended early to make room for new ones: unanswered ones, and brief ones.",
)
EXPIRED = _of_datagrams(
    "expired",
    "expired_flows_total",
    "Answered flows that ended since nothing had come for the time of --udp-stream-timeout.",
)
UNANSWERED = _of_datagrams(
    "unanswered",
    "unanswered_flows_total",
    "Flows that ended without an answer in the time of --udp-timeout.",
)
UNPASSED = _counter(
    BY_MONITOR,
    "unpassed",
    "unpassed_flows_total",
    "Ends of flows that are not in the log, since the host monitor was too busy.",
)
RESTARTS = _counter(
    BY_MONITOR,
    "restarts",
    "relay_restarts_total",
    "Times that the relay died and was restarted.",
)
DENIED_CALLS = _counter(
    BY_MONITOR,
    "denied_calls",
    None,
    "Restarts because of a system call or another forbidden action.",
)
DENIED_RECORDS = _counter(
    BY_MONITOR, "denied_records", None, "Restarts because of a record that it may not send."
)
COUNTERS = tuple(one.name for one in BY_RELAY)
KEPT = tuple(one.name for one in BY_MONITOR)

# Upper bounds, in seconds, of the histogram of how long clients wait from being accepted until the
# target is reached. On loopback that takes some 0.1 ms; a lost SYN is sent again after a second.
LATENCY_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1, 1.0, 10.0)
_LATENCY = len(COUNTERS)  # the histogram's first word; the last but one is for what is above
_LATENCY_SUM = _LATENCY + len(LATENCY_BOUNDS) + 1  # nanoseconds

# What a relay uses at the moment; written at the end of each turn if there is a flow table.
GAUGES = {
    "pipes_open": "Pipes in the pool or used by flows.",
    "pipes_free": "Pipes in the pool.",
    "sockets_ipv4": "IPv4 sockets that are ready to be connected.",
    "sockets_ipv6": "IPv6 sockets that are ready to be connected.",
    "descriptors": "Descriptors in use or reserved.",
    "descriptors_limit": "The limit of descriptors.",
}
_GAUGES = _LATENCY_SUM + 1
_FIXED_WORDS = _GAUGES + len(GAUGES)

# The monitors' page: KEPT, then whether the relay was started, then a number that is odd while the
# rest changes, then what the relays counted that have ended: all that is in front of the gauges.
_STARTED = len(KEPT)
_GENERATION = _STARTED + 1
_ENDED = _GENERATION + 1
_ATTEMPTS = 2  # to read a page that is being changed, which takes no time


class Latency(NamedTuple):
    """The histogram, as Prometheus has them: each count includes those before it."""

    counts: tuple[int, ...]  # up to each of LATENCY_BOUNDS, then all
    seconds: float  # of all of them together


class Stats:
    """What is counted of one relay, as 64-bit words: by itself (``count``), of it (``kept``)."""

    def __init__(self, rows: int = 0) -> None:
        """``rows`` is the number of flows that the flow table has room for; without any there is
        none.
        """
        words = _FIXED_WORDS + (FlowTable.HEAD_WORDS + rows * WORDS_A_ROW if rows else 0)
        # What is never written takes no memory.
        self._memory, self._page = mmap.mmap(-1, 8 * words), mmap.mmap(-1, 8 * (_ENDED + _GAUGES))
        self.count, self._words = (
            memoryview(memory).cast("Q") for memory in (self._memory, self._page)
        )
        self.kept, self._ended = self._words[: len(KEPT)], self._words[_ENDED:]
        self._pass_on(self._memory, self._page, passed=False)
        self.flows = FlowTable(self.count, _FIXED_WORDS) if rows else None

    @staticmethod
    def _pass_on(*memory: mmap.mmap, passed: bool) -> None:
        for one in memory:
            one.madvise(mmap.MADV_DOFORK if passed else mmap.MADV_DONTFORK)

    @contextlib.contextmanager
    def shared(self, *, with_monitor: bool = False) -> Iterator[None]:
        """Processes that are forked meanwhile get the relay's memory, and monitors the monitors'
        page. They don't pass these on.
        """
        memory = (self._memory, self._page) if with_monitor else (self._memory,)
        self._pass_on(*memory, passed=True)
        try:
            yield
        finally:
            self._pass_on(*memory, passed=False)

    @property
    def is_started(self) -> bool:
        """Whether there is such a relay, be it one that is being replaced."""
        return bool(self._words[_STARTED])

    def mark_started(self) -> None:
        """The relay, or one that replaces it, was started by its monitor."""
        self._words[_STARTED] = 1

    def begin_anew(self) -> None:
        """The relay has ended, and the rows of its flows are closed: its monitor takes over its
        counts here, and its successor begins with zeros.
        """
        self._words[_GENERATION] |= 1
        for at, count in enumerate(self.count[:_GAUGES]):
            self._ended[at] = (self._ended[at] + count) & WORD_MASK
        self.count[:_FIXED_WORDS] = memoryview(bytes(8 * _FIXED_WORDS)).cast("Q")
        self._words[_GENERATION] = (self._words[_GENERATION] + 1) & WORD_MASK

    def _counted(self) -> list[int]:
        """The words in front of the gauges, of all relays so far; bytes include those of flows that
        are still there.
        """
        words: list[int] = []
        for _ in range(_ATTEMPTS):  # the writer may be hostile, so not forever
            before = self._words[_GENERATION]
            words = self.count[:_GAUGES].tolist()
            if self.flows is not None:
                words[:2] = self.flows.bytes_with(self.count[:2])
            words = [(one + more) & WORD_MASK for one, more in zip(words, self._ended, strict=True)]
            if before % 2 == 0 and before == self._words[_GENERATION]:
                break
        return words

    def snapshot(self) -> dict[str, int]:
        """Every counter by name; bytes include those of flows that are still there."""
        counts = dict(zip(COUNTERS, self._counted(), strict=False))
        counts.update(zip(KEPT, self.kept, strict=True))
        return counts

    def unreported(self) -> int:
        """Ends of flows that are not in the log, since a monitor was too busy to receive them."""
        return self._ended[UNLOGGED] + self.count[UNLOGGED] + self.kept[UNPASSED]

    def gauges(self) -> memoryview:
        """The words of GAUGES, for the relay to write."""
        return self.count[_GAUGES:_FIXED_WORDS]

    def in_use(self) -> dict[str, int]:
        """Every gauge by name."""
        return dict(zip(GAUGES, self.gauges(), strict=True))

    def connect_latency(self) -> Latency:
        """How long clients waited for their targets; only counted if there is a flow table."""
        words = self._counted()
        counts = itertools.accumulate(words[_LATENCY:_LATENCY_SUM])
        return Latency(tuple(counts), words[_LATENCY_SUM] / 1e9)


@contextlib.contextmanager
def shared_with_monitor(stats: Iterable[Stats]) -> Iterator[None]:
    """Processes that are forked meanwhile are monitors of these relays: they get both memories."""
    with contextlib.ExitStack() as stack:
        for one in stats:
            stack.enter_context(one.shared(with_monitor=True))
        yield


def count_latency(words: memoryview, seconds: float) -> None:
    """Add one connection to the histogram."""
    words[_LATENCY + bisect.bisect_left(LATENCY_BOUNDS, seconds)] += 1
    words[_LATENCY_SUM] += max(0, int(seconds * 1e9))
