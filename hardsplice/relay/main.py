# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay's life: from the fork out of a monitor that has locked itself down, to its own filter, to
the loop.

It never returns to its caller. Errors are sent to the monitor as records, formatted without loading
anything, and the process ends by os._exit: a regular exit of the interpreter would import modules
and open files.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping, Sequence

from hardsplice.ipc import descriptors
from hardsplice.ipc.channel import Channel, close_all
from hardsplice.ipc.descriptors import CHANNEL_FD, FIRST_LISTENER, LIFELINE_FD, RULESET_FD
from hardsplice.ipc.messages import Kind, MalformedError, Note, Record
from hardsplice.kernel import hints, prctl
from hardsplice.kernel.hints import NoReturn
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.families import IPV4, IPV6
from hardsplice.model.lifetimes import Lifetimes
from hardsplice.model.protocol import Protocol
from hardsplice.model.roles import RELAYS
from hardsplice.model.unforeseen import as_error
from hardsplice.net.listener import Listener
from hardsplice.relay import orders
from hardsplice.relay.pools import POOL_SIZE as SOCKETS
from hardsplice.relay.pools import SocketPool
from hardsplice.relay.tcp.engine import Engine as TcpEngine
from hardsplice.relay.tcp.flow_writer import flow_writer_of
from hardsplice.relay.tcp.flows import Limits, Resources
from hardsplice.relay.tcp.pipes import POOL_SIZE as PIPES
from hardsplice.relay.tcp.pipes import PipePool
from hardsplice.relay.tcp.seam import Kernel
from hardsplice.sandbox import steps, tripwire
from hardsplice.sandbox.address_book import Area
from hardsplice.telemetry.counters import Stats
from hardsplice.telemetry.flow_table import End

NOTE_SECONDS = 1.0  # between two notes of one kind
FLOWS_MIN = 4  # a relay whose descriptors don't suffice for these is of no use
# What each of many relays keeps ready at the least, if it has the descriptors.
SOCKETS_MIN, PIPES_MIN = 8, 2


class Plan(NamedTuple):
    """The configuration of a relay, which it inherits from its monitor."""

    direction: Direction
    protocol: Protocol
    datagrams: Lifetimes | None  # of flows; None where the protocol is TCP
    workers: int  # relays that share the listeners, this one included
    listeners: tuple[Listener, ...]
    families: tuple[int, ...]  # of the targets, as indexes into families.FAMILIES
    pipe_size: int  # bytes
    first_flow: int  # the first descriptor behind the places of listeners
    filter: bytes  # the relay's seccomp program
    is_dynamic: bool  # whether listeners come and go
    stored: frozenset[int]  # the IDs of ports whose listeners the service manager also has
    book: Area  # where the address book is
    stats: Stats
    idle_seconds: int  # until a flow without bytes is reset; 0: never
    trace: bool  # whether to report every flow to the monitor
    log_flows: bool  # whether to report the end of every flow
    has_ruleset: bool  # whether there is a Landlock ruleset at its fixed descriptor
    strict: bool
    foreign: tuple[int, ...] = ()  # the places of its monitor's listeners that it isn't to have


class Epoll(hints.Protocol):
    """What a relay's life needs of the engine's epoll."""

    def register(self, fd: int, eventmask: int, /) -> None:
        """Watch a descriptor."""

    def unregister(self, fd: int, /) -> None:
        """Watch it no more."""


class Engine(hints.Protocol):
    """What serves the flows of one protocol: relay/tcp/engine.py, relay/udp/engine.py."""

    families: tuple[int, ...]

    @property
    def epoll(self) -> Epoll:
        """What it waits with."""

    def start(self) -> None:
        """Begin to serve clients, as soon as there are sockets."""

    def run(self, others: Mapping[int, Callable[[], None]]) -> None:
        """Serve until all is drained; ``others`` maps descriptors to what is called when one is
        ready.
        """

    def finish(self) -> None:
        """The process is about to end."""

    def add_sockets(self, family: int, fds: Sequence[int]) -> None:
        """Take sockets of FAMILIES[family], or know that there are none."""

    def add_listener(self, listener: Listener) -> None:
        """Serve one more."""

    def remove_listener(self, port_id: int, place: int, *, reset_flows: bool) -> None:
        """Serve one no more; its flows end where ``reset_flows`` says so, or where they have to."""

    def poll_listeners(self) -> None:
        """Look after clients for whom only another relay was woken."""

    def drain(self) -> None:
        """Take no more clients."""


class ToMonitor:
    """The engine's way to its monitor: records on the channel, never waiting."""

    def __init__(self, channel: Channel, now: Callable[[], float]) -> None:
        self.channel = channel
        self.now = now
        self.last: dict[Note, float] = {}

    def request_sockets(self, family: int, number: int) -> bool:
        """Ask for sockets of one family."""
        return bool(self.channel.send(Record(Kind.WANT_SOCKETS, family, detail=number), wait=False))

    def answer(self) -> None:
        """Say that this relay goes on."""
        self.channel.send(Record(Kind.PONG), wait=False)

    def report_accept_paused(self) -> None:
        """Say that this relay stops accepting."""
        self.channel.send(Record(Kind.ACCEPT_PAUSED), wait=False)

    def note(self, kind: Note, detail: int, listener: int = 0, text: str = "") -> None:
        """Report something; each kind at most once in NOTE_SECONDS (counters have them all)."""
        now = self.now()
        if now - self.last.get(kind, -NOTE_SECONDS) < NOTE_SECONDS:
            return
        self.last[kind] = now
        self.trace(kind, listener, detail, text)

    def trace(self, kind: Note, listener: int, detail: int = 0, text: str = "") -> None:
        """Report something each time, as far as the channel takes it."""
        self.channel.send(Record(Kind.NOTE, kind, listener, detail, text.encode()), wait=False)

    def flow_ended(self, end: End, row: bytes) -> bool:
        """Report the end of a flow; False when the channel has no room for it."""
        return bool(self.channel.send(Record(Kind.FLOW, end, text=row), wait=False))


def fixed_use(first_flow: int) -> int:
    """Descriptors that a relay holds even without flows."""
    return first_flow + 1  # and epoll's


def pool_sizes(descriptors: int, other: int, workers: int) -> tuple[int, int]:
    """Sockets of each family, and clean pipes, to keep ready with this many descriptors in all.

    The descriptors are a relay's own. Pipe memory is the user's, so that the relays of a direction
    share the pipes that one of them would keep; and they share the sockets, as far as a pool is
    still worth a request. HardspliceError when what is left would not serve even FLOWS_MIN flows.
    """
    free = descriptors - other
    if free < Limits(descriptors).reserve + 2 * 2 + 2 * 2 + 2 * FLOWS_MIN:
        hint = "raise the limit with ulimit -n, or forward fewer ports"
        raise HardspliceError("run", "a relay", f"{descriptors} descriptors are too few", hint)
    share = max(2, free // 12)
    sockets = max(SOCKETS // workers, SOCKETS_MIN)
    return min(sockets, share), min(max(PIPES // workers, PIPES_MIN), share)


def _tcp_engine(plan: Plan, to_monitor: ToMonitor, limit: int) -> Engine:
    kernel = Kernel()
    other = fixed_use(plan.first_flow)
    sockets, spare = pool_sizes(limit, other, plan.workers)
    pipes = PipePool(kernel, plan.pipe_size, spare)
    report = to_monitor.flow_ended if plan.log_flows else None
    resources = Resources(
        kernel=kernel,
        monitor=to_monitor,
        limits=Limits(limit, idle_seconds=plan.idle_seconds),
        pipes=pipes,
        pools=(SocketPool(IPV4, sockets), SocketPool(IPV6, sockets)),
        families=plan.families,
        counters=plan.stats.count,
        other_descriptors=other,
        trace=plan.trace,
        gauges=plan.stats.gauges() if plan.stats.flows is not None else None,
        flow_writer=flow_writer_of(plan.stats, kernel.now, report),
    )
    return TcpEngine(resources, plan.listeners, shared=plan.workers > 1)


def _udp_engine() -> Callable[[Plan, ToMonitor, int], Engine]:
    from hardsplice.relay.udp import engine, flow_writer, seam, sending

    def build(plan: Plan, to_monitor: ToMonitor, limit: int) -> Engine:
        kernel = seam.Kernel()
        other = fixed_use(plan.first_flow)
        sockets, _ = pool_sizes(limit, other, plan.workers)
        report = to_monitor.flow_ended if plan.log_flows else None
        assert plan.datagrams is not None
        resources = sending.Resources(
            kernel=kernel,
            monitor=to_monitor,
            lifetimes=plan.datagrams,
            descriptors=limit,
            other_descriptors=other,
            pools=(SocketPool(IPV4, sockets), SocketPool(IPV6, sockets)),
            families=plan.families,
            counters=plan.stats.count,
            trace=plan.trace,
            gauges=plan.stats.gauges() if plan.stats.flows is not None else None,
            flow_writer=flow_writer.flow_writer_of(plan.stats, kernel.now, report),
        )
        return engine.Engine(resources, plan.listeners)

    return build


# What makes the engine of a protocol: that of UDP only once it is needed.
_engines: dict[Protocol, Callable[[Plan, ToMonitor, int], Engine]] = {Protocol.TCP: _tcp_engine}


def prepare(protocol: Protocol) -> None:
    """Import what relays of a protocol need, as long as that can be done: before any lock-down."""
    if protocol is Protocol.UDP and protocol not in _engines:
        _engines[protocol] = _udp_engine()


def main(plan: Plan, channel: Channel, monitor: int) -> NoReturn:
    """Become the relay. ``monitor`` is the process that forked us, and we end with it."""
    try:
        os._exit(_live(plan, channel, monitor))
    except _HungUpError:
        os._exit(0)
    except MalformedError:
        os._exit(1)
    except BaseException as error:  # noqa: BLE001 - a forked process must not return
        failure = as_error(error, "run", "a relay")
        _send_last_words(channel, "\n".join(filter(None, (str(failure), failure.hint))))
        os._exit(1)


def _send_last_words(channel: Channel, text: str) -> None:
    """Send the last message. If the monitor is gone already, that changes nothing."""
    with contextlib.suppress(Exception):
        channel.send(Record(Kind.FATAL, text=text.encode(errors="replace")), wait=False)


def _live(plan: Plan, channel: Channel, monitor: int) -> int:
    steps.die_with(monitor)
    channel.move_to(CHANNEL_FD)
    # The places of listeners are as the monitor has them: the relay's listeners, others that are
    # taken away, or /dev/null.
    places = range(FIRST_LISTENER, plan.first_flow)
    # No filter lets anything else get the number of the namespace monitor's lifeline.
    descriptors.keep((CHANNEL_FD, RULESET_FD, LIFELINE_FD, *places), plan.first_flow)
    descriptors.clear(plan.foreign)
    prctl.set_name(RELAYS[plan.direction, plan.protocol].name)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A service manager may send it to every process. It is for the host monitor, which ends us.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if plan.direction is Direction.OUTBOUND:
        _leave_session()

    to_monitor = ToMonitor(channel, time.monotonic)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    engine = _engines[plan.protocol](plan, to_monitor, limit)
    engine.epoll.register(CHANNEL_FD, 1)

    def on_channel() -> None:
        _serve_channel(channel, engine, to_monitor)

    lockdown = steps.Lockdown(strict=plan.strict, say=_say_nothing)
    lockdown.run(steps.relay_steps(RULESET_FD if plan.has_ruleset else None))
    descriptors.clear((RULESET_FD,))
    questions = _install_filter(plan, lockdown)
    tripwire.arm(lambda what: _send_last_words(channel, what))
    kind = Kind.READY_PLACING if questions else Kind.READY
    channel.send(Record(kind, fds=questions))
    for fd in questions:
        os.close(fd)
    engine.start()
    try:
        engine.run({CHANNEL_FD: on_channel})
    finally:  # also after an unexpected exception
        engine.epoll.unregister(CHANNEL_FD)
        engine.finish()
    return 0


def _leave_session() -> None:
    """Give up the terminal that the host monitor still has."""
    os.setsid()


def _install_filter(plan: Plan, lockdown: steps.Lockdown) -> tuple[int, ...]:
    """The last step. Returns the descriptor from which the monitor reads the relay's requests, if
    any.
    """
    if not plan.is_dynamic:
        lockdown.run([steps.filter_step(plan.filter)])
        return ()
    questions: list[int] = []
    lockdown.run([steps.notifying_filter_step(plan.filter, questions.append)])
    return tuple(questions)


def _say_nothing(_: str) -> None:
    """Ignore it: a relay doesn't report its steps."""


class _HungUpError(Exception):
    """The monitor closed the channel, which tells the relay to end."""


def _serve_channel(channel: Channel, engine: Engine, to_monitor: ToMonitor) -> None:
    """Take one order. Raises _HungUpError, and MalformedError."""
    try:
        record = channel.receive(wait=False)
    except BlockingIOError:
        return
    if record is None:
        raise _HungUpError
    if record.kind == Kind.PING:
        to_monitor.answer()
        return
    try:
        _ORDERS[record.kind](engine, record)
    except MalformedError:
        close_all(record.fds)
        raise


def _add_sockets(engine: Engine, record: Record) -> None:
    if record.small not in engine.families:
        raise MalformedError("sockets of a family that no target has")
    engine.add_sockets(record.small, record.fds)


def _add_listener(engine: Engine, record: Record) -> None:
    engine.add_listener(orders.listener_of(record))


def _remove_listener(engine: Engine, record: Record) -> None:
    engine.remove_listener(record.index, record.detail, reset_flows=bool(record.small))


def _poll(engine: Engine, _: Record) -> None:
    engine.poll_listeners()


def _drain(engine: Engine, _: Record) -> None:
    engine.drain()


# What is done about each kind that a monitor may send its relay (ipc/messages.py).
_ORDERS: dict[int, Callable[[Engine, Record], None]] = {
    Kind.SOCKETS: _add_sockets,
    Kind.ADD_LISTENER: _add_listener,
    Kind.REMOVE_LISTENER: _remove_listener,
    Kind.POLL: _poll,
    Kind.DRAIN: _drain,
}
