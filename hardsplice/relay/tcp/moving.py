# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving bytes: from a source through the warm pipe to a sink, and what to do when the sink is
full.

*One warm pipe.* All directions that don't block move through the same pipe, which is empty again
after each turn. When a sink takes less than was read, the pipe goes to that direction, bytes and
all, and another becomes the warm one. A pipe from which an error kept bytes is closed. So no byte
of one flow can reach another.

*Short send queues.* A sink that has blocked once gets a limit for what waits in the kernel to be
sent there. By default that queue grows to megabytes for each connection (tcp_wmem), which helps
neither side: the bytes have left every cache before the receiver gets them, and a slow receiver
uses memory here. It is set that late because most connections never block.

*If this process is killed.* The kernel then closes its sockets, and a close sends FIN: a peer in
the middle of a transfer would take that for its regular end. A sink that has blocked once, which
happens in every larger transfer, therefore has a lingering close set at that moment, which makes a
close a reset; it is undone before a regular close. For every connection this would be too many
calls.

*What a short read shows.* That the receive queue was empty, unless the pipe ran out of slots: each
takes at least a byte, so a read of fewer bytes than the pipe has slots does show it.

*What end of file is.* splice(2) returns 0 at the end of the stream, but also in front of an urgent
byte when FIN has arrived behind it (tcp_read_sock stops at the mark, and a socket that is done
reports 0). So a 0 counts only when the event that led to the read said that the peer has finished
and did not announce urgent data; otherwise epoll is asked again.

*Urgent data.* splice(2) never passes the urgent mark, and epoll goes on reporting input: a loop
that ignores EPOLLPRI spins for ever. Here the bytes before the mark go out first. Then, with
SO_OOBINLINE, the byte at the mark is peeked at, sent on as urgent data, and only once the sink has
taken it received for good: one byte, the only payload that this process ever holds.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable

from hardsplice.ipc.messages import Note
from hardsplice.kernel.pinned import UNSENT_SIZES
from hardsplice.model.unforeseen import kind_and_place
from hardsplice.relay.tcp.flows import Flows, Resources
from hardsplice.relay.tcp.pipes import Pipe
from hardsplice.relay.tcp.rules import (
    BLOCK,
    BLOCKED,
    CLIENT,
    CLOSE,
    END,
    FINISHED,
    OPEN,
    PAUSED,
    RESET,
    RESUME,
    SIDES,
    STARVE,
    TARGET,
    UNBLOCK,
    Flow,
    end_of_source,
    marked,
    side_failed,
    step,
    unmarked,
)
from hardsplice.relay.tcp.seam import SPLICE_FLAGS
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.flow_table import End

ROUNDS_A_TURN = 16  # splices in and out that a flow may make before others have their turn
_ROUNDS = range(ROUNDS_A_TURN)
_FIN = End.FIN  # read once (rules.py says why)

# Bytes that may wait to be sent to a sink: a share of UNSENT_ALL, as one of UNSENT_SIZES. So all of
# it together fits into a processor's cache as long as it can (bench/README.md has the figures).
UNSENT_ALL = 4 << 20

# Errors of a socket that a peer, or the network, can cause. Any other is a mistake of ours.
_DEAD = (
    errno.ECONNRESET,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.ECONNABORTED,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
)


def unsent_limit(blocked: int) -> int:
    """Bytes that may wait to be sent to a sink, where ``blocked`` directions wait for theirs."""
    share = UNSENT_ALL // max(blocked, 1)
    return next((size for size in UNSENT_SIZES if size <= share), UNSENT_SIZES[-1])


class Mover(Flows):
    """The layer that moves bytes."""

    __slots__ = ("splice", "starved", "warm")

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources)
        self.splice = self.kernel.splice
        self.warm: Pipe | None = self.pipes.take()
        self.starved: deque[tuple[Flow, int]] = deque()  # directions that wait for a pipe

    def _move(self, flow: Flow, direction: int, finished: bool) -> None:
        """Move what the source has, as far as the sink takes it; ``finished`` says that a 0 is end
        of file.
        """
        splice = self.splice
        source, sink = flow.fd[direction], flow.fd[1 - direction]
        for _ in _ROUNDS:
            pipe = self.warm
            if pipe is None:
                pipe = self.warm = self.pipes.take()
                if pipe is None:
                    self._starve(flow, direction)
                    return
            try:
                got = splice(source, pipe.write, pipe.size, None, None, SPLICE_FLAGS)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _DEAD:
                    raise
                flow.failed = marked(flow.failed, direction)
                self._ended(flow, direction)
                return
            if got == 0:
                if finished:
                    self._ended(flow, direction)
                return
            try:
                sent = splice(pipe.read, sink, got, None, None, SPLICE_FLAGS)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                if error.errno not in _DEAD:
                    raise
                self._replace_warm()
                self._fail(flow, 1 - direction)
                return
            self.counters[flow.tally + direction] += sent
            if sent < got:
                self._block(flow, direction, pipe, got - sent)
                return
            if got < pipe.slots:  # there was no more, unless perhaps the end of file
                if not finished:
                    return
            elif got < pipe.size and not finished:
                self._level(flow, direction)
                return
        self._level(flow, direction)

    def _level(self, flow: Flow, direction: int) -> None:
        """There may be more input: watch the source level-triggered from now on."""
        if flow.edge[direction]:
            flow.edge = unmarked(flow.edge, direction)
            self._sync(flow)

    def _block(self, flow: Flow, direction: int, pipe: Pipe, held: int) -> None:
        """The sink took too little: the direction keeps the warm pipe with the rest."""
        self.counters[count.BLOCKED] += 1
        self.warm = None  # it has one owner at a time, even if a call below fails
        flow.pipe[direction] = pipe
        flow.held[direction] = held
        self.warm = self.pipes.take()
        step(flow, direction, BLOCK)
        sink = 1 - direction
        if not flow.slow[sink]:
            flow.slow = marked(flow.slow, sink)
            self.kernel.abort(flow.fd[sink])
            waiting = self.pipes.open - len(self.pipes.spare)
            self.kernel.limit_unsent(flow.fd[sink], unsent_limit(waiting))
        self._bound(flow, direction)
        self._sync(flow)

    def _empty_pipe(self, flow: Flow, direction: int) -> None:
        """The sink has room: give it what is held, and after that what the source has now."""
        sink = flow.fd[1 - direction]
        pipe = flow.pipe[direction]
        if pipe is not None:
            while flow.held[direction]:
                try:
                    sent = self.kernel.splice(
                        pipe.read, sink, flow.held[direction], None, None, SPLICE_FLAGS
                    )
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno not in _DEAD:
                        raise
                    self._fail(flow, 1 - direction)
                    return
                flow.held[direction] -= sent
                self.counters[flow.tally + direction] += sent
            flow.pipe[direction] = None
            self._give_back(pipe)
        step(flow, direction, UNBLOCK)
        # Reading on at once spares four epoll changes when the sink blocks again. Whether the
        # source has finished is not known here: a 0 leaves it to the next event.
        self._move(flow, direction, flow.failed[direction])

    # --- pipes -----------------------------------------------------------------------------------

    def _give_back(self, pipe: Pipe) -> None:
        if self.warm is None:
            self.warm = pipe
        elif self._under_pressure():
            self.pipes.discard(pipe)
        else:
            self.pipes.give(pipe)

    def _under_pressure(self) -> bool:
        limits = self.limits
        used = limits.descriptors - self._free()
        return (
            used * 100 > limits.descriptors * limits.descriptor_pressure
            or len(self.flows) * 100 > limits.descriptors * limits.flow_pressure
        )

    def _replace_warm(self) -> None:
        """The warm pipe may hold bytes that can't be delivered: close it."""
        if self.warm is not None:
            self.pipes.discard(self.warm)
            self.warm = None

    def _starve(self, flow: Flow, direction: int) -> None:
        self.counters[count.STARVED] += 1
        step(flow, direction, STARVE)
        self.starved.append((flow, direction))
        self.restless = True
        self._bound(flow, direction)
        self._sync(flow)

    def _feed(self) -> None:
        """Resume directions that waited for a pipe, as far as there are pipes."""
        while self.starved and (self.warm is not None or self._take_warm()):
            flow, direction = self.starved.popleft()
            if flow.fd[CLIENT] >= 0 and flow.state[direction] == PAUSED:
                step(flow, direction, RESUME)
                self._guarded(flow, self._sync)

    def _take_warm(self) -> bool:
        self.warm = self.pipes.take()
        return self.warm is not None

    # --- urgent data -----------------------------------------------------------------------------

    def _move_urgent(self, flow: Flow, direction: int, finished: bool) -> None:
        """Pass on the bytes before the urgent mark, then the byte at the mark as urgent data."""
        kernel = self.kernel
        source = flow.fd[direction]
        kernel.keep_urgent_inline(source)
        flow.edge = unmarked(flow.edge, direction)  # there is more behind the mark
        self._move(flow, direction, False)
        if flow.fd[CLIENT] < 0 or flow.state[direction] != OPEN:
            return  # blocked before the mark: epoll announces the urgent byte again after that
        at_mark = kernel.at_mark(source)
        # Not at the mark: either there is more to move, which epoll reports again, or the segments
        # before the urgent one are still on their way; EPOLLPRI would spin until they arrive.
        change = unmarked if at_mark else marked
        flow.urgent_hidden = change(flow.urgent_hidden, direction)
        if not (at_mark or finished):
            return
        # An inline receive sees what lies behind the mark, and so knows end of file, where splice
        # doesn't.
        byte = kernel.receive_byte(source, socket.MSG_PEEK)
        if not isinstance(byte, bytes):
            if -byte in _DEAD:
                flow.failed = marked(flow.failed, direction)
                self._ended(flow, direction)
            elif byte == -errno.EAGAIN:
                # Announced, but not here yet
                flow.urgent_hidden = marked(flow.urgent_hidden, direction)
            else:
                raise OSError(-byte, "urgent data")
        elif not byte:
            self._ended(flow, direction)  # what was announced never came
        elif at_mark:
            self._pass_urgent(flow, direction, byte)

    def _pass_urgent(self, flow: Flow, direction: int, byte: bytes) -> None:
        source, sink = flow.fd[direction], flow.fd[1 - direction]
        done = self.kernel.send_byte(sink, byte, socket.MSG_OOB)
        if done == -errno.EAGAIN:
            step(flow, direction, BLOCK)  # nothing is held: tried again when there is room
            self._bound(flow, direction)
        elif -done in _DEAD:
            self._fail(flow, 1 - direction)
        elif done < 0:
            raise OSError(-done, "urgent data")
        else:
            self.kernel.receive_byte(source, 0)
            self.counters[count.URGENT] += 1
            self.counters[flow.tally + direction] += 1

    # --- ends of a direction ---------------------------------------------------------------------

    def _ended(self, flow: Flow, direction: int) -> None:
        """The source has nothing more, and nothing of it is held."""
        verdict = end_of_source(flow, direction)
        if verdict == RESET:
            self._reset(flow)
            return
        step(flow, direction, END)
        if verdict == CLOSE:
            self.counters[count.CLOSED] += 1
            self._end(flow, abort=(), end=_FIN)
        elif self.kernel.shutdown(flow.fd[1 - direction], socket.SHUT_WR) < 0:
            self._fail(flow, 1 - direction)
        else:
            if self.flow_writer is not None:
                self.flow_writer.half_closed(flow)
            if not flow.edge[direction]:  # an edge-triggered one is watched as before (rules.py)
                self._sync(flow)

    def _fail(self, flow: Flow, side: int) -> bool:
        """``side`` was reset or is broken. True when that ended the flow."""
        self._drop_pipe(flow, 1 - side)
        if side_failed(flow, side):
            self._reset(flow)
        elif flow.state[side] == OPEN:
            self._move(flow, side, True)
        else:
            flow.muted = marked(flow.muted, side)
        if flow.fd[CLIENT] >= 0:
            if flow.state[side] in (BLOCKED, PAUSED):
                self._bound(flow, side)
            self._sync(flow)
        return flow.fd[CLIENT] < 0 or flow.state[CLIENT] == flow.state[TARGET] == FINISHED

    def _bound(self, flow: Flow, direction: int) -> None:
        """A direction has to wait. If its source has failed, the sink must get the reset in the
        end, even if it never takes the bytes before it.
        """
        sink = 1 - direction
        if flow.failed[direction] and not flow.failed[sink] and flow not in self.grace:
            self._give_grace(flow, sink)

    def _guarded(self, flow: Flow, action: Callable[[Flow], None]) -> None:
        """Run ``action(flow)`` so that its failure ends this flow only (R8)."""
        try:
            action(flow)
        except Exception as error:  # noqa: BLE001 - R8
            self._break(flow, error)

    def _break(self, flow: Flow, error: Exception) -> None:
        """An error that no rule foresees: reset this flow, report it, go on with the others."""
        self.counters[count.ERRORS] += 1
        self._replace_warm()  # its content is unknown now
        self._end(flow, abort=SIDES, end=End.ERROR)
        code = getattr(error, "errno", None) or 0
        self.monitor.note(Note.ERROR, code, flow.port_id, kind_and_place(error))
