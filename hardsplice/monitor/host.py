# SPDX-License-Identifier: GPL-2.0-or-later
"""The host monitor: in the foreground the process that was started, in the background a fork of it.
Like the namespace monitor (monitor/namespace.py) it stays in one namespace, starts and replaces the
relays that connect there, and never handles a connection itself.

Only the host monitor writes messages: the namespace monitor sends it what its relays report. Each
notices the other's end by end of file, and then ends too, so hardsplice never runs with one of them
missing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial

from hardsplice.command.orphans import Orphans
from hardsplice.ipc.channel import close_all
from hardsplice.ipc.dialogue import (
    NAMESPACE_MONITOR,
    OF_NAMESPACE_MONITOR,
    Dialogue,
    last_words,
)
from hardsplice.ipc.loop import Loop
from hardsplice.ipc.messages import Kind, MalformedError, Note, Record
from hardsplice.ipc.sd_notify import Watchdog
from hardsplice.kernel import linux
from hardsplice.kernel.signals import ENDING, FINAL, HARMLESS, is_to_be_passed_on
from hardsplice.kernel.status import describe_status
from hardsplice.model.direction import Direction, GroupKey
from hardsplice.model.errors import HardspliceError, relay_lost
from hardsplice.model.protocol import Protocol
from hardsplice.monitor import departure, loops, notes
from hardsplice.monitor.autoforward import Watch
from hardsplice.monitor.event_log import EventLog
from hardsplice.monitor.groups import RelayGroups
from hardsplice.monitor.handover import HostSide
from hardsplice.monitor.plan import Host
from hardsplice.monitor.readiness import Phase, Readiness
from hardsplice.monitor.registry import Registry
from hardsplice.monitor.shutdown import Ending, account
from hardsplice.monitor.supervisor import STOP_SECONDS
from hardsplice.telemetry.flow_log import FlowLog
from hardsplice.telemetry.flow_table import InvalidRowError
from hardsplice.telemetry.log import Level

# For the namespace monitor to end its relays, each of which has STOP_SECONDS, and to end itself
END_SECONDS = STOP_SECONDS + 0.2
HANDOVER_ANSWERS = (Kind.OPENED, Kind.SERVED, Kind.CLOSED)
# What has to be ready at the start, is pinged, and drains.
NAMESPACE, RELAYS, AUTO, COMMAND = "namespace", "relays", "auto", "command"


class HostMonitor:
    """Starts and replaces the outbound relays, watches the namespace, writes the log."""

    def __init__(
        self, host: Host, lacking: Sequence[str], on_ready: Callable[[HostMonitor], None]
    ) -> None:
        """``lacking`` are layers of the lock-down that are not in force; ``on_ready`` is called
        once, when all processes serve.
        """
        self.host = host
        self.log, self.traffic, self.lacking = host.log, host.traffic, [*lacking]
        self.namespace_monitor = child = host.namespace_monitor  # None once it has ended
        self.on_ready = on_ready
        self.loop = Loop()
        self.groups = RelayGroups(host.plans, self.loop, self)
        self.event_log = EventLog(host.log, lambda one: self.registry.find(one))  # noqa: PLW0108 - below
        self.handover = (
            HostSide(child.channel, self.groups, host.effects, self.loop, self.event_log.trouble)
            if host.effects and child
            else None
        )
        if host.effects:
            host.effects.retiring.on_misuse = lambda why: self.distrust(
                "the namespace monitor", why
            )
            host.effects.on_loss = self.fail
        self.registry = Registry(
            host.ports, host.first_free, host.dynamic, self.handover, host.check_room, loops.check
        )
        if host.effects and host.store:
            effects, store = host.effects, host.store
            self.registry.on_added = lambda port: store.added(port, effects.listener(port.id))
            self.registry.on_removed = store.removed
        self.watch = (
            Watch(host.watched, host.versions, self.registry, self.loop, self.event_log.of_port)
            if host.watched
            else None
        )
        self.command = host.command(self.loop, self) if host.command else None
        self.readiness = Readiness(self._phases())
        self.flows = (
            FlowLog(host.log, host.traffic, self.event_log.where) if host.log_flows else None
        )
        self.noted = notes.passed_on(traced=host.log.level >= Level.TRACE)
        self.watchdog = (
            Watchdog(host.watchdog, host.notifier, self.loop.after, self._ping)
            if host.watchdog
            else None
        )
        self.orphans = Orphans(self.loop, self._children)
        self.ending = Ending(self.loop, host.drain, host.log, host.notifier)
        self.failure: HardspliceError | None = None
        self.namespace_dialogue = Dialogue(NAMESPACE_MONITOR)

    @property
    def ports(self) -> Registry | None:
        """The ports, where they may change at run time."""
        return self.registry if self.handover else None

    def run(self) -> int:
        """Serve until told to end; the exit status. HardspliceError if a part can't go on."""
        host = self.host
        self.loop.add(host.signals, self.take_signals)
        if child := host.namespace_monitor:
            self.loop.add(child.channel.fileno(), self._on_monitor)
            self.loop.add(child.pidfd, self._on_monitor_exit)
        if self.command:
            self.command.watch()
        elif host.quit_with_served:
            departure.watch(host.served, self.loop, partial(self._gone, host.served.name))
        if host.exit is not None:
            self.loop.add(host.exit, partial(self._gone, "the other end of --exit-fd"), 0)
        self.orphans.reap()
        self.readiness.start()
        try:
            status = self.loop.run()
        finally:
            self.close()
        if self.failure:
            raise self.failure
        return status

    def close(self) -> None:
        """End all child processes, and wait until they have ended: no port is bound after that."""
        if not self.ending.is_draining:
            self.host.notifier.status(str(self.failure or "ending"), "STOPPING=1")
        child = self.namespace_monitor
        deadline = time.monotonic() + END_SECONDS
        if child:
            child.hang_up()
        self.groups.stop()
        if child:
            left = deadline - time.monotonic()
            child.receive_until_end(left, self._receive_record)
            child.channel.discard_rest()
            child.let_go()
            child.end(0)
            self.namespace_monitor = None
        # Last: the kernel ends connections of what is ended there as if they were complete.
        if self.command:
            self.command.end()
        if self.flows:
            self.flows.finish()
        account(self.log, self.host.traffic)
        if self.host.terminal:
            self.host.terminal.give_back()

    # --- getting ready ----------------------------------------------------------------------------

    def _phases(self) -> Sequence[Phase]:
        """All phases of this start, in their order."""
        host, watch, command = self.host, self.watch, self.command
        serving = [NAMESPACE, RELAYS] if host.namespace_monitor else [RELAYS]
        phases = [Phase("both monitors and all relays serve", self.groups.start, serving)]
        if watch:
            begin = partial(watch.start, partial(self._arrived, AUTO))
            phases.append(Phase("what is listened on already is forwarded", begin, [AUTO]))
        if command:
            phases.append(Phase("COMMAND waits to be run", command.prepare, [COMMAND]))
        phases.append(Phase("ready is said", self._announce))
        if command:
            phases.append(Phase("COMMAND runs", command.run))
        return phases

    def _arrived(self, who: str) -> None:
        self.readiness.arrived(who)

    def _announce(self) -> None:
        self.on_ready(self)
        self._say_ready()
        if self.watchdog:
            self.watchdog.start()

    def _say_ready(self) -> None:
        number = len(self.registry.list())
        self.host.notifier.status(f"{number} port{'s' * (number != 1)} forwarded", "READY=1")

    def relays_ready(self) -> None:
        """The outbound relays serve."""
        self._arrived(RELAYS)

    def relay_lost(self, protocol: Protocol, reason: str, hint: str | None = None) -> None:
        """An outbound relay can't be kept running: end hardsplice."""
        self.fail(relay_lost(Direction.OUTBOUND, protocol, reason, hint))

    def fail(self, failure: HardspliceError) -> None:
        """End, for this reason, unless there was one before."""
        if self.failure is None:
            self.failure = failure
        self.loop.stop(1)

    # --- what happens -----------------------------------------------------------------------------

    def take_signals(self) -> None:
        """Take the signals that have arrived."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._on_signal(*linux.siginfo(os.read(self.host.signals, linux.SIGNALFD_SIGINFO)))

    def _on_signal(self, number: int, code: int) -> None:
        terminal = self.host.terminal
        leads_session = bool(terminal and terminal.is_led_by_us)
        if number == signal.SIGCHLD:
            self.orphans.reap()
        elif self.ending.is_draining:
            if number in (FINAL if self.command else ENDING):
                self.ending.at_once()
        elif self.command is None:
            hung_up = number == signal.SIGHUP and terminal and terminal.has_hung_up()
            if number in ENDING or hung_up:
                self.log.line(Level.DEBUG, f"ending: {signal.Signals(number).name}")
                self._end(0)
            elif number == signal.SIGHUP and self.readiness.is_complete:
                self.log.line(Level.DEBUG, "SIGHUP: there is nothing to read again")
                self.host.notifier.reloading()
                self._say_ready()
        elif not self.readiness.is_complete:
            if number not in HARMLESS:
                self.loop.stop(128 + number)
        elif is_to_be_passed_on(number, code, is_told_of_hangup=leads_session):
            self.command.pass_on(number)

    def _children(self) -> set[int]:
        """Those whose end somebody here waits for."""
        relays = [supervisor.child for supervisor in self.groups.supervisors]
        return {one.pid for one in (self.namespace_monitor, *relays) if one} | set(
            self.command.pids if self.command else ()
        )

    # --- watchdog ---------------------------------------------------------------------------------

    def _ping(self) -> set[str]:
        """Ping all of them: which were pinged."""
        asked = set()
        if not self.groups.is_drained:
            asked.add(RELAYS)
            self.groups.ping()
        if self.namespace_monitor:
            asked.add(NAMESPACE)
            if self.namespace_monitor.channel.send(Record(Kind.PING), wait=False):
                self.namespace_dialogue.expect()
        return asked

    def _alive(self, who: str) -> None:
        if self.watchdog:
            self.watchdog.answered(who)

    def relays_alive(self) -> None:
        """The outbound relays have answered."""
        self._alive(RELAYS)

    # --- what others report -----------------------------------------------------------------------

    def _gone(self, what: str) -> None:
        self.log.line(Level.DEBUG, f"ending: {what} is gone")
        self._end(0)

    def _end(self, status: int) -> None:
        """End with that status, after the time that --drain gives to flows."""
        departure.forget(self.host.served, self.loop)
        if self.host.exit is not None:
            self.loop.remove(self.host.exit)
        if not self.readiness.is_complete:
            self.loop.stop(status)
            return
        self.registry.close()
        self.ending.begin(status, self.namespace_monitor, self.groups, self.host.stored_ports())

    def relays_drained(self) -> None:
        """The outbound relays have no flow left."""
        self.ending.drained(RELAYS)

    def command_prepared(self) -> None:
        """COMMAND waits to be run."""
        self._arrived(COMMAND)

    def command_ended(self, status: int) -> None:
        """COMMAND has ended with that status."""
        self._end(status)

    def _on_monitor(self) -> None:
        assert self.namespace_monitor is not None
        if not self._receive_record():
            # That it ended comes by the pidfd
            self.loop.remove(self.namespace_monitor.channel.fileno())

    def _receive_record(self) -> bool:
        """Take one record of the namespace monitor; False when there will be none any more."""
        assert self.namespace_monitor is not None
        try:
            record = self.namespace_monitor.channel.receive(wait=False)
        except BlockingIOError:
            return True
        except MalformedError as error:
            self.distrust("the namespace monitor", error)
            return False
        if record is not None:
            self._on_record(record)
        return record is not None

    def distrust(self, whom: str, error: Exception | str) -> None:
        """It violates the protocol."""
        self.fail(HardspliceError("trust", whom, str(error)))

    def _on_record(self, record: Record) -> None:
        """The namespace monitor may have been taken over: only what is due counts
        (ipc/dialogue.py).
        """
        try:
            self.namespace_dialogue.check(record)
            if record.kind in HANDOVER_ANSWERS:
                if self.handover is None:
                    raise MalformedError("an answer where nothing is asked")
                self.handover.take(record)
            else:
                self._take(record)
        except (MalformedError, InvalidRowError) as error:
            close_all(record.fds)
            self.distrust("the namespace monitor", error)

    def _take(self, record: Record) -> None:
        if record.kind == Kind.PONG:
            self._alive(NAMESPACE)
        elif record.kind == Kind.READY:
            self.lacking += notes.newly_lacking(record.text, self.lacking)
            self._arrived(NAMESPACE)
        elif record.kind == Kind.FATAL:
            about = None if self.readiness.awaits(NAMESPACE) else OF_NAMESPACE_MONITOR
            self.fail(last_words(record.text, about))
        elif record.kind == Kind.FLOW:
            if self.flows is None:
                raise InvalidRowError("nobody asked for the ends of flows")
            self.flows.ended(Direction.INBOUND, record.small, record.text)
        elif record.small in self.noted:
            self._write_note((Direction.INBOUND, notes.PROTOCOL_OF[record.kind]), record)
        else:
            raise MalformedError(f"note {record.small} is not its to send")

    def _on_monitor_exit(self) -> None:
        child = self.namespace_monitor
        assert child is not None
        try:
            for record in () if self.failure else child.last_words():
                self._on_record(record)
                if self.failure:
                    break
        except MalformedError as error:
            self.distrust("the namespace monitor", error)
        child.channel.discard_rest()
        self.namespace_monitor = None
        self.loop.remove(child.channel.fileno())
        self.loop.remove(child.pidfd)
        status = child.wait()
        if self.ending.is_draining and status == 0:
            self._alive(NAMESPACE)
            self.ending.drained(NAMESPACE)
            return
        how = f"it was {describe_status(status)}"
        self.fail(HardspliceError("keep", "the namespace monitor running", how))

    # --- the log ----------------------------------------------------------------------------------

    def flow_ended(self, end: int, row: bytes) -> None:
        """A flow of an outbound relay ended."""
        if self.flows:
            self.flows.ended(Direction.OUTBOUND, end, row)

    def note(self, protocol: Protocol, kind: int, detail: int, port_id: int, text: bytes) -> None:
        """An outbound relay, or its supervisor, has something for the log."""
        record = Record(Kind.NOTE, kind, port_id, detail, text)
        self._write_note((Direction.OUTBOUND, protocol), record)

    def _write_note(self, group: GroupKey, record: Record) -> None:
        self.event_log.write(group, record)
        if record.small == Note.RESTARTED and self.host.effects:
            self.host.effects.check_soon()
