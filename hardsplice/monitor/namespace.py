# SPDX-License-Identifier: GPL-2.0-or-later
"""The target monitor: the process in the namespace that is served. It keeps the relays that connect
there, and passes what they report up to the host monitor, without which it ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import prctl

from hardsplice.app import host_lockdown
from hardsplice.command import environment
from hardsplice.ipc import child, descriptors, lifeline
from hardsplice.ipc.channel import CROWDED_HINT, Channel, Kind, Malformed, Record, close_all
from hardsplice.ipc.child import Child
from hardsplice.ipc.descriptors import (
    CHANNEL_FD,
    FIRST_LISTENER,
    LIFELINE_FD,
    LOG_FD,
    RULESET_FD,
)
from hardsplice.ipc.loop import Loop
from hardsplice.model import roles
from hardsplice.model.direction import Direction
from hardsplice.model.errors import Failure, failure_of, relay_lost, text_of
from hardsplice.model.families import ALL_FAMILIES
from hardsplice.monitor import shutdown
from hardsplice.monitor.group import Crew
from hardsplice.monitor.handover import TargetSide
from hardsplice.net import joining, listeners, loopback, sockdiag
from hardsplice.net.joining import Tie
from hardsplice.relay import main as relay
from hardsplice.sandbox import empty_root, steps
from hardsplice.sandbox.steps import Lockdown
from hardsplice.telemetry.counters import UNPASSED, shared_with_monitor
from hardsplice.telemetry.log import Level

if TYPE_CHECKING:
    from hardsplice.app.setup import Setup

COOKIE = struct.Struct("=Q")  # of a network namespace; 0: unknown
HANDED_AT_ONCE = 100  # listeners beside one record


class TargetMonitor:
    """Lives in the target namespace; keeps the inbound relays."""

    def __init__(
        self,
        parent: Channel,
        plans: Sequence[relay.Plan],
        missing: Sequence[str],
        families: Sequence[int] | None = None,
    ) -> None:
        """``families`` are the namespace's, where ports may change at run time."""
        self.parent = parent
        self.loop = Loop()
        self.crew = Crew(plans, self.loop, self)
        self.missing = missing
        self.requests = None if families is None else TargetSide(parent, self.crew, families)

    def run(self) -> int:
        """Serve until the host monitor hangs up; the exit status."""
        self.loop.add(self.parent.fileno(), self._on_parent)
        if self.crew.keepers:
            self.crew.start()
        else:
            self.relays_ready()
        status = self.loop.run()
        self.crew.stop()
        return status

    def relays_ready(self) -> None:
        """The relays serve: say so upward, and what lock-down had to do without."""
        self.parent.send(Record(Kind.READY, text="\n".join(self.missing).encode()))

    def relays_alive(self) -> None:
        """This monitor goes on, and so do its relays."""
        self.parent.send(Record(Kind.PONG), wait=False)

    def relay_lost(self, reason: str, hint: str | None = None) -> None:
        """Without its relays this monitor is of no use."""
        lost = relay_lost(Direction.INBOUND, reason, hint)
        self.parent.send(Record(Kind.FATAL, text=text_of(lost)))
        self.loop.stop(1)

    def note(self, kind: int, detail: int, index: int, text: bytes) -> None:
        """Pass a note up; the host monitor makes words of it."""
        self.parent.send(Record(Kind.NOTE, kind, index, detail, text), wait=False)

    def flow_ended(self, end: int, row: bytes) -> None:
        """Pass a flow's end up, or count it where the host monitor does not keep up."""
        if not self.parent.send(Record(Kind.FLOW, end, text=row), wait=False):
            self.crew.keepers[0].plan.stats.kept[UNPASSED] += 1

    def relays_drained(self) -> None:
        """Nobody is connected any more, and nobody comes."""
        self.loop.stop(0)

    def _on_parent(self) -> None:
        """End with the host monitor; or do what it asks for, where it may ask for something."""
        with contextlib.suppress(BlockingIOError):
            try:
                record = self.parent.receive(wait=False)
            except Malformed:
                record = None
            if record is None or not self._serve(record):
                self.loop.stop(0)

    def _serve(self, record: Record) -> bool:
        try:
            if record.kind == Kind.PING and not record.fds:
                self.crew.ask_alive()
            elif record.kind == Kind.DRAIN and not record.fds:
                self.crew.lend(shutdown.lent(record))
                if not record.small:
                    self.crew.drain()
            elif self.requests is None:
                raise Malformed("nothing is to be asked for")
            else:
                self.requests.take(record)
        except Malformed:
            close_all(record.fds)
            return False
        return True


def start(setup: Setup) -> None:
    """Fork the target monitor, and take what it listens on."""
    assert setup.target is not None
    if loopback.is_down():
        text = "the loopback interface is down in hardsplice's own network namespace, so nothing"
        setup.log.line(Level.WARNING, f"{text} is reached at its addresses: ip link set lo up")
    folder = empty_root.made_by_child() if joining.needs_empty_root(setup.target) else None
    hung_on, held = lifeline.pair()
    ours, theirs = Channel.pair()
    parent = os.getpid()
    with shared_with_monitor(setup.planner.stats[Direction.INBOUND]):
        pid = os.fork()
    if pid == 0:
        os.close(held)
        ours.close()
        main(setup, theirs, Tie(parent, hung_on), folder)
    theirs.close()
    os.close(hung_on)
    if folder is not None:
        os.close(folder)
    setup.monitor = Child(pid, os.pidfd_open(pid), ours, lifeline.Hold(held))
    _receive_listeners(setup, ours)


def _receive_listeners(setup: Setup, channel: Channel) -> None:
    while True:
        record = channel.receive()
        if record is None:
            raise Failure("start", "the target monitor", "it ended early")
        if record.kind == Kind.FATAL:
            raise failure_of(record.text)
        if record.kind == Kind.BOUND:
            for fd in record.fds:
                setup.askers[Direction.INBOUND] = sockdiag.at(fd)
            cookie, families = record.text[: COOKIE.size], record.text[COOKIE.size :]
            setup.target_namespace = COOKIE.unpack(cookie)[0] or None
            setup.target_families = tuple(one for one in ALL_FAMILIES if one in families)
            if record.detail:
                _tell_of_loopback(setup, record.detail)
            return
        indexes = [int(index) for index in record.text.split()]
        setup.target_listeners += zip(indexes, record.fds, strict=True)


def _tell_of_loopback(setup: Setup, code: int) -> None:
    """It is down in there, and stays so."""
    assert setup.target is not None
    text = f"cannot set up the loopback interface of {setup.target.name}: {os.strerror(code)}"
    command = loopback.command_for(setup.target.path)
    setup.log.line(Level.WARNING, f"{text}: no server in there is reached at it: {command}")


def main(setup: Setup, channel: Channel, tie: Tie, folder: int | None) -> NoReturn:
    """The life of the forked process: let go of all that is the host's, join, bind, lock down,
    serve. ``folder`` is what joining.join wants of it.
    """
    child.live(lambda: _live(setup, channel, tie, folder), channel, "run", "the target monitor")


def _live(setup: Setup, channel: Channel, tie: Tie, folder: int | None) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in relays
    os.setsid()
    prctl.set_name(roles.TARGET.name)
    environment.forget()
    begun = host_lockdown.of_monitor(setup, Direction.INBOUND, lambda _: None)
    setup.log.level = Level.ERROR
    _keep_only_ours(setup, channel, tie.line, folder)
    families = _enter(setup, channel, begun, Tie(tie.parent, LIFELINE_FD), folder)
    setup.planner.books[Direction.INBOUND].pin(is_writer=False)
    plans = setup.planner.relays(Direction.INBOUND, setup.host_listeners, families)
    places = range(FIRST_LISTENER, setup.first_flow)
    descriptors.keep((CHANNEL_FD, RULESET_FD, LIFELINE_FD, *places), setup.first_flow)
    ruleset = RULESET_FD if setup.landlock.abi else None
    # In a user namespace of others it stays who it is: net/joining.py.
    user = setup.user if folder is None else None
    begun.run(steps.rights_steps(user, setup.last_capability, ruleset))
    Tie(tie.parent, LIFELINE_FD).renew()
    begun.run([steps.filter_step(setup.programs.target)])
    asked = families if setup.options.dynamic else None
    return TargetMonitor(channel, plans, begun.missing, asked).run()


def _keep_only_ours(setup: Setup, channel: Channel, line: int, folder: int | None) -> None:
    """Close all but what joining and binding takes, and what is served: root in the namespace could
    get at the rest. The address book's file is among that; what is mapped stays.
    """
    assert setup.target is not None
    setup.planner.books[Direction.INBOUND].open()
    channel.move_to(CHANNEL_FD)
    descriptors.move(line, LIFELINE_FD)
    descriptors.null_standard_streams((0, 1, LOG_FD))
    wanted = [CHANNEL_FD, RULESET_FD, LIFELINE_FD, setup.target.net]
    if folder is not None:
        assert setup.target.user is not None
        wanted += [setup.target.user, folder]
    wanted += [fd for _, fd in setup.host_listeners]
    wanted += setup.passed.kept_for(Direction.OUTBOUND)
    descriptors.keep(wanted, setup.first_flow)


def _enter(
    setup: Setup, channel: Channel, begun: Lockdown, tie: Tie, folder: int | None
) -> tuple[int, ...]:
    """Join the namespace, bind what is to be listened on in there, and hand it over; the families
    that the namespace has.
    """
    options = setup.options
    assert setup.target is not None
    joining.join(setup.target, folder, begun, tie, setup.landlock.abi)
    down = loopback.have_up()
    families = listeners.usable_families(options.families)
    bound = listeners.open_listeners(
        options.outbound,
        families,
        Direction.OUTBOUND.listens,
        setup.kept(Direction.OUTBOUND, families),
        optional_from=setup.added[Direction.OUTBOUND],
    )
    for start in range(0, len(bound), HANDED_AT_ONCE):
        some = bound[start : start + HANDED_AT_ONCE]
        text = " ".join(str(index) for index, _ in some).encode()
        if not channel.send(Record(Kind.LISTENERS, text=text, fds=tuple(fd for _, fd in some))):
            raise Failure("hand over", "listeners", os.strerror(errno.ETOOMANYREFS), CROWDED_HINT)
    with contextlib.ExitStack() as stack:
        asker = stack.enter_context(sockdiag.open_socket()) if options.inbound_auto else None
        fds = (asker.fileno(),) if asker else ()
        cookie = COOKIE.pack(listeners.namespace_here() or 0)
        channel.send(Record(Kind.BOUND, detail=down, text=cookie + bytes(families), fds=fds))
    return families
