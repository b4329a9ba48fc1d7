# SPDX-License-Identifier: GPL-2.0-or-later
"""What a datagram relay works with, and datagrams' way to the targets.

The lowest of the four layers that make up the engine: sending, opening, answering, engine. Each
knows the ones below it.

*Two calls that can't name an address.* A flow's socket is connected, and send(3) and writev(2) go
to its peer. One datagram goes by send, several of one size by one writev that the kernel cuts
(UDP_SEGMENT). That size is an option of the socket: it is set when it has to be another one, and a
single datagram that isn't larger goes out as it is meanwhile.

*Useless sockets.* A flow whose socket may be of no use any more is tried anew once in a while: it
ends if another socket can be connected to its target, since its client's next datagram then begins
another one.

*Nothing is lost or sent twice when the kernel can't cut.* It then sends none of them, and they go
out one by one.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from ctypes import c_void_p

from hardsplice.ipc.messages import Note
from hardsplice.kernel.mmsghdr import Buffers, Inbox, Outbox, Parts
from hardsplice.kernel.pinned import IPV4_SIZE, IPV6_SIZE
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.lifetimes import Lifetimes
from hardsplice.model.unforeseen import kind_and_place
from hardsplice.relay.link import MonitorLink
from hardsplice.relay.pools import SocketPool
from hardsplice.relay.udp.flow_writer import FlowWriter
from hardsplice.relay.udp.rules import (
    CANNOT_JOIN,
    MAYBE_OF_ANOTHER,
    MAYBE_USELESS,
    count_of,
    joinable_after,
    runs,
)
from hardsplice.relay.udp.seam import Kernel
from hardsplice.relay.udp.table import NEVER, Flow, Flows, ListenerState
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.flow_table import End

AGAIN_SECONDS = 1.0  # at least, until it is tried again whether a flow's socket can be replaced


class Resources(NamedTuple):
    """What a datagram relay works with."""

    kernel: Kernel
    monitor: MonitorLink
    lifetimes: Lifetimes
    descriptors: int  # RLIMIT_NOFILE
    other_descriptors: int  # those with fixed numbers, places of listeners, epoll
    pools: tuple[SocketPool, SocketPool]  # of pre-opened sockets, by family
    families: tuple[int, ...]  # those that targets have
    counters: memoryview
    trace: bool = False  # report every flow to the monitor
    flow_writer: FlowWriter | None = None  # if single flows are to be shown
    gauges: memoryview | None = None  # where to write what is in use (counters.GAUGES)


class Sender:
    """The layer that sends to targets."""

    __slots__ = (
        "buffers",
        "counters",
        "descriptors",
        "due",
        "epoll",
        "families",
        "find",
        "flow_writer",
        "flows",
        "from_targets",
        "gauges",
        "has_changed",
        "inboxes",
        "kernel",
        "listeners",
        "moment",
        "monitor",
        "other_descriptors",
        "outboxes",
        "parts",
        "poll",
        "pools",
        "refused",
        "trace",
        "turns",
    )

    def __init__(self, resources: Resources) -> None:
        self.kernel = resources.kernel
        self.monitor = resources.monitor
        self.pools = resources.pools
        self.families = resources.families
        self.counters = resources.counters
        self.trace = resources.trace
        self.flow_writer = resources.flow_writer
        self.descriptors = resources.descriptors
        self.other_descriptors = resources.other_descriptors
        self.gauges = resources.gauges
        self.has_changed = True  # whether pools and gauges are to be looked at
        if self.gauges is not None:
            self.gauges[5] = self.descriptors
        pooled = sum(self.pools[family].size for family in self.families)
        free = self.descriptors - self.other_descriptors - pooled
        self.flows = Flows(resources.lifetimes, max(1, free))
        self.listeners: dict[int, ListenerState] = {}
        self.refused: list[tuple[Flow, int]] = []  # in this turn by sending, with the errno
        self.epoll = self.kernel.epoll()
        self.poll, self.find = self.epoll.poll, self.flows.by_fd.get  # found once
        self.moment = self.kernel.now()  # when this turn began (CLOCK_MONOTONIC seconds)
        self.turns = 1  # that have begun, as a number that no flow has at first
        self.due = NEVER  # when something is to be done that no event tells of
        self.buffers = Buffers()
        self.parts = Parts(self.buffers)
        self.from_targets = Inbox(self.buffers, 0)
        self.inboxes = {size: Inbox(self.buffers, size) for size in (IPV4_SIZE, IPV6_SIZE)}
        self.outboxes = {size: Outbox(self.parts, size) for size in (IPV4_SIZE, IPV6_SIZE)}

    # --- to the target ----------------------------------------------------------------------------

    def _deliver(
        self, flow: Flow, slots: Sequence[int], sizes: Sequence[int], segments: Sequence[int]
    ) -> None:
        """Send one flow's datagrams, in order. It may end by that."""
        for first, number, segment in runs(sizes, segments, flow.joinable):
            if flow.fd < 0 or flow.is_refused:  # these are lost as well
                pieces = zip(sizes[first:], segments[first:], strict=True)
                self.counters[count.DROPPED_SEND] += sum(count_of(*piece) for piece in pieces)
                return
            if not segment:
                self._send(flow, self.buffers.pointers[slots[first]], sizes[first])
                continue
            some, lengths = slots[first : first + number], sizes[first : first + number]
            code = self._send_joined(flow, some, lengths, segment)
            if code:
                flow.joinable = min(flow.joinable, joinable_after(code, segment))
                for slot, size in zip(some, lengths, strict=True):
                    self._send_singly(flow, slot, size, segment)

    def _send(self, flow: Flow, where: c_void_p, size: int) -> None:
        """Send one datagram."""
        if size > flow.segment > 0:
            code = self._set_segment(flow, 0)
            if code:  # it would be cut
                self._not_sent(flow, code, 1)
                return
        sent = self.kernel.send(flow.fd, where, size)
        if sent < 0:
            self._send_again(flow, where, size, -sent)
            return
        self._count(flow, 1, size)

    def _send_each(self, flows: Sequence[Flow], slots: Sequence[int], sizes: Sequence[int]) -> None:
        """Send one datagram of each of these flows: `_send` without a call for each."""
        send, pointers, moment = self.kernel.send, self.buffers.pointers, self.moment
        datagrams = total = 0
        for flow, slot in zip(flows, slots, strict=True):
            size = sizes[slot]
            try:
                if flow.segment:
                    self._send(flow, pointers[slot], size)
                    continue
                sent = send(flow.fd, pointers[slot], size)
                if sent < 0:
                    self._send_again(flow, pointers[slot], size, -sent)
                    continue
                datagrams += 1
                if flow.tally == count.BYTES:
                    total += size
                else:
                    self.counters[flow.tally] += size
                if moment >= flow.touch_at:
                    self._touch(flow)
            except Exception as error:  # noqa: BLE001 - it ends that flow only
                self._break(flow, error)
        self.counters[count.DATAGRAMS] += datagrams
        self.counters[count.BYTES] += total

    def _send_again(self, flow: Flow, where: c_void_p, size: int, code: int) -> None:
        """Send a datagram that the kernel didn't take, where the reason may be gone."""
        if flow.segment and code in CANNOT_JOIN:
            self._set_segment(flow, 0)
            code = -self.kernel.send(flow.fd, where, size)
        if code in MAYBE_OF_ANOTHER:
            code = -self.kernel.send(flow.fd, where, size)
        if code > 0:
            self._not_sent(flow, code, 1)
        else:
            self._count(flow, 1, size)

    def _send_joined(
        self, flow: Flow, slots: Sequence[int], sizes: Sequence[int], segment: int
    ) -> int:
        """Send several datagrams of one size with one call. 0, or the errno where they have to go
        out singly.
        """
        if flow.segment != segment:
            code = self._set_segment(flow, segment)
            if code:
                return code
        first = slots[0]
        are_neighbours = slots[-1] - first == len(slots) - 1
        try:
            if are_neighbours:
                self.parts.resize(first, sizes)
            else:
                self.parts.place(slots, sizes)
                first = 0
            sent = self.kernel.write(flow.fd, self.parts, first, len(slots))
            if sent < 0 and -sent in MAYBE_OF_ANOTHER:
                sent = self.kernel.write(flow.fd, self.parts, first, len(slots))
        finally:  # others' datagrams go by these entries, too
            if not are_neighbours:
                self.parts.restore(len(slots))
        total = sum(sizes)
        number = count_of(total, segment)
        if sent >= 0:
            self._count(flow, number, total)
        elif -sent in CANNOT_JOIN:
            return -sent
        else:
            self._not_sent(flow, -sent, number)
        return 0

    def _send_singly(self, flow: Flow, slot: int, size: int, segment: int) -> None:
        """Send what lies in a slot as the single datagrams that it consists of."""
        for offset in range(0, size, segment):
            if flow.fd < 0 or flow.is_refused:
                self.counters[count.DROPPED_SEND] += 1
                continue
            self._send(flow, self.buffers.pointer(slot, offset), min(segment, size - offset))

    def _set_segment(self, flow: Flow, size: int) -> int:
        """Set into what size the kernel cuts. 0, or the errno."""
        code = self.kernel.segment(flow.fd, size)
        if code == 0:
            flow.segment = size
        return -code

    def _count(self, flow: Flow, number: int, size: int) -> None:
        counters = self.counters
        counters[count.DATAGRAMS] += number
        counters[flow.tally] += size
        if self.moment >= flow.touch_at:
            self._touch(flow)

    def _touch(self, flow: Flow) -> None:
        """A client goes on, as is noted a few times a second."""
        self.flows.touch(flow, self.moment)
        self._prepare(flow)

    def _prepare(self, flow: Flow) -> None:
        """What goes on is worth preparing for."""
        if flow.send is None:
            flow.hear = self.kernel.to_hear(flow.fd, self.buffers)
            flow.send = self.kernel.to_send(flow.fd, self.parts)
            flow.answer = self.kernel.to_answer(flow.state.fd, self.parts, flow.reply)

    def _not_sent(self, flow: Flow, code: int, number: int) -> None:
        """The kernel didn't take so many datagrams, or says that the target refused others."""
        self.counters[count.DROPPED_SEND] += number
        if code == errno.ECONNREFUSED or (
            code in MAYBE_USELESS
            and self.moment >= max(flow.touch_at, flow.retry_at)
            and self._can_be_replaced(flow)
        ):
            # Not at once: where its answers are to be received, there are clients' datagrams now.
            flow.is_refused = self.has_changed = True
            self.refused.append((flow, code))

    def _can_be_replaced(self, flow: Flow) -> bool:
        """Whether another socket can be connected to the target of a flow."""
        flow.retry_at = self.moment + AGAIN_SECONDS
        ready = self.pools[flow.target.family].ready
        if not ready:
            return False
        self.has_changed = True
        fd = ready.popleft()
        code = self.kernel.connect(fd, flow.target)
        self.kernel.close(fd)
        return code == 0

    # --- ends -------------------------------------------------------------------------------------

    def _refused(self, flow: Flow, code: int) -> None:
        self.counters[count.REFUSED] += 1
        self.monitor.note(Note.REFUSED, code, flow.state.port_id)
        self._end(flow, End.REFUSED)

    def _end(self, flow: Flow, end: End) -> None:
        """A flow is over. Its socket is closed and not used again: a late answer would go to
        somebody else.
        """
        self.has_changed = True
        self.flows.remove(flow)
        fd, flow.fd = flow.fd, -1
        self.kernel.close(fd)
        if self.flow_writer is not None:
            self.flow_writer.closed(flow, end)
        if self.trace:
            self.monitor.trace(Note.ENDED, flow.state.port_id, 0)

    def _break(self, flow: Flow, error: Exception) -> None:
        """An error that no rule foresees: end this flow, report it, go on with the others."""
        self.counters[count.ERRORS] += 1
        self.monitor.note(
            Note.ERROR,
            getattr(error, "errno", None) or 0,
            flow.state.port_id,
            kind_and_place(error),
        )
        if flow.fd >= 0:
            self._end(flow, End.ERROR)
