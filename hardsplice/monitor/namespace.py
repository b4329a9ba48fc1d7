# SPDX-License-Identifier: GPL-2.0-or-later
"""The namespace monitor: the process in the namespace that is served. It starts and replaces the
relays that connect there, and sends their reports to the host monitor, without which it ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
from collections.abc import Sequence

from hardsplice.command import environment
from hardsplice.ipc import child, descriptors, lifeline
from hardsplice.ipc.channel import CROWDED_HINT, Channel, close_all
from hardsplice.ipc.child import Child
from hardsplice.ipc.descriptors import (
    CHANNEL_FD,
    FIRST_LISTENER,
    LIFELINE_FD,
    LOG_FD,
    RULESET_FD,
)
from hardsplice.ipc.loop import Loop
from hardsplice.ipc.messages import Kind, MalformedError, Record
from hardsplice.kernel import prctl
from hardsplice.kernel.hints import NoReturn
from hardsplice.kernel.record import NamedTuple
from hardsplice.model import roles
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError, error_of, relay_lost, text_of
from hardsplice.model.families import ALL_FAMILIES
from hardsplice.model.protocol import Protocol
from hardsplice.monitor import shutdown
from hardsplice.monitor.groups import RelayGroups
from hardsplice.monitor.handover import NamespaceSide
from hardsplice.monitor.notes import NOTE_OF
from hardsplice.monitor.plan import Namespace
from hardsplice.net import joining, listeners, loopback, sockdiag
from hardsplice.net.joining import Tie
from hardsplice.net.listeners import Bound, chosen
from hardsplice.net.namespaces import Served
from hardsplice.relay import main as relay
from hardsplice.sandbox import empty_root, steps
from hardsplice.sandbox.steps import Lockdown
from hardsplice.telemetry.counters import UNPASSED, shared_with_monitor
from hardsplice.telemetry.log import Level, Log

COOKIE = struct.Struct("=Q")  # of a network namespace; 0: unknown
HANDED_AT_ONCE = 100  # listeners beside one record
GIVE_UP_SECONDS = 3.0  # for it to end its relays and itself, where set-up fails


class NamespaceMonitor:
    """Runs in the namespace that is served; starts and replaces the inbound relays."""

    def __init__(
        self,
        parent: Channel,
        plans: Sequence[Sequence[relay.Plan]],
        lacking: Sequence[str],
        families: Sequence[int] | None = None,
    ) -> None:
        """``families`` are the namespace's, where ports may change at run time."""
        self.parent = parent
        self.loop = Loop()
        self.groups = RelayGroups(plans, self.loop, self)
        self.lacking = lacking
        self.requests = (
            None if families is None else NamespaceSide(parent, self.groups, families, self.loop)
        )

    def run(self) -> int:
        """Serve until the host monitor hangs up; the exit status."""
        self.loop.add(self.parent.fileno(), self._on_parent)
        self.groups.start()
        status = self.loop.run()
        self.groups.stop()
        return status

    def relays_ready(self) -> None:
        """Report that the relays serve, and what lock-down had to do without."""
        self.parent.send(Record(Kind.READY, text="\n".join(self.lacking).encode()))

    def relays_alive(self) -> None:
        """This monitor goes on, and so do its relays."""
        self.parent.send(Record(Kind.PONG), wait=False)

    def relay_lost(self, protocol: Protocol, reason: str, hint: str | None = None) -> None:
        """Without its relays this monitor is of no use."""
        lost = relay_lost(Direction.INBOUND, protocol, reason, hint)
        self.parent.send(Record(Kind.FATAL, text=text_of(lost)))
        self.loop.stop(1)

    def note(self, protocol: Protocol, kind: int, detail: int, port_id: int, text: bytes) -> None:
        """Pass a note up; the host monitor makes words of it."""
        self.parent.send(Record(NOTE_OF[protocol], kind, port_id, detail, text), wait=False)

    def flow_ended(self, end: int, row: bytes) -> None:
        """Pass a flow's end up, or count it where the host monitor does not keep up."""
        if not self.parent.send(Record(Kind.FLOW, end, text=row), wait=False):
            self.groups.supervisors[0].plan.stats.kept[UNPASSED] += 1

    def relays_drained(self) -> None:
        """Nobody is connected any more, and nobody comes."""
        self.loop.stop(0)

    def _on_parent(self) -> None:
        """End with the host monitor; or do what it asks for, where it may ask for something."""
        with contextlib.suppress(BlockingIOError):
            try:
                record = self.parent.receive(wait=False)
            except MalformedError:
                record = None
            if record is None or not self._serve(record):
                self.loop.stop(0)

    def _serve(self, record: Record) -> bool:
        try:
            if record.kind == Kind.PING:
                self.groups.ping()
            elif record.kind == Kind.DRAIN_RELAYS:
                self.groups.mark_stored(shutdown.stored_ports(record))
                if not record.small:
                    self.groups.drain()
            elif self.requests is None:
                raise MalformedError("nothing is to be asked for")
            else:
                self.requests.take(record)
        except MalformedError:
            close_all(record.fds)
            return False
        return True


class Started(NamedTuple):
    """The namespace monitor in its namespace, before its lock-down, and what came from there."""

    child: Child
    listeners: Sequence[Bound]  # of those forwards that it could have
    families: tuple[int, ...]  # that the namespace has
    namespace: int | None  # its number (socketcalls.namespace_cookie), where the kernel tells
    diag_socket: socket.socket | None  # to ask what is listened on there, where that is watched


def start(plan: Namespace, log: Log, undo: contextlib.ExitStack) -> Started:
    """Fork the namespace monitor, and take what it listens on; ``undo`` gets what ends it.
    HardspliceError where it can't get there, or can't listen.
    """
    if loopback.is_down():
        text = "the loopback interface is down in hardsplice's own network namespace, so nothing"
        log.line(Level.WARNING, f"{text} is reached at its addresses: ip link set lo up")
    folder = empty_root.made_by_child() if joining.needs_empty_root(plan.served) else None
    hung_on, held = lifeline.pair()
    tie = Tie(os.getpid(), hung_on)

    def life(theirs: Channel) -> NoReturn:
        os.close(held)
        main(plan, theirs, tie, folder)

    def fork() -> int:
        # Left in the new process, too, which passes none of it on to its relays.
        with shared_with_monitor(stats for one in plan.relays for stats in one.stats):
            return os.fork()

    pid, channel = child.fork(roles.HOST.name, roles.NAMESPACE.name, life, fork)
    os.close(hung_on)
    if folder is not None:
        os.close(folder)
    monitor = Child(pid, channel, lifeline.Hold(held))
    undo.callback(monitor.give_up, GIVE_UP_SECONDS)
    return _receive(monitor, plan, log)


def _receive(monitor: Child, plan: Namespace, log: Log) -> Started:
    forwards = {one.id: one for one in plan.forwards}
    listening: list[Bound] = []
    while True:
        try:
            record = monitor.channel.receive()
        except MalformedError as error:
            raise HardspliceError("trust", "the namespace monitor", str(error)) from error
        if record is None:
            raise HardspliceError("start", "the namespace monitor", "it ended early")
        if record.kind == Kind.FATAL:
            raise error_of(record.text)
        if record.kind == Kind.BOUND:
            cookie, families = record.text[: COOKIE.size], record.text[COOKIE.size :]
            if record.detail:
                _warn_of_loopback(plan.served, record.detail, log)
            return Started(
                monitor,
                listening,
                families=tuple(one for one in ALL_FAMILIES if one in families),
                namespace=COOKIE.unpack(cookie)[0] or None,
                diag_socket=sockdiag.at(record.fds[0]) if record.fds else None,
            )
        if record.kind != Kind.LISTENERS:
            reason = f"a record of kind {record.kind} is not due"
            raise HardspliceError("trust", "the namespace monitor", reason)
        for number, fd in zip(record.text.split(), record.fds, strict=True):
            listening.append(Bound(chosen(forwards[int(number)], fd), fd))


def _warn_of_loopback(served: Served, code: int, log: Log) -> None:
    """It is down in there, and stays so."""
    text = f"cannot set up the loopback interface of {served.name}: {os.strerror(code)}"
    command = loopback.command_for(served.path)
    log.line(Level.WARNING, f"{text}: no server in there is reached at it: {command}")


def main(plan: Namespace, channel: Channel, tie: Tie, folder: int | None) -> NoReturn:
    """The life of the forked process: let go of all that is the host's, join, bind, lock down,
    serve. ``folder`` is what joining.join wants of it.
    """
    child.live(lambda: _live(plan, channel, tie, folder), channel, "run", "the namespace monitor")


def _live(plan: Namespace, channel: Channel, tie: Tie, folder: int | None) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in relays
    os.setsid()
    prctl.set_name(roles.NAMESPACE.name)
    environment.forget()
    confinement = plan.confinement
    begun = confinement.begin(lambda _: None)
    _keep_only_ours(plan, channel, tie.line, folder)
    families = _enter(plan, channel, begun, Tie(tie.parent, LIFELINE_FD), folder)
    plan.book.pin(is_writer=False)
    relays = [one.plans(families) for one in plan.relays]
    places = range(FIRST_LISTENER, plan.first_flow)
    descriptors.keep((CHANNEL_FD, RULESET_FD, LIFELINE_FD, *places), plan.first_flow)
    ruleset = RULESET_FD if confinement.landlock.abi else None
    # In a user namespace of others it stays who it is: net/joining.py.
    user = confinement.user if folder is None else None
    begun.run(steps.rights_steps(user, confinement.last_capability, ruleset))
    Tie(tie.parent, LIFELINE_FD).renew()
    begun.run([steps.filter_step(confinement.program)])
    asked = families if plan.is_dynamic else None
    return NamespaceMonitor(channel, relays, begun.lacking, asked).run()


def _keep_only_ours(plan: Namespace, channel: Channel, line: int, folder: int | None) -> None:
    """Close all but what joining and binding takes, and what is served: root in the namespace could
    get at the rest. The address book's file is among that; what is mapped stays.
    """
    plan.book.open()
    channel.move_to(CHANNEL_FD)
    descriptors.move(line, LIFELINE_FD)
    descriptors.null_standard_streams((0, 1, LOG_FD))
    wanted = [CHANNEL_FD, RULESET_FD, LIFELINE_FD, plan.served.net]
    if folder is not None:
        assert plan.served.user is not None
        wanted += [plan.served.user, folder]
    wanted += [one.fd for one in plan.bound]
    wanted += plan.passed.kept_for(Direction.OUTBOUND)
    descriptors.keep(wanted, plan.first_flow)


def _enter(
    plan: Namespace, channel: Channel, begun: Lockdown, tie: Tie, folder: int | None
) -> tuple[int, ...]:
    """Join the namespace, bind what is to be listened on in there, and hand it over; the families
    that the namespace has.
    """
    joining.join(plan.served, folder, begun, tie, plan.confinement.landlock.abi)
    down = loopback.have_up()
    families = listeners.usable_families(plan.versions)
    bound = listeners.open_listeners(
        plan.forwards,
        families,
        lambda forward: plan.passed.take(forward, families),
    )
    for start in range(0, len(bound), HANDED_AT_ONCE):
        some = bound[start : start + HANDED_AT_ONCE]
        text = " ".join(str(one.forward.id) for one in some).encode()
        if not channel.send(Record(Kind.LISTENERS, text=text, fds=tuple(one.fd for one in some))):
            raise HardspliceError(
                "hand over", "listeners", os.strerror(errno.ETOOMANYREFS), CROWDED_HINT
            )
    with contextlib.ExitStack() as stack:
        diag_socket = sockdiag.open_socket(plan.watched) if plan.watched else None
        if diag_socket:
            stack.enter_context(diag_socket)
        fds = (diag_socket.fileno(),) if diag_socket else ()
        cookie = COOKIE.pack(listeners.namespace_here() or 0)
        channel.send(Record(Kind.BOUND, detail=down, text=cookie + bytes(families), fds=fds))
    return families
