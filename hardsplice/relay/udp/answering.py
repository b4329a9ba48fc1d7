# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ways in: datagrams of clients, which are sorted by flow, and answers of targets, which leave
from the listener's port and the address that the client had asked.

One call receives as many as there are, up to SLOTS; there is at most one such call for a socket in
a turn, so that none keeps the others waiting. The commonest cases, one datagram of a known client
and one answer, are handled first, without lists.

*Errors.* An error that waits at a flow's socket (ICMP) is returned by recvmmsg once, before the
answers that are in the queue. A refusal ends the flow once these are passed on.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from hardsplice.kernel.mmsghdr import LARGEST, SLOTS, reply_from_anywhere
from hardsplice.relay.udp.opening import Opener
from hardsplice.relay.udp.rules import (
    CANNOT_JOIN,
    EPOLLERR,
    EPOLLHUP,
    Run,
    count_of,
    joinable_after,
    runs,
)
from hardsplice.relay.udp.table import Flow, ListenerState
from hardsplice.telemetry import counters as count

_DATAGRAMS_BACK = count.DATAGRAMS + 1
_DROPS_MASK = 2**32 - 1  # the kernel counts a socket's drops in 32 bits


class Answerer(Opener):
    """The layer that receives, and answers clients."""

    __slots__ = ()

    # --- from clients -----------------------------------------------------------------------------

    def _take(self, state: ListenerState) -> None:
        """Receive from clients once, and pass it on."""
        inbox = state.inbox
        number = self.kernel.receive(state.fd, inbox, 0, SLOTS)
        if number == 1 and inbox.control_size(0) == inbox.plain:
            flow = state.flows.get(inbox.key(0))
            if flow is not None:
                inbox.renew(0, 1)
                self._guarded_send(flow, inbox.size(0))
                return
        if number <= 0:
            return  # there was none, or an error of an answer, which is gone by this
        sizes, segments = inbox.sizes(0, number), [0] * number
        keys = []
        for slot, used in enumerate(inbox.control_sizes(0, number)):
            if used == inbox.plain:
                keys.append(inbox.key(slot))
                continue
            keys.append(inbox.key_behind(slot, used))
            drops, segments[slot] = inbox.control(slot, used)
            if drops is not None:
                self._count_client_drops(state, drops)
        inbox.renew(0, number)
        if keys.count(keys[0]) == number:
            self._take_from(state, keys[0], range(number), sizes, segments)
            return
        by_client: dict[bytes, list[int]] = {}
        for slot, key in enumerate(keys):
            by_client.setdefault(key, []).append(slot)
        for key, slots in by_client.items():
            some = [sizes[slot] for slot in slots]
            self._take_from(state, key, slots, some, [segments[slot] for slot in slots])

    def _guarded_send(self, flow: Flow, size: int) -> None:
        try:
            self._send(flow, self.buffers.pointers[0], size)
        except Exception as error:  # noqa: BLE001 - it ends that flow only
            self._break(flow, error)

    def _take_from(
        self,
        state: ListenerState,
        key: bytes,
        slots: Sequence[int],
        sizes: Sequence[int],
        segments: Sequence[int],
    ) -> None:
        """Pass one client's datagrams on."""
        begin = 0
        flow = state.flows.get(key)
        while flow is None and begin < len(slots):
            self._open(state, key, slots[begin], sizes[begin], segments[begin])
            flow = state.flows.get(key)
            begin += 1
        if flow is None or begin == len(slots):
            return
        try:
            self._deliver(flow, slots[begin:], sizes[begin:], segments[begin:])
        except Exception as error:  # noqa: BLE001 - it ends that flow only
            self._break(flow, error)

    def _count_client_drops(self, state: ListenerState, drops: int) -> None:
        """``drops`` is the number since the listener was made, of which the first is what an
        earlier relay has counted.
        """
        if state.drops is not None:
            self.counters[count.DROPPED_QUEUE] += (drops - state.drops) & _DROPS_MASK
        state.drops = drops

    # --- from targets -----------------------------------------------------------------------------

    def _answer(self, flow: Flow, events: int) -> None:
        """Receive from a target once, and pass it on."""
        inbox = self.from_targets
        number = self.kernel.receive(flow.fd, inbox, 0, SLOTS)
        if number == 1 and inbox.control_size(0) == 0 and inbox.size(0) <= LARGEST:
            inbox.renew(0, 1)
            size = inbox.size(0)
            outbox = flow.state.outbox
            self.parts.words[1] = size
            outbox.put(0, flow.reply, 0, 1, 0)
            if self.kernel.send_all(flow.state.fd, outbox, 0, 1) == 1:
                self._count_back(flow, 1, size)
            else:
                self._put_all(flow, [(0, 1, 0)], [size])
        elif number > 0:
            self._answer_all(flow, number)
        else:
            self._on_error(flow, -number, events)

    def _answer_all(self, flow: Flow, number: int) -> None:
        inbox = self.from_targets
        sizes, segments = inbox.sizes(0, number), [0] * number
        for slot, used in enumerate(inbox.control_sizes(0, number)):
            if used:
                drops, segments[slot] = inbox.control(slot, used)
                if drops is not None:
                    self.counters[count.DROPPED_QUEUE] += (drops - flow.drops) & _DROPS_MASK
                    flow.drops = drops
        inbox.renew(0, number)
        self.parts.resize(0, sizes)
        self._put_all(flow, runs(sizes, segments, flow.joinable_back), sizes)

    def _put_all(self, flow: Flow, messages: Sequence[Run], sizes: Sequence[int]) -> None:
        """Send these to the client, with one call if the kernel takes them all."""
        outbox, listener = flow.state.outbox, flow.state.fd
        for at, (first, number, segment) in enumerate(messages):
            outbox.put(at, flow.reply, first, number, segment)
        at = 0
        while at < len(messages):
            sent = self.kernel.send_all(listener, outbox, at, len(messages) - at)
            for first, number, segment in messages[at : at + max(0, sent)]:
                total = sum(sizes[first : first + number])
                self._count_back(flow, count_of(total, segment), total)
            if sent <= 0:
                self._put_singly(flow, -sent, at, messages[at], sizes)
            at += max(1, sent)

    def _put_singly(
        self, flow: Flow, code: int, at: int, message: Run, sizes: Sequence[int]
    ) -> None:
        """The kernel didn't take message ``at``: send it as single datagrams, or count it."""
        first, number, segment = message
        total = sum(sizes[first : first + number])
        if segment and code in CANNOT_JOIN:
            flow.joinable_back = min(flow.joinable_back, joinable_after(code, segment))
            for slot in range(first, first + number):
                for offset in range(0, sizes[slot], segment):
                    self._put_one(flow, at, slot, offset, min(segment, sizes[slot] - offset))
        elif not segment and code == errno.EINVAL:
            self._put_one(flow, at, first, 0, total)
        else:
            self.counters[count.DROPPED_SEND] += count_of(total, segment)

    def _put_one(self, flow: Flow, at: int, slot: int, offset: int, size: int) -> None:
        """Send one datagram to the client, by way of message ``at``; from any address, if the one
        that the client had asked is none to send from, or none any more.
        """
        outbox, listener = flow.state.outbox, flow.state.fd
        self.parts.point(slot, slot, offset, size)
        sent = 0
        for reply in (flow.reply, reply_from_anywhere(flow.reply)):
            outbox.put(at, reply, slot, 1, 0)
            sent = self.kernel.send_all(listener, outbox, at, 1)
            if sent != -errno.EINVAL:
                break
        self.parts.point(slot, slot, 0, size)
        if sent == 1:
            self._count_back(flow, 1, size)
        else:
            self.counters[count.DROPPED_SEND] += 1

    def _count_back(self, flow: Flow, number: int, size: int) -> None:
        counters = self.counters
        counters[_DATAGRAMS_BACK] += number
        counters[flow.tally + 1] += size
        if not flow.answered:
            self._mark_answered(flow)
        elif self.moment >= flow.touch_at:
            self.flows.touch(flow, self.moment)

    def _mark_answered(self, flow: Flow) -> None:
        """The target has answered for the first time."""
        self.flows.mark_answered(flow, self.moment)
        self.due = min(self.due, self.flows.due())
        self.counters[count.CONNECTED] += 1
        if self.flow_writer is not None:
            self.flow_writer.answered(flow)

    def _on_error(self, flow: Flow, code: int, events: int) -> None:
        """Receiving from a target returned no datagram."""
        if code == errno.ECONNREFUSED:
            number = self.kernel.receive(flow.fd, self.from_targets, 0, SLOTS)
            if number > 0:
                self._answer_all(flow, number)
            self._refused(flow, code)
        elif code not in (0, errno.EAGAIN, errno.EINTR):
            self.counters[count.DROPPED_SEND] += 1
        elif events & (EPOLLERR | EPOLLHUP):
            # An error that recvmmsg doesn't return would be reported again and again.
            code = self.kernel.option(flow.fd, socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                self._break(flow, OSError(0, ""))
