# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay's loop: it does what flow.py decides, with as few system calls as it can.

Theory of operation
-------------------
*Level-triggered.* epoll repeats what is still true, so no read is needed just to see EAGAIN: after a short read the loop
goes back to epoll. That makes a round trip six calls: for each direction one wait, one splice in, one splice out.

*One warm pipe.* All directions that don't block move through the same pipe, which is empty again after each turn.
When a sink takes less than was read, the pipe goes to that direction, bytes and all, and another becomes the warm one. A pipe
from which an error kept bytes is closed. So no byte of one flow can reach another.

*Connect, and ask.* A handshake over loopback is complete when connect(2) returns, although it says EINPROGRESS,
since the socket's own lock holds the answer back until then. getpeername(2) says so, for one call more and without
waiting. (A second connect(2) would too, but on a socket that was reset meanwhile it disconnects, and throws away
what the target had sent: tcp_disconnect.) Nothing is read off a client before its target is connected.

*What end of file is.* splice(2) returns 0 at the end of the stream, but also in front of an urgent byte when FIN has arrived
behind it (tcp_read_sock stops at the mark, and a socket that is done reports 0). So a 0 counts only when the event that
led to the read said that the peer has finished and did not announce urgent data; otherwise epoll is asked again.

*Urgent data.* splice(2) never passes the urgent mark, and epoll goes on reporting input: a loop that ignores EPOLLPRI spins
for ever. Here the bytes before the mark go out first. Then, with SO_OOBINLINE, the byte at the mark is peeked at, sent on as
urgent data, and only once the sink has taken it received for good: one byte, the only payload that this process ever holds.

*Descriptors in one batch.* A descriptor closed while a batch of events is handled could be handed out again in the same batch, and a stale event
would hit the wrong flow. New descriptors for flows come only from listeners and from the monitor, and those are served last.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hardsplice.channel import Note
from hardsplice.relay import stats as count
from hardsplice.relay.flow import (
    BLOCKED,
    CLIENT,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLPRI,
    EPOLLRDHUP,
    FINISHED,
    INPUT,
    OPEN,
    PAUSED,
    SIDES,
    TARGET,
    UNWATCHED,
    Flow,
    Step,
    Verdict,
    end_of_source,
    side_failed,
    step,
    watch,
)
from hardsplice.relay.kernel import SPLICE_FLAGS, Kernel
from hardsplice.relay.pipes import Pipe, PipePool
from hardsplice.relay.sockets import FAMILIES, IPV4, IPV6, SocketPool

EVENTS_A_WAIT = 128
ROUNDS_A_TURN = 16  # splices in and out that a flow may make before others have their turn
GRACE_FIRST = 0.01  # seconds until a reset looks again whether what came before it has been taken
GRACE_LIMIT = 0.1  # seconds between two looks, at the most
GRACE_PATIENCE = 0.5  # seconds that a reset waits for a peer that takes nothing
SHORT_SECONDS = 1.0  # until what could not be had (a file, a pipe, a socket) is tried for again

_NOT_OURS = (
    -errno.EAGAIN,
    -errno.ECONNABORTED,
    -errno.EINTR,
    -errno.EPROTO,
)  # the client went away, or none was there
# What a socket says when its connection is dead. Any other error is about the call, not about the peer.
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
_FINISHED_HINT = EPOLLRDHUP | EPOLLHUP | EPOLLERR
_ACTIONABLE = INPUT | EPOLLHUP | EPOLLERR


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket and where its connections go.

    A plan lists (family index, sockaddr) in the order to try. A dual-stack listener has one for clients
    of each family; for a listener of one family both are the same.
    """

    fd: int
    plan_ipv4: tuple[tuple[int, bytes], ...]
    plan_ipv6: tuple[tuple[int, bytes], ...]
    index: int  # what the monitor knows it by


@dataclass(frozen=True, slots=True)
class Limits:
    """What the relay may use. The two pressure values are percentages, as the original's; above
    either, clean pipes are closed rather than kept."""

    descriptors: int  # RLIMIT_NOFILE
    connect_seconds: float = 10.0
    descriptor_pressure: int = 30
    flow_pressure: int = 30

    @property
    def reserve(self) -> int:
        """Descriptors kept for pipes of flows that block."""
        return max(8, min(256, self.descriptors // 8))


@dataclass(frozen=True, slots=True)
class Grace:
    """A reset that waits until what came before it has been taken."""

    look: float  # when to look next
    wait: float  # seconds from the last look to that
    untaken: tuple[
        int, int
    ]  # bytes on their way to the other side at the last look: in the pipe, in the kernel


class Monitor(Protocol):
    """What the engine says to its monitor; it never waits for an answer."""

    def ask_sockets(self, family: int, number: int) -> None:
        """Ask for sockets of FAMILIES[family]."""

    def note(self, kind: Note, detail: int, listener: int = 0, text: str = "") -> None:
        """Report something worth a line in the log; ``detail`` is an errno or a number."""


class Engine:
    """All flows of one relay. ``run`` never returns; ``turn`` handles one batch of events."""

    def __init__(
        self,
        kernel: Kernel,
        monitor: Monitor,
        listeners: Sequence[Listener],
        limits: Limits,
        pipes: PipePool,
        pools: tuple[SocketPool, SocketPool],
        families: tuple[int, ...],
        counters: memoryview,
        other_descriptors: int,
    ) -> None:
        self.kernel = kernel
        self.monitor = monitor
        self.limits = limits
        self.pipes = pipes
        self.pools = pools
        self.counters = counters
        self.listeners = {listener.fd: listener for listener in listeners}
        self.epoll = kernel.epoll()
        self.flows: dict[int, Flow] = {}  # by either descriptor
        self.connecting: dict[Flow, None] = {}  # in the order of their deadlines
        self.unplaced: deque[Flow] = (
            deque()
        )  # flows that wait for a pooled socket for their next attempt
        self.starved: deque[tuple[Flow, int]] = deque()  # directions that wait for a pipe
        self.grace: dict[Flow, Grace] = {}  # resets that wait for the other side
        self.warm: Pipe | None = pipes.take()
        self.other_descriptors = other_descriptors  # listeners, epoll, channel, standard streams
        self.accepting = False
        self.short_until = (
            0.0  # the whole system is short of files: accept nothing before this time
        )
        self.families = families

    # --- the loop -------------------------------------------------------------------------------------------

    def run(self, others: Mapping[int, Callable[[], None]]) -> None:
        """Serve until the process is told to end."""
        while True:
            self.turn(others)

    def turn(self, others: Mapping[int, Callable[[], None]]) -> None:
        """Wait once and handle what came. ``others`` maps descriptors that are not ours to callables."""
        late: list[int] = []
        flows = self.flows
        for fd, events in self.epoll.poll(self._timeout(), EVENTS_A_WAIT):
            flow = flows.get(fd)
            if flow is None:
                late.append(fd)
                continue
            try:
                self._handle(flow, TARGET if fd == flow.fd[TARGET] else CLIENT, events)
            except Exception as error:  # R8: whatever goes wrong in one flow ends that flow only
                self._break(flow, error)
        for fd in late:
            listener = self.listeners.get(fd)
            if listener is not None:
                self._accept(listener)
            elif fd in others:
                others[fd]()
        if self.connecting or self.grace or self.short_until:
            self._look_at_clock()
        if self.starved:
            self._feed()
        if not self.accepting or self.unplaced:
            # Whatever made room, a flow that ended or a pipe that was closed, it was in this turn.
            self._ask()
            self._reconsider_accepting()

    def add_sockets(self, family: int, fds: Sequence[int]) -> None:
        """Put sockets that the monitor sent into their pool."""
        pool = self.pools[family]
        pool.ready.extend(fds)
        pool.asked = 0
        if not fds:  # there was no descriptor left to receive one: asking again at once would spin
            self.short_until = self.kernel.now() + SHORT_SECONDS
        for _ in range(len(self.unplaced)):
            flow = self.unplaced.popleft()
            if flow.fd[CLIENT] >= 0:
                self._guarded(flow, self._try_connect)
        self._ask()
        self._reconsider_accepting()

    def start(self) -> None:
        """Ask for the first sockets; accepting begins when they are there."""
        self._ask()
        self._reconsider_accepting()

    # --- accepting ------------------------------------------------------------------------------------------

    def _accept(self, listener: Listener) -> None:
        if not self.accepting:
            return
        fd = self.kernel.accept(listener.fd)
        if fd < 0:
            self._cannot_accept(-fd)
            return
        self.counters[count.ACCEPTED] += 1
        plan = listener.plan_ipv6
        if plan is not listener.plan_ipv4 and self.kernel.from_ipv4():
            plan = listener.plan_ipv4
        flow = Flow(fd, plan, listener.index)
        self.flows[fd] = flow
        self._guarded(flow, self._try_connect)
        self._ask()
        self._reconsider_accepting()

    def _cannot_accept(self, code: int) -> None:
        if -code in _NOT_OURS:
            return
        self.monitor.note(Note.ACCEPT, code)
        self.short_until = self.kernel.now() + SHORT_SECONDS
        self._reconsider_accepting()

    def _free(self) -> int:
        """Descriptors that are neither used nor promised."""
        used = self.other_descriptors + len(self.flows) + 2 * self.pipes.open
        for family in self.families:
            pool = self.pools[family]
            used += len(pool.ready) + pool.asked
        return self.limits.descriptors - used

    def _reconsider_accepting(self) -> None:
        """Watch the listeners while there is a pooled socket of each family and a descriptor to spare."""
        possible = not self.short_until and all(
            self.pools[family].ready for family in self.families
        )
        if possible:
            slack = 0 if self.accepting else max(4, self.limits.reserve // 4)
            possible = self._free() > self.limits.reserve + slack or (
                not self.flows and self._free() > 0  # with a very low limit, one flow at a time
            )
            if not possible and self.accepting:
                self.monitor.note(Note.DESCRIPTORS, self.limits.descriptors)
        if possible == self.accepting:
            return
        self.accepting = possible
        if not possible:
            self.counters[count.PAUSED] += 1
        for fd in self.listeners:
            if possible:
                self.epoll.register(fd, EPOLLIN)
            else:
                self.epoll.unregister(fd)

    def _ask(self) -> None:
        """Ask for sockets where a pool is half used, as far as there are descriptors for them."""
        if self.short_until:
            return
        for family in self.families:
            pool = self.pools[family]
            free = self._free()
            room = free - self.limits.reserve
            if not pool.ready and (self.unplaced or not self.flows):
                room = max(
                    room, min(1, free)
                )  # nothing would ever end: the reserve is for this, too
            number = min(pool.want(), room)
            if number > 0:
                pool.asked = number
                self.monitor.ask_sockets(family, number)

    # --- connecting -----------------------------------------------------------------------------------------

    def _try_connect(self, flow: Flow) -> None:
        """Connect to the next target of the plan, and the one after it when that is refused at once."""
        code = 0
        while flow.attempt < len(flow.plan):
            family, address = flow.plan[flow.attempt]
            ready = self.pools[family].ready
            if not ready:
                self.unplaced.append(flow)
                self._sync(flow)
                self._ask()
                return
            fd = ready.popleft()
            self.flows[fd] = flow
            flow.fd[TARGET] = fd
            code = self.kernel.connect(fd, address)
            if code == -errno.EINPROGRESS:
                code = self.kernel.connected(fd)
            if code in (0, -errno.ECONNRESET):
                self._connected(flow, code)
                return
            if code == -errno.EINPROGRESS:
                step(flow, CLIENT, Step.CONNECT)
                flow.deadline = self.kernel.now() + self.limits.connect_seconds
                self.connecting[flow] = None
                self._sync(flow)
                return
            self._drop_target(flow)
        self._refused(flow, -code)

    def _connected(self, flow: Flow, code: int) -> None:
        """The target was reached; ``code`` says whether it has reset the connection already (what it sent remains)."""
        self.counters[count.CONNECTED] += 1
        flow.plan = ()
        step(flow, CLIENT, Step.RESUME)
        step(flow, TARGET, Step.RESUME)
        if code == 0:
            self._sync(flow)
        else:
            self._fail(flow, TARGET)

    def _drop_target(self, flow: Flow) -> None:
        """Give up one attempt: the socket is used up."""
        fd = flow.fd[TARGET]
        flow.attempt += 1
        flow.fd[TARGET] = -1
        flow.watched[TARGET] = UNWATCHED  # closing takes it out of epoll
        del self.flows[fd]
        self.kernel.close(fd)

    def _refused(self, flow: Flow, code: int) -> None:
        self.counters[count.REFUSED] += 1
        self.monitor.note(Note.REFUSED, code, flow.listener)
        self._end(flow, abort=SIDES)

    def _on_connecting(self, flow: Flow, side: int, events: int) -> None:
        if side == CLIENT:
            if events & (EPOLLERR | EPOLLHUP):
                self.counters[count.RESET] += 1
                self._end(flow, abort=SIDES)
            return
        code = self.kernel.connected(flow.fd[TARGET])
        if code == -errno.EINPROGRESS:
            return
        self.connecting.pop(flow, None)
        if code in (0, -errno.ECONNRESET):
            self._connected(flow, code)
        elif flow.attempt + 1 < len(flow.plan):
            self._drop_target(flow)
            self._try_connect(flow)
        else:
            self._refused(flow, -code)

    # --- events ---------------------------------------------------------------------------------------------

    def _handle(self, flow: Flow, side: int, events: int) -> None:
        state = flow.state
        if events == EPOLLIN and state[side] == OPEN and not flow.urgent_hidden[side]:
            self._move(flow, side, False)  # the common case
            return
        if flow.plan:
            self._on_connecting(flow, side, events)
            return
        if state[CLIENT] == FINISHED and state[TARGET] == FINISHED:
            self._on_grace(flow, side, events)
            return
        if events & EPOLLERR and not flow.failed[side] and self._fail(flow, side):
            return
        if events & EPOLLOUT and state[1 - side] == BLOCKED:
            self._drain(flow, 1 - side)
            if flow.fd[CLIENT] < 0:
                return
        if events & _ACTIONABLE:
            if state[side] == OPEN:
                self._read(flow, side, events)
                return
            if events & (EPOLLHUP | EPOLLERR):
                flow.muted[side] = True
        self._sync(flow)

    def _read(self, flow: Flow, side: int, events: int) -> None:
        if events & EPOLLPRI or flow.urgent_hidden[side]:
            self._move_urgent(flow, side, bool(events & _FINISHED_HINT))
        else:
            self._move(flow, side, bool(events & _FINISHED_HINT))
        if flow.fd[CLIENT] >= 0:
            self._sync(flow)

    def _sync(self, flow: Flow) -> None:
        """Bring what epoll watches to what flow.py asks for."""
        for side in SIDES:
            fd = flow.fd[side]
            if fd < 0:
                continue
            wanted = watch(flow, side)
            now = flow.watched[side]
            if wanted == now:
                continue
            flow.watched[side] = wanted
            if now == UNWATCHED:
                self.epoll.register(fd, wanted)
            elif wanted == UNWATCHED:
                self.epoll.unregister(fd)
            else:
                self.epoll.modify(fd, wanted)

    # --- moving bytes ---------------------------------------------------------------------------------------

    def _move(self, flow: Flow, direction: int, finished: bool) -> None:
        """Move what the source has, as far as the sink takes it; ``finished`` says that a 0 is end of file."""
        splice = self.kernel.splice
        source, sink = flow.fd[direction], flow.fd[1 - direction]
        for _ in range(ROUNDS_A_TURN):
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
                flow.failed[direction] = True
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
            self.counters[count.BYTES + direction] += sent
            if sent < got:
                self._block(flow, direction, pipe, got - sent)
                return
            if got < pipe.size and not finished:
                return

    def _block(self, flow: Flow, direction: int, pipe: Pipe, held: int) -> None:
        """The sink took too little: the direction keeps the warm pipe with the rest."""
        self.counters[count.BLOCKED] += 1
        self.warm = None  # it has one owner at a time, whatever fails below
        flow.pipe[direction] = pipe
        flow.held[direction] = held
        self.warm = self.pipes.take()
        step(flow, direction, Step.BLOCK)
        self._sync(flow)

    def _drain(self, flow: Flow, direction: int) -> None:
        """The sink has room: give it what is held, and when that is all, what the source has now."""
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
                self.counters[count.BYTES + direction] += sent
            flow.pipe[direction] = None
            self._give_back(pipe)
        step(flow, direction, Step.DRAIN)
        # Reading on at once spares four epoll changes when the sink blocks again. Whether the source has
        # finished is not known here: a 0 leaves it to the next event.
        self._move(flow, direction, flow.failed[direction])

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
        """The warm pipe may hold bytes that nobody can take: close it."""
        if self.warm is not None:
            self.pipes.discard(self.warm)
            self.warm = None

    def _starve(self, flow: Flow, direction: int) -> None:
        self.counters[count.STARVED] += 1
        step(flow, direction, Step.STARVE)
        self.starved.append((flow, direction))
        self._sync(flow)

    def _feed(self) -> None:
        """Resume directions that waited for a pipe, as far as there are pipes."""
        while self.starved and (self.warm is not None or self._take_warm()):
            flow, direction = self.starved.popleft()
            if flow.fd[CLIENT] >= 0 and flow.state[direction] == PAUSED:
                step(flow, direction, Step.RESUME)
                self._guarded(flow, self._sync)

    def _take_warm(self) -> bool:
        self.warm = self.pipes.take()
        return self.warm is not None

    # --- urgent data ----------------------------------------------------------------------------------------

    def _move_urgent(self, flow: Flow, direction: int, finished: bool) -> None:
        """Pass on the bytes before the urgent mark, then the byte at the mark as urgent data."""
        kernel = self.kernel
        source = flow.fd[direction]
        kernel.keep_urgent_inline(source)
        self._move(flow, direction, False)
        if flow.fd[CLIENT] < 0 or flow.state[direction] != OPEN:
            return  # blocked before the mark: epoll announces the urgent byte again after that
        marked = kernel.at_mark(source)
        # Unless at the mark there is either more to move, which epoll repeats, or the segments before the
        # urgent one are still on their way; EPOLLPRI would spin until they come.
        flow.urgent_hidden[direction] = not marked
        if not (marked or finished):
            return
        # An inline receive sees what lies behind the mark, and so knows end of file, where splice doesn't.
        byte = kernel.receive_byte(source, socket.MSG_PEEK)
        if not isinstance(byte, bytes):
            if -byte in _DEAD:
                flow.failed[direction] = True
                self._ended(flow, direction)
            elif byte == -errno.EAGAIN:
                flow.urgent_hidden[direction] = True  # announced, but not here yet
            else:
                raise OSError(-byte, "urgent data")
        elif not byte:
            self._ended(flow, direction)  # what was announced never came
        elif marked:
            self._pass_urgent(flow, direction, byte)

    def _pass_urgent(self, flow: Flow, direction: int, byte: bytes) -> None:
        source, sink = flow.fd[direction], flow.fd[1 - direction]
        done = self.kernel.send_byte(sink, byte, socket.MSG_OOB)
        if done == -errno.EAGAIN:
            step(
                flow, direction, Step.BLOCK
            )  # no pipe, nothing held: tried again when there is room
        elif -done in _DEAD:
            self._fail(flow, 1 - direction)
        elif done < 0:
            raise OSError(-done, "urgent data")
        else:
            self.kernel.receive_byte(source, 0)
            self.counters[count.URGENT] += 1
            self.counters[count.BYTES + direction] += 1

    # --- ends -----------------------------------------------------------------------------------------------

    def _ended(self, flow: Flow, direction: int) -> None:
        """The source has nothing more, and nothing of it is held."""
        verdict = end_of_source(flow, direction)
        if verdict is Verdict.RESET:
            self._reset(flow)
            return
        step(flow, direction, Step.END)
        if verdict is Verdict.CLOSE:
            self.counters[count.CLOSED] += 1
            self._end(flow, abort=())
        elif self.kernel.shutdown(flow.fd[1 - direction], socket.SHUT_WR) < 0:
            self._fail(flow, 1 - direction)
        else:
            self._sync(flow)

    def _fail(self, flow: Flow, side: int) -> bool:
        """``side`` was reset or is broken. True when that ended the flow."""
        self._drop_pipe(flow, 1 - side)
        if side_failed(flow, side):
            self._reset(flow)
        elif flow.state[side] == OPEN:
            self._move(flow, side, True)
        else:
            flow.muted[side] = True
        if flow.fd[CLIENT] >= 0:
            other = 1 - side
            if flow.state[side] in (BLOCKED, PAUSED) and not flow.failed[other]:
                self._give_grace(flow, other)
            self._sync(flow)
        return flow.fd[CLIENT] < 0 or flow.state[CLIENT] == flow.state[TARGET] == FINISHED

    def _drop_pipe(self, flow: Flow, direction: int) -> None:
        """Close the pipe of a direction that will not be delivered."""
        pipe = flow.pipe[direction]
        if pipe is not None:
            flow.pipe[direction] = None
            flow.held[direction] = 0
            self.pipes.discard(pipe)

    def _reset(self, flow: Flow) -> None:
        """Pass a reset on, once the side that did not fail has taken what was sent to it before."""
        self.counters[count.RESET] += 1
        for side in SIDES:
            self._drop_pipe(flow, side)
            flow.state[side] = FINISHED
        well = _well(flow)
        if well is None or self.kernel.unsent(flow.fd[well]) == 0:
            self._end(flow, abort=() if well is None else (well,))
            return
        # An abortive close throws away what the kernel has not sent yet.
        flow.muted[1 - well] = True
        self._give_grace(flow, well)
        self._sync(flow)

    def _give_grace(self, flow: Flow, well: int) -> None:
        """Let side ``well`` take what the failed side sent, as long as it does take some."""
        now = self.kernel.now()
        flow.deadline = now + GRACE_PATIENCE
        self.grace[flow] = Grace(now + GRACE_FIRST, GRACE_FIRST, self._untaken(flow, well))

    def _untaken(self, flow: Flow, well: int) -> tuple[int, int]:
        """Bytes on their way to side ``well``: in the pipe, and in the kernel's hands."""
        return flow.held[1 - well], self.kernel.unsent(flow.fd[well])

    def _look_at_grace(self, flow: Flow, grace: Grace, now: float) -> None:
        """Has the side that did not fail taken what was sent to it? A peer that takes some is waited for."""
        well = _well(flow)
        if well is None:
            self._end(flow, abort=())
            return
        untaken = self._untaken(flow, well)
        if untaken != grace.untaken:
            flow.deadline = now + GRACE_PATIENCE
        if now >= flow.deadline or (untaken == (0, 0) and flow.state[1 - well] == FINISHED):
            self._end(flow, abort=(well,))
            return
        wait = min(2 * grace.wait, GRACE_LIMIT)
        self.grace[flow] = Grace(now + wait, wait, untaken)

    def _on_grace(self, flow: Flow, side: int, events: int) -> None:
        if events & EPOLLERR and not flow.failed[side]:
            self._end(flow, abort=SIDES)
            return
        flow.muted[side] = True
        self._sync(flow)

    def _end(self, flow: Flow, abort: Sequence[int]) -> None:
        """Close both sides, those in ``abort`` with a reset. Everything that the flow holds is let go."""
        self.connecting.pop(flow, None)
        self.grace.pop(flow, None)
        for side in SIDES:
            self._drop_pipe(flow, side)
            fd = flow.fd[side]
            if fd < 0:
                continue
            flow.fd[side] = -1
            flow.watched[side] = UNWATCHED
            del self.flows[fd]
            if side in abort:
                self.kernel.abort(fd)
            self.kernel.close(fd)
        flow.state[CLIENT] = flow.state[TARGET] = FINISHED

    def _guarded(self, flow: Flow, action: Callable[[Flow], None]) -> None:
        """Run ``action(flow)`` so that its failure ends this flow only (R8)."""
        try:
            action(flow)
        except Exception as error:
            self._break(flow, error)

    def _break(self, flow: Flow, error: Exception) -> None:
        """An error that no rule foresees: reset this flow, say so, go on with the others."""
        self.counters[count.ERRORS] += 1
        self._replace_warm()  # what it holds isn't known any more
        self._end(flow, abort=SIDES)
        code = getattr(error, "errno", None) or 0
        self.monitor.note(Note.ERROR, code, flow.listener, _where(error))

    # --- time -----------------------------------------------------------------------------------------------

    def _timeout(self) -> float:
        """Seconds that epoll may sleep; -1 when nothing is due, which is the rule."""
        if not (self.connecting or self.grace or self.short_until or self.starved):
            return -1
        now = self.kernel.now()
        due = []
        if self.starved:  # what keeps pipes from us may be others' use, of which no event tells
            due.append(now + SHORT_SECONDS)
        if self.connecting:
            due.append(next(iter(self.connecting)).deadline)
        if self.short_until:
            due.append(self.short_until)
        due.extend(grace.look for grace in self.grace.values())
        return max(0.0, min(due) - now)

    def _look_at_clock(self) -> None:
        now = self.kernel.now()
        while self.connecting:
            flow = next(iter(self.connecting))
            if flow.deadline > now:
                break
            self.counters[count.TIMED_OUT] += 1
            self.monitor.note(Note.TIMED_OUT, errno.ETIMEDOUT, flow.listener)
            self._end(flow, abort=SIDES)
        for flow, grace in list(self.grace.items()):
            if grace.look <= now:
                self._look_at_grace(flow, grace, now)
        if self.short_until and now >= self.short_until:
            self.short_until = 0.0
            self._reconsider_accepting()


def _where(error: Exception) -> str:
    """Type and place of an error, from what is loaded already: traceback would open source files."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    code = trace.tb_frame.f_code
    return f"{type(error).__name__} in {code.co_name}, line {trace.tb_lineno}"


def _well(flow: Flow) -> int | None:
    """The side that has not failed, when the other one has."""
    for side in SIDES:
        if not flow.failed[side]:
            return side
    return None
