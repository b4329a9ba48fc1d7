# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ways in: datagrams of clients, which are sorted by flow, and answers of targets, which leave
from the listener's port and the address that the client had asked.

One call receives as many as there are, up to SLOTS; there is at most one such call for a socket in
a turn, so that none keeps the others waiting. Answers of several targets are received into slots
one behind the other; then each listener sends its clients' with one call (`_pass_back`), before
anything is received from clients, which takes the same slots.

*Single datagrams.* Where a request has one answer, a call that takes a single datagram costs half
of one that takes many. So that is made first; and what comes alone, in a flow that goes on, is
passed on by calls that are prepared for just this (kernel/prepared.py). A listener or target that
has something in the very next turn too may have more: then all is taken. If a target had more than
one, so it is from then on, and the kernel is told to join what can be (UDP_GRO), which it does only
for who learns the size of each.

*Errors.* An error that waits at a flow's socket (ICMP) is returned by recvmmsg once, before the
answers that are in the queue. A refusal ends the flow once these are passed on, be it receiving or
sending that returned it: at once, as nobody will tell of them again.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from hardsplice.kernel.mmsghdr import SLOTS
from hardsplice.kernel.packet_info import reply_from_anywhere
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

_DATAGRAMS_BACK, _BYTES_BACK = count.DATAGRAMS + 1, count.BYTES + 1
_DROPS_MASK = 2**32 - 1  # the kernel counts a socket's drops in 32 bits
_MOST_ROUNDS = 16  # of receiving from a target that refuses; usual queues have room for five
_MOST_USED = SLOTS - 16  # slots; with fewer free ones, what is there is passed on first


class Answerer(Opener):
    """The layer that receives, and answers clients."""

    __slots__ = ("answering", "used")

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources)
        self.answering: list[ListenerState] = []  # those that have answers to send
        self.used = 0  # slots that hold these

    # --- from clients -----------------------------------------------------------------------------

    def _take(self, state: ListenerState) -> None:
        """Receive from clients once, and pass it on."""
        had_one_just_now = state.turn == self.turns
        state.turn = self.turns + 1
        if had_one_just_now:
            number = self.kernel.receive(state.fd, state.inbox, 0, SLOTS)
            if number > 0:
                self._sort(state, state.inbox.sizes(0, number))
            return
        if state.take() < 0:
            return  # there was none, or an error of an answer, which is gone by this
        key = state.inbox.take_single()
        size = state.inbox.first_size[0]
        if key is None:
            self._sort(state, (size,))
            return
        flow = state.flows.get(key)
        if flow is None:
            self._open(state, key, 0, size, 0)
            return
        try:
            if flow.send is None or flow.segment or not size:
                self._send(flow, self.buffers.pointers[0], size)
                return
            self.parts.words[1] = size
            if flow.send() < 0:
                self._send_again(flow, self.buffers.pointers[0], size, self.kernel.error())
                return
            self._count(flow, 1, size)
        except Exception as error:  # noqa: BLE001 - it ends that flow only
            self._break(flow, error)

    def _sort(self, state: ListenerState, sizes: Sequence[int]) -> None:
        """Pass on what was received from clients: datagrams of these sizes, in as many slots."""
        inbox, number = state.inbox, len(sizes)
        keys, segments = inbox.keys(number), [0] * number
        control_sizes = inbox.control_sizes(0, number)
        inbox.renew(0, number)
        are_plain = control_sizes.count(inbox.plain) == number
        if not are_plain:
            for slot, used in enumerate(control_sizes):
                if used == inbox.plain:
                    continue
                keys[slot] = inbox.key_behind(slot, used)
                drops, segments[slot] = inbox.control(slot, used)
                if drops is not None:
                    self._count_client_drops(state, drops)
        different = len(set(keys))
        if different == number and are_plain:
            self._take_singles(state, keys, sizes)
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
        self, state: ListenerState, keys: Sequence[bytes], sizes: Sequence[int]
    ) -> None:
        """Pass on what came from as many clients."""
        flows = [flow for flow in map(state.flows.get, keys) if flow is not None]
        if len(flows) == len(keys):
            self._send_each(flows, range(len(keys)), sizes)
            return
        for slot, key in enumerate(keys):  # some are new, and one may take another one's place
            self._take_from(state, key, (slot,), (sizes[slot],), (0,))

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

    def _take_answers(self, ready: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Receive from each target that has something, and pass it back. Returns the other
        events.
        """
        find, receive, pointers = self.find, self.kernel.receive_single, self.buffers.pointers
        lengths, turns = self.parts.words, self.turns
        others: list[tuple[int, int]] = []
        for event in ready:
            fd, events = event
            flow = find(fd)
            if flow is None:
                others.append(event)
                continue
            try:
                if self.used > _MOST_USED:
                    self._pass_back()
                had_one_just_now, flow.turn = flow.turn == turns, turns + 1
                if flow.many or had_one_just_now:
                    self._take_all(flow, events)
                    continue
                at = self.used
                size = receive(fd, pointers[at])
                if size < 0:
                    self._on_error(flow, -size, events)
                    continue
                lengths[2 * at + 1] = size
                self.used = at + 1
                answers = flow.state.answers
                if not answers:
                    self.answering.append(flow.state)
                answers.append((flow, at, 1, 0, size))
            except Exception as error:  # noqa: BLE001 - it ends that flow only
                self._break(flow, error)
        if self.used:
            self._pass_back()
        return others

    def _hear(self, flow: Flow, events: int) -> None:
        """Receive from a target that alone has something, and pass it back."""
        if flow.hear is None or flow.answer is None or flow.many or flow.turn == self.turns:
            self._take_answers([(flow.fd, events)])
            return
        try:
            flow.turn = self.turns + 1
            size = flow.hear()
            if size < 0:
                self._on_error(flow, self.kernel.error(), events)
                return
            self.parts.words[1] = size
            if flow.answer() < 0:
                self._put_singly(self.kernel.error(), 0, (flow, 0, 1, 0, size))
                return
            counters = self.counters
            counters[_DATAGRAMS_BACK] += 1
            counters[flow.tally + 1] += size
            if not flow.answered:
                self._mark_answered(flow)
            elif self.moment >= flow.touch_back_at:
                self._touch_back(flow)
        except Exception as error:  # noqa: BLE001 - it ends that flow only
            self._break(flow, error)

    def _take_all(self, flow: Flow, events: int) -> None:
        """Receive all that a target has sent."""
        first = self.used
        number = self.kernel.receive(flow.fd, self.from_targets, first, SLOTS - first)
        if number > 0:
            self._note_answers(flow, first, number)
            if number > 1 and not flow.many:
                flow.many = True
                self.kernel.take_joined(flow.fd)
        else:
            self._on_error(flow, -number, events)

    def _note_answers(self, flow: Flow, start: int, number: int) -> None:
        """Note down what was received into so many slots."""
        inbox, state = self.from_targets, flow.state
        sizes, segments = inbox.sizes(start, number), [0] * number
        control_sizes = inbox.control_sizes(start, number)
        inbox.renew(start, number)
        for at, used in enumerate(control_sizes):
            if used:
                drops, segments[at] = inbox.control(start + at, used)
                if drops is not None:
                    self.counters[count.DROPPED_QUEUE] += (drops - flow.drops) & _DROPS_MASK
                    flow.drops = drops
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
            if sent > 0:
                self._count_each_back(answers[at : at + sent] if sent < len(answers) else answers)
                at += sent
                continue
            try:
                self._put_singly(-sent, at, answers[at])
            except Exception as error:  # noqa: BLE001 - it ends that flow only
                self._break(answers[at][0], error)
            at += 1

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
        try:
            for reply in (flow.reply, reply_from_anywhere(flow.reply)):
                outbox.put(at, reply, slot, 1, 0)
                sent = self.kernel.send_all(listener, outbox, at, 1)
                if -sent not in NO_SOURCE:
                    break
        finally:  # others' datagrams go by this entry, too
            self.parts.point(slot, slot, 0, size)
        if sent == 1:
            self._count_each_back(((flow, slot, 1, 0, size),))
        else:
            self.counters[count.DROPPED_SEND] += 1

    def _count_each_back(self, answers: Sequence[Answer]) -> None:
        """These were sent to clients."""
        moment = self.moment
        datagrams = total = 0
        for flow, _, _, segment, size in answers:
            datagrams += count_of(size, segment) if segment else 1
            if flow.tally == count.BYTES:
                total += size
            else:
                self.counters[flow.tally + 1] += size
            if flow.fd < 0:
                continue  # it ended meanwhile
            try:
                if not flow.answered:
                    self._mark_answered(flow)
                elif moment >= flow.touch_back_at:
                    self._touch_back(flow)
            except Exception as error:  # noqa: BLE001 - it ends that flow only
                self._break(flow, error)
        self.counters[_DATAGRAMS_BACK] += datagrams
        self.counters[_BYTES_BACK] += total

    def _mark_answered(self, flow: Flow) -> None:
        """The target has answered for the first time."""
        self.flows.mark_answered(flow, self.moment)
        self.due = min(self.due, self.flows.due())
        self.counters[count.CONNECTED] += 1
        if self.flow_writer is not None:
            self.flow_writer.answered(flow)

    def _touch_back(self, flow: Flow) -> None:
        """A target goes on."""
        self.flows.touch_back(flow, self.moment)
        self._prepare(flow)

    def _on_error(self, flow: Flow, code: int, events: int) -> None:
        """Receiving from a target returned no datagram."""
        if code == errno.ECONNREFUSED:
            self._end_refused(flow, code)
        elif code not in (0, errno.EAGAIN, errno.EINTR):
            self.counters[count.DROPPED_SEND] += 1
        elif events & (EPOLLERR | EPOLLHUP):
            # An error that recvmmsg doesn't return would be reported again and again.
            code = self.kernel.option(flow.fd, socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                self._break(flow, OSError(0, ""))

    def _end_refused(self, flow: Flow, code: int) -> None:
        """Pass back what a target had sent before it refused, and end the flow."""
        for _ in range(_MOST_ROUNDS):
            first = self.used
            number = self.kernel.receive(flow.fd, self.from_targets, first, SLOTS - first)
            if number > 0:
                self._note_answers(flow, first, number)
                self._pass_back()
            if number < SLOTS - first or flow.fd < 0:
                break
        if flow.fd >= 0:
            self._refused(flow, code)
