# SPDX-License-Identifier: GPL-2.0-or-later
"""The flows of a relay, what epoll watches for them, and how they end.

The lowest of the five layers that make up the engine: flows, moving, connecting, accepting, engine.
Each knows the ones below it. A reset is passed on only once the other side has taken what was sent
to it before, since an abortive close throws away what the kernel has not sent yet; but it waits no
longer than that side goes on taking some, and in all no longer than GRACE_WHOLE: a peer that takes
a byte now and then must get the reset, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from hardsplice.ipc.messages import Note
from hardsplice.kernel import hints
from hardsplice.kernel.record import NamedTuple
from hardsplice.relay import link
from hardsplice.relay.pools import SocketPool
from hardsplice.relay.tcp.flow_writer import FlowWriter
from hardsplice.relay.tcp.pipes import PipePool
from hardsplice.relay.tcp.rules import (
    CLIENT,
    EPOLLERR,
    FINISHED,
    SIDES,
    TARGET,
    UNWATCHED,
    Flow,
    marked,
    watch,
)
from hardsplice.relay.tcp.seam import Kernel
from hardsplice.telemetry import counters as count
from hardsplice.telemetry.flow_table import End

GRACE_FIRST = 0.01  # seconds until a reset checks again whether what came before it has been taken
GRACE_LIMIT = 0.1  # seconds between two checks, at the most
GRACE_PATIENCE = 0.5  # seconds that a reset waits for a peer that takes nothing
GRACE_WHOLE = 3.0  # seconds that it waits in all


class Limits(NamedTuple):
    """What the relay may use. The two pressure values are percentages, as pasta's; above
    either, clean pipes are closed rather than kept."""

    descriptors: int  # RLIMIT_NOFILE
    connect_seconds: float = 10.0
    idle_seconds: float = 0.0  # until a flow without bytes is reset; 0: never
    descriptor_pressure: int = 30
    flow_pressure: int = 30
    # Slots that a pipe has at least where sources begin edge-triggered: with fewer, too few reads
    # show that there is no more.
    edge_slots: int = 128

    @property
    def reserve(self) -> int:
        """Descriptors kept for pipes of flows that block."""
        return max(8, min(256, self.descriptors // 8))


class Grace(NamedTuple):
    """A reset that waits until what came before it has been taken."""

    check_at: float  # when to check next
    wait: float  # seconds from the last check to that
    # Bytes on their way to the other side at the last check: in the pipe, in the kernel's hands.
    untaken: tuple[int, int]
    end: float  # when it waits no longer, whatever that side takes


class MonitorLink(link.MonitorLink, hints.Protocol):
    """What the engine says to its monitor besides."""

    def report_accept_paused(self) -> None:
        """Report that this relay stops accepting: others that share its listeners have to check
        them.
        """


class Resources(NamedTuple):
    """What a relay works with."""

    kernel: Kernel
    monitor: MonitorLink
    limits: Limits
    pipes: PipePool
    pools: tuple[SocketPool, SocketPool]  # of pre-opened sockets, by family
    families: tuple[int, ...]  # those that targets have
    counters: memoryview
    other_descriptors: int  # those with fixed numbers, places of listeners, epoll
    trace: bool = False  # report every flow to the monitor
    flow_writer: FlowWriter | None = None  # if single flows are to be shown
    gauges: memoryview | None = None  # where to write what is in use (counters.GAUGES)


class Flows:
    """All flows of one relay, and the resources that they share."""

    __slots__ = (
        "connecting",
        "counters",
        "epoll",
        "families",
        "flow_writer",
        "flows",
        "gauges",
        "grace",
        "kernel",
        "limits",
        "monitor",
        "other_descriptors",
        "pipes",
        "pools",
        "restless",
        "trace",
        "wary",
    )

    def __init__(self, resources: Resources) -> None:
        self.kernel = resources.kernel
        self.monitor = resources.monitor
        self.limits = resources.limits
        self.pipes = resources.pipes
        self.pools = resources.pools
        self.families = resources.families
        self.counters = resources.counters
        self.other_descriptors = resources.other_descriptors
        self.trace = resources.trace
        self.flow_writer = resources.flow_writer
        self.gauges = resources.gauges
        if self.gauges is not None:
            self.gauges[5] = self.limits.descriptors
        self.epoll = self.kernel.epoll()
        self.flows: dict[int, Flow] = {}  # by either descriptor
        self.connecting: dict[Flow, None] = {}  # in the order of their deadlines
        self.grace: dict[Flow, Grace] = {}  # resets that wait for the other side
        # Whether anything besides events is due: set where that begins.
        self.restless = True
        self.wary = False  # a client has just reset: the next one may have, too (accepting.py)

    def _free(self) -> int:
        """Descriptors that are neither used nor promised."""
        used = self.other_descriptors + len(self.flows) + 2 * self.pipes.open
        for family in self.families:
            pool = self.pools[family]
            used += len(pool.ready) + pool.requested
        return self.limits.descriptors - used

    def _write_gauges(self, gauges: memoryview) -> None:
        """Write down what is in use, for monitors."""
        gauges[0] = self.pipes.open
        gauges[1] = len(self.pipes.spare)
        for pool in self.pools:
            gauges[2 + pool.family] = len(pool.ready)
        gauges[4] = max(0, self.limits.descriptors - self._free())

    def _sync(self, flow: Flow) -> None:
        """Make epoll watch what rules.py asks for."""
        watched = flow.watched
        for side in SIDES:
            fd = flow.fd[side]
            if fd < 0:
                continue
            wanted = watch(flow, side)
            now = watched[side]
            if wanted == now:
                continue
            watched[side] = wanted
            if now == UNWATCHED:
                self.epoll.register(fd, wanted)
            elif wanted == UNWATCHED:
                self.epoll.unregister(fd)
            else:
                self.epoll.modify(fd, wanted)

    # --- resets ----------------------------------------------------------------------------------

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
        flow.muted = marked(flow.muted, 1 - well)
        self._give_grace(flow, well)
        self._sync(flow)

    def _give_grace(self, flow: Flow, well: int) -> None:
        """Let side ``well`` take what the failed side sent, as long as it does take some."""
        now = self.kernel.now()
        flow.deadline = now + GRACE_PATIENCE
        begun = self.grace.get(flow)  # where the pipe was what was in the way at first
        end = begun.end if begun else now + GRACE_WHOLE
        self.grace[flow] = Grace(now + GRACE_FIRST, GRACE_FIRST, self._untaken(flow, well), end)
        self.restless = True

    def _untaken(self, flow: Flow, well: int) -> tuple[int, int]:
        """Bytes on their way to side ``well``: in the pipe, and in the kernel's hands."""
        return flow.held[1 - well], self.kernel.unsent(flow.fd[well])

    def _check_grace(self, flow: Flow, grace: Grace, now: float) -> None:
        """Check whether the side that did not fail has taken what was sent to it. Wait on while it
        takes some.
        """
        well = _well(flow)
        if well is None:
            self._end(flow, abort=())
            return
        untaken = self._untaken(flow, well)
        if untaken != grace.untaken:
            flow.deadline = min(now + GRACE_PATIENCE, grace.end)
        if now >= flow.deadline or (untaken == (0, 0) and flow.state[1 - well] == FINISHED):
            self._end(flow, abort=(well,))
            return
        wait = min(2 * grace.wait, GRACE_LIMIT)
        self.grace[flow] = Grace(now + wait, wait, untaken, grace.end)

    def _on_grace(self, flow: Flow, side: int, events: int) -> None:
        if events & EPOLLERR and not flow.failed[side]:
            self._end(flow, abort=SIDES)
            return
        flow.muted = marked(flow.muted, side)
        self._sync(flow)

    # --- the end ---------------------------------------------------------------------------------

    def _drop_pipe(self, flow: Flow, direction: int) -> None:
        """Close the pipe of a direction that will not be delivered."""
        pipe = flow.pipe[direction]
        if pipe is not None:
            flow.pipe[direction] = None
            flow.held[direction] = 0
            self.pipes.discard(pipe)

    def _end(self, flow: Flow, abort: Sequence[int], end: End | None = None) -> None:
        """Close both sides, those in ``abort`` with a reset. Everything that the flow holds is let
        go. ``end`` is for the flow writer; None says that a side failed.
        """
        if self.connecting:
            self.connecting.pop(flow, None)
        if self.grace:
            self.grace.pop(flow, None)
        if flow.failed[CLIENT]:
            self.wary = True
        close = self.kernel.close
        for side in SIDES:
            if flow.pipe[side] is not None:
                self._drop_pipe(flow, side)
            fd = flow.fd[side]
            if fd < 0:
                continue
            flow.fd[side] = -1
            flow.watched[side] = UNWATCHED
            del self.flows[fd]
            if side in abort:
                self.kernel.abort(fd)
            elif flow.slow[side]:
                self.kernel.spare(fd)
            close(fd)
        flow.state[CLIENT] = flow.state[TARGET] = FINISHED
        if self.flow_writer is not None:
            self.flow_writer.closed(flow, end)
        if self.trace:
            self.monitor.trace(Note.ENDED, flow.port_id, 1 if abort else 0)


def _well(flow: Flow) -> int | None:
    """The side that has not failed, when the other one has."""
    for side in SIDES:
        if not flow.failed[side]:
            return side
    return None
