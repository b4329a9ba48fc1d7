# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ways in: datagrams of clients, which are sorted by flow, and answers of targets, which leave
from the listener's port and the address that the client had asked.

One call receives as many as there are, up to SLOTS; there is at most one such call for a socket in
a turn, so that none keeps the others waiting. Answers of several targets are received into slots
one behind the other; then each listener sends its clients' with one call (`_pass_back`), before
anything is received from clients, which takes the same slots.

*Errors.* An error that waits at a flow's socket (ICMP) is returned by recvmmsg once, before the
answers that are in the queue. A refusal ends the flow once these are passed on.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from hardsplice.kernel.mmsghdr import SLOTS, reply_from_anywhere
from hardsplice.relay.udp.opening import Opener
from hardsplice.relay.udp.rules import (
    CANNOT_JOIN,
    EPOLLERR,
    EPOLLHUP,
    NO_SOURCE,
    count_of,
    joinable_after,
    runs,
)
from hardsplice.relay.udp.sending import Resources
from hardsplice.relay.udp.table import Answer, Flow, ListenerState
from hardsplice.telemetry import counters as count

_DATAGRAMS_BACK = count.DATAGRAMS + 1
_DROPS_MASK = 2**32 - 1  # the kernel counts a socket's drops in 32 bits
_MOST_USED = SLOTS - 16  # slots; with fewer free ones, what is there is passed on first


class Answerer(Opener):
    """The layer that receives, and answers clients."""

    __slots__ = ("answering", "is_alone", "used")

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources)
        self.answering: list[ListenerState] = []  # those that have answers to send
        self.used = 0  # slots that hold these
        self.is_alone = False  # this turn has a single event

    # --- from clients -----------------------------------------------------------------------------

    def _take(self, state: ListenerState) -> None:
        """Receive from clients once, and pass it on."""
        inbox = state.inbox
        number = self.kernel.receive(state.fd, inbox, 0, SLOTS)
        if number == 1:
            size = inbox.take_single(0)
            if size >= 0:
                key = inbox.key(0)
                flow = state.flows.get(key)
                if flow is None:
                    self._open(state, key, 0, size, 0)
                    return
                try:
                    self._send(flow, self.buffers.pointers[0], size)
                except Exception as error:  # noqa: BLE001 - it ends that flow only
                    self._break(flow, error)
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
        different = len(set(keys))
        if different == number:
            self._take_singles(state, keys, sizes, segments)
        elif different == 1:
            self._take_from(state, keys[0], range(number), sizes, segments)
        else:
            by_client: dict[bytes, list[int]] = {}
            for slot, key in enumerate(keys):
                by_client.setdefault(key, []).append(slot)
            for key, slots in by_client.items():
                some = [sizes[slot] for slot in slots]
                self._take_from(state, key, slots, some, [segments[slot] for slot in slots])

    def _take_singles(
        self,
        state: ListenerState,
        keys: Sequence[bytes],
        sizes: Sequence[int],
        segments: Sequence[int],
    ) -> None:
        """Pass on what came from as many clients."""
        find, pointers = state.flows.get, self.buffers.pointers
        for slot, key in enumerate(keys):
            flow = find(key)
            if flow is None or segments[slot]:
                self._take_from(state, key, (slot,), (sizes[slot],), (segments[slot],))
                continue
            try:
                self._send(flow, pointers[slot], sizes[slot])
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
        """Receive from a target once, for `_pass_back`; or send at once what nothing else waits
        with.
        """
        if self.used > _MOST_USED:
            self._pass_back()
        inbox, first = self.from_targets, self.used
        number = self.kernel.receive(flow.fd, inbox, first, SLOTS - first)
        size = inbox.take_single(first) if number == 1 else -1
        if size >= 0:
            self.parts.words[2 * first + 1] = size
            state, answer = flow.state, (flow, first, 1, 0, size)
            if self.is_alone:
                state.outbox.put(0, flow.reply, 0, 1, 0)
                sent = self.kernel.send_all(state.fd, state.outbox, 0, 1)
                if sent == 1:
                    self._count_back(answer)
                else:
                    self._put_singly(-sent, 0, answer)
                return
            self.used = first + 1
            if not state.answers:
                self.answering.append(state)
            state.answers.append(answer)
        elif number > 0:
            self._answer_all(flow, first, number)
        else:
            self._on_error(flow, -number, events)

    def _answer_all(self, flow: Flow, start: int, number: int) -> None:
        """Note down what was received into so many slots."""
        inbox, state = self.from_targets, flow.state
        sizes, segments = inbox.sizes(start, number), [0] * number
        for at, used in enumerate(inbox.control_sizes(start, number)):
            if used:
                drops, segments[at] = inbox.control(start + at, used)
                if drops is not None:
                    self.counters[count.DROPPED_QUEUE] += (drops - flow.drops) & _DROPS_MASK
                    flow.drops = drops
        inbox.renew(start, number)
        self.parts.resize(start, sizes)
        self.used = start + number
        if not state.answers:
            self.answering.append(state)
        for first, pieces, segment in runs(sizes, segments, flow.joinable_back):
            total = sum(sizes[first : first + pieces])
            state.answers.append((flow, start + first, pieces, segment, total))

    def _pass_back(self) -> None:
        """Send all answers that were received, with one call a listener if the kernel takes them
        all.
        """
        answering, self.answering, self.used = self.answering, [], 0
        for state in answering:
            answers, state.answers = state.answers, []
            self._put_all(state, answers)

    def _put_all(self, state: ListenerState, answers: Sequence[Answer]) -> None:
        put = state.outbox.put
        for at, (flow, first, number, segment, _) in enumerate(answers):
            try:
                put(at, flow.reply, first, number, segment)
            except Exception as error:  # noqa: BLE001 - it ends that flow only
                self._break(flow, error)
                self._put_all(state, [one for one in answers if one[0] is not flow])
                return
        at = 0
        while at < len(answers):
            sent = self.kernel.send_all(state.fd, state.outbox, at, len(answers) - at)
            done = max(1, sent)
            for answer in answers[at : at + done]:
                try:
                    if sent > 0:
                        self._count_back(answer)
                    else:
                        self._put_singly(-sent, at, answer)
                except Exception as error:  # noqa: BLE001 - it ends that flow only
                    self._break(answer[0], error)
            at += done

    def _put_singly(self, code: int, at: int, answer: Answer) -> None:
        """The kernel didn't take message ``at``: send it as single datagrams, or count it."""
        flow, first, number, segment, total = answer
        if segment and code in CANNOT_JOIN | NO_SOURCE:
            if code in CANNOT_JOIN:
                flow.joinable_back = min(flow.joinable_back, joinable_after(code, segment))
            for slot in range(first, first + number):
                size = self.parts.words[2 * slot + 1]
                for offset in range(0, size, segment):
                    self._put_one(flow, at, slot, offset, min(segment, size - offset))
        elif not segment and code in NO_SOURCE:
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
            if -sent not in NO_SOURCE:
                break
        self.parts.point(slot, slot, 0, size)
        if sent == 1:
            self._count_back((flow, slot, 1, 0, size))
        else:
            self.counters[count.DROPPED_SEND] += 1

    def _count_back(self, answer: Answer) -> None:
        flow, _, _, segment, size = answer
        counters = self.counters
        counters[_DATAGRAMS_BACK] += count_of(size, segment) if segment else 1
        counters[flow.tally + 1] += size
        if not flow.answered:
            if flow.fd >= 0:
                self._mark_answered(flow)
        elif self.moment >= flow.touch_at and flow.fd >= 0:
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
            first = self.used
            number = self.kernel.receive(flow.fd, self.from_targets, first, SLOTS - first)
            if number > 0:
                self._answer_all(flow, first, number)
                self._pass_back()
            self._refused(flow, code)
        elif code not in (0, errno.EAGAIN, errno.EINTR):
            self.counters[count.DROPPED_SEND] += 1
        elif events & (EPOLLERR | EPOLLHUP):
            # An error that recvmmsg doesn't return would be reported again and again.
            code = self.kernel.option(flow.fd, socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                self._break(flow, OSError(0, ""))
