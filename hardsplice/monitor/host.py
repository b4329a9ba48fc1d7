# SPDX-License-Identifier: GPL-2.0-or-later
"""The host monitor: in the foreground the process that was started, in the background a fork of it.
Like the namespace monitor (monitor/namespace.py) it stays in one namespace, starts and replaces the
relays that connect there, and never handles a connection itself.

Only the host monitor writes messages: the namespace monitor sends it what its relays report. Each
notices the other's end by end of file, and then ends too, so hardsplice never runs with one of them
missing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

from hardsplice.command import container
from hardsplice.command.orphans import Orphans
from hardsplice.ipc.channel import LAST_RECORDS, close_all
from hardsplice.ipc.child import hear, wait_for
from hardsplice.ipc.dialogue import (
    INIT,
    OF_TARGET_MONITOR,
    TARGET_MONITOR,
    Dialogue,
    Phase,
    last_words,
)
from hardsplice.ipc.loop import Loop
from hardsplice.ipc.messages import Kind, Malformed, Note, Record
from hardsplice.ipc.sd_notify import Watchdog
from hardsplice.kernel import linux
from hardsplice.kernel.signals import ENDING, FINAL, HARMLESS, is_to_be_passed_on
from hardsplice.kernel.status import describe_status, exit_status
from hardsplice.model.direction import Direction
from hardsplice.model.errors import Failure, relay_lost
from hardsplice.monitor import departure, loops
from hardsplice.monitor.autoforward import Watch
from hardsplice.monitor.event_log import Teller
from hardsplice.monitor.group import Crew
from hardsplice.monitor.handover import HostSide
from hardsplice.monitor.notes import BY_KEEPERS, BY_RELAYS, BY_TRACED_RELAYS, lacking
from hardsplice.monitor.plan import Host
from hardsplice.monitor.registry import Ports
from hardsplice.monitor.shutdown import Ending, account
from hardsplice.monitor.supervisor import STOP_SECONDS
from hardsplice.telemetry.flow_log import FlowLog
from hardsplice.telemetry.flow_table import Nonsense
from hardsplice.telemetry.log import Level

# For the target monitor to end its relays, each of which has STOP_SECONDS, and to leave
END_SECONDS = STOP_SECONDS + 0.2
ANSWERS = (Kind.OPENED, Kind.SERVED, Kind.CLOSED)
DEAF_SECONDS = 0.5  # for PID 1 to pass on a signal after which COMMAND may be expected to end


class HostMonitor:
    """The process that was started; keeps the outbound relays, watches the namespace, writes the
    log.
    """

    def __init__(
        self, host: Host, missing: Sequence[str], on_ready: Callable[[HostMonitor], None]
    ) -> None:
        """``missing`` are layers of the lock-down that are not in force; ``on_ready`` is called
        once, when all serve.
        """
        self.host = host
        self.log, self.traffic, self.missing = host.log, host.traffic, [*missing]
        self.on_ready = on_ready
        self.loop = Loop()
        self.crew = Crew(host.plans, self.loop, self)
        self.teller = Teller(host.log, lambda one: self.registry.find(one))  # noqa: PLW0108 - below
        self.exchange = (
            HostSide(host.monitor.channel, self.crew, host.desk, self.loop, self.teller.trouble)
            if host.desk and host.monitor
            else None
        )
        if host.desk:
            host.desk.retiring.on_misuse = lambda why: self._distrust("the target monitor", why)
            host.desk.on_loss = self._fail
        self.registry = Ports(
            host.ports, host.first_free, host.dynamic, self.exchange, host.check_room, loops.check
        )
        if host.desk and host.store:
            desk, store = host.desk, host.store
            self.registry.on_added = lambda port: store.added(port, desk.listener(port.id))
            self.registry.on_removed = store.removed
        self.watch = (
            Watch(host.watched, host.versions, self.registry, self.loop, self.teller.of_port)
            if host.watched
            else None
        )
        self.waiting = {
            name for name, part in (("target", host.monitor), ("relays", host.plans)) if part
        }
        self.flows = FlowLog(host.log, host.traffic, self.teller.where) if host.log_flows else None
        traced = BY_TRACED_RELAYS if host.log.level >= Level.TRACE else frozenset[int]()
        self.noted = BY_RELAYS | BY_KEEPERS | traced  # what the target monitor may pass on
        self.watchdog = (
            Watchdog(host.watchdog, host.notifier, self.loop.after, self._ask_alive)
            if host.watchdog
            else None
        )
        self.orphans = Orphans(self.loop, self._children)
        self.ending = Ending(self.loop, host.drain, host.log, host.notifier)
        self.failure: Failure | None = None
        self.announced = False
        self.is_watching = False
        self.target_says, self.init_says = Dialogue(TARGET_MONITOR), Dialogue(INIT)
        self.is_init_deaf = False
        self.passed_on = self.answered = 0  # signals to COMMAND, and PID 1's answers

    @property
    def ports(self) -> Ports | None:
        """The ports, where they may change at run time."""
        return self.registry if self.exchange else None

    def run(self) -> int:
        """Serve until told to end; the exit status. Failure when something can't go on."""
        host = self.host
        self.loop.add(host.signals, self._on_signal)
        if host.monitor:
            self.loop.add(host.monitor.channel.fileno(), self._on_monitor)
            self.loop.add(host.monitor.pidfd, self._on_monitor_exit)
        if host.container:
            self.loop.add(host.container.channel.fileno(), self._on_init)
            self.loop.add(host.container.pidfd, self._on_init_exit)
        elif host.quit_with_target:
            departure.watch(host.target, self.loop, self._target_gone)
        self.crew.start()
        self.orphans.look()
        self._arrived("")
        try:
            status = self.loop.run()
        finally:
            self.close()
        if self.failure:
            raise self.failure
        return status

    def close(self) -> None:
        """End what belongs to us, and wait until it has ended: no port is held after that."""
        if not self.ending.is_draining:
            self.host.notifier.status(str(self.failure or "ending"), "STOPPING=1")
        inside, self.host.container = self.host.container, None
        monitor = self.host.monitor
        deadline = time.monotonic() + END_SECONDS
        if monitor:
            monitor.channel.finish()
        self.crew.stop()
        if monitor:
            left = deadline - time.monotonic()
            hear(monitor.channel, monitor.pidfd, left, self._hear_monitor)
            monitor.channel.drain()
            monitor.line.let_go()
            wait_for(monitor.pid, monitor.pidfd, 0)
            self.host.monitor = None
        # Last: the kernel ends connections of what is ended there as if they were complete.
        if inside and self.is_init_deaf:
            inside.end(patience=0)
        elif inside:
            inside.end()
        if self.flows:
            self.flows.finish()
        account(self.log, self.host.traffic)
        if self.host.terminal:
            self.host.terminal.give_back()

    # --- getting ready ----------------------------------------------------------------------------

    def _arrived(self, who: str) -> None:
        self.waiting.discard(who)
        inside = self.host.container
        if self.watch and not self.is_watching and not self.waiting:
            self.is_watching = True
            self.waiting.add("auto")
            self.watch.start(lambda: self._arrived("auto"))
            return
        if self.waiting or self.announced:
            return
        if inside and self.init_says.phase is Phase.STARTING:
            self.init_says.phase = Phase.PREPARING
            self.waiting.add("init")
            inside.channel.send(Record(Kind.PREPARE), wait=False)
            return
        self.announced = True
        self.on_ready(self)
        self._say_ready()
        if self.watchdog:
            self.watchdog.start()
        if inside:
            inside.channel.send(Record(Kind.RUN), wait=False)

    def _say_ready(self) -> None:
        number = len(self.registry.list())
        self.host.notifier.status(f"{number} port{'s' * (number != 1)} forwarded", "READY=1")

    def relays_ready(self) -> None:
        """The outbound relays serve."""
        self._arrived("relays")

    def relay_lost(self, reason: str, hint: str | None = None) -> None:
        """An outbound relay can't be kept running: end."""
        self._fail(relay_lost(Direction.OUTBOUND, reason, hint))

    def _fail(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = failure
        self.loop.stop(1)

    # --- what happens -----------------------------------------------------------------------------

    def _on_signal(self) -> None:
        number, code = linux.siginfo(os.read(self.host.signals, linux.SIGNALFD_SIGINFO))
        if number == signal.SIGCHLD:
            self.orphans.look()
        elif self.ending.is_draining:
            if number in (FINAL if self.host.container else ENDING):
                self.ending.at_once()
        elif self.host.container is None:
            if number in ENDING or (number == signal.SIGHUP and self._is_left()):
                self.log.line(Level.DEBUG, f"ending: {signal.Signals(number).name}")
                self._end(0)
            elif number == signal.SIGHUP and self.announced:
                self.log.line(Level.DEBUG, "SIGHUP: there is nothing to read again")
                self.host.notifier.reloading()
                self._say_ready()
        elif self.waiting:
            if number not in HARMLESS:
                self.loop.stop(128 + number)
        elif is_to_be_passed_on(number, code, is_told_of_hangup=self._leads_session()):
            self._pass_on(self.host.container, number)

    def _leads_session(self) -> bool:
        return self.host.terminal is not None and self.host.terminal.is_led_by_us

    def _is_left(self) -> bool:
        """Whether the terminal that we were started at has hung up; nohup(1) is for who minds."""
        terminal = self.host.terminal
        return terminal is not None and terminal.is_minded and terminal.has_hung_up()

    def _children(self) -> set[int]:
        """Those whose end somebody here waits for."""
        inside, monitor = self.host.container, self.host.monitor
        ours = {keeper.pid for keeper in self.crew.keepers}
        return ours | {monitor.pid if monitor else 0} | set(inside.pids if inside else ())

    def _pass_on(self, inside: container.Container, number: int) -> None:
        """Have COMMAND get a signal. Where it should end by it, PID 1 has to be quick."""
        # One that does not read what it is told keeps nobody waiting.
        inside.channel.send(Record(Kind.SIGNAL, detail=number), wait=False)
        self.init_says.asked(Kind.PASSED_ON)
        self.passed_on += 1
        if number in FINAL:
            sent = self.passed_on
            self.loop.after(DEAF_SECONDS, lambda: self._is_passed_on(sent))

    def _is_passed_on(self, sent: int) -> None:
        if self.host.container and self.answered < sent:
            self.is_init_deaf = True
            reason = "PID 1 of its namespaces does not answer"
            self._fail(Failure("pass on", "a signal to COMMAND", reason))

    # --- is all well? -----------------------------------------------------------------------------

    def _ask_alive(self) -> set[str]:
        """Ask everybody whether they go on: who was asked."""
        asked = set()
        if not self.crew.is_drained:
            asked.add("relays")
            self.crew.ask_alive()
        if self.host.monitor:
            asked.add("target")
            if self.host.monitor.channel.send(Record(Kind.PING), wait=False):
                self.target_says.asked()
        return asked

    def _alive(self, who: str) -> None:
        if self.watchdog:
            self.watchdog.heard(who)

    def relays_alive(self) -> None:
        """The outbound relays go on."""
        self._alive("relays")

    # --- what others tell -------------------------------------------------------------------------

    def _target_gone(self) -> None:
        self.log.line(Level.DEBUG, f"ending: {self.host.target.name} is gone")
        self._end(0)

    def _end(self, status: int) -> None:
        """End with that status, once flows have had the time that --drain gives them."""
        departure.forget(self.host.target, self.loop)
        if not self.announced:
            self.loop.stop(status)
            return
        self.registry.close()
        self.ending.begin(status, self.host.monitor, self.crew, self.host.kept())

    def relays_drained(self) -> None:
        """Nobody is connected to the outbound relays any more."""
        self.ending.drained("relays")

    def _on_monitor(self) -> None:
        assert self.host.monitor is not None
        if not self._hear_monitor():
            # That it ended comes by the pidfd
            self.loop.remove(self.host.monitor.channel.fileno())

    def _hear_monitor(self) -> bool:
        """Take one record of the target monitor; False when there will be none any more."""
        assert self.host.monitor is not None
        try:
            record = self.host.monitor.channel.receive(wait=False)
        except BlockingIOError:
            return True
        except Malformed as error:
            self._distrust("the target monitor", error)
            return False
        if record is not None:
            self._on_record(record)
        return record is not None

    def _distrust(self, whom: str, error: Exception | str) -> None:
        """It says or does what it may not, or when it may not."""
        self._fail(Failure("trust", whom, str(error)))

    def _on_record(self, record: Record) -> None:
        """The target monitor may have been taken over: it can say what is due (ipc/dialogue.py)."""
        try:
            self.target_says.hear(record)
            if record.kind in ANSWERS:
                if self.exchange is None:
                    raise Malformed("an answer where nothing is asked")
                self.exchange.take(record)
            else:
                self._take(record)
        except (Malformed, Nonsense) as error:
            close_all(record.fds)
            self._distrust("the target monitor", error)

    def _take(self, record: Record) -> None:
        if record.kind == Kind.PONG:
            self._alive("target")
        elif record.kind == Kind.READY:
            self.missing += lacking(record.text, self.missing)
            self._arrived("target")
        elif record.kind == Kind.FATAL:
            about = None if "target" in self.waiting else OF_TARGET_MONITOR
            self._fail(last_words(record.text, about))
        elif record.kind == Kind.FLOW:
            if self.flows is None:
                raise Nonsense("nobody asked for the ends of flows")
            self.flows.ended(Direction.INBOUND, record.small, record.text)
        elif record.small in self.noted:
            self._tell(Direction.INBOUND, record)
        else:
            raise Malformed(f"note {record.small} is not its to send")

    def _on_monitor_exit(self) -> None:
        monitor = self.host.monitor
        assert monitor is not None
        try:  # its last words
            for _ in range(LAST_RECORDS):
                if self.failure or (record := monitor.channel.receive(wait=False)) is None:
                    break
                self._on_record(record)
        except BlockingIOError:
            pass
        except Malformed as error:
            self._distrust("the target monitor", error)
        monitor.channel.drain()
        self.host.monitor = None
        self.loop.remove(monitor.channel.fileno())
        self.loop.remove(monitor.pidfd)
        status = os.waitpid(monitor.pid, 0)[1]
        if self.ending.is_draining and status == 0:
            self._alive("target")
            self.ending.drained("target")
            return
        how = f"it was {describe_status(status)}"
        self._fail(Failure("keep", "the target monitor running", how))

    def _on_init(self) -> None:
        if (inside := self.host.container) and not self._hear_init():
            self.loop.remove(inside.channel.fileno())

    def _hear_init(self) -> bool:
        """Take one record of PID 1; False when there will be none any more."""
        assert self.host.container is not None
        try:
            record = self.host.container.channel.receive(wait=False)
        except BlockingIOError:
            return True
        except Malformed as error:
            self._distrust("PID 1 of COMMAND", error)
            return False
        if record is not None:
            self._on_init_record(self.host.container, record)
        return record is not None

    def _on_init_record(self, inside: container.Container, record: Record) -> None:
        """PID 1 lives beside COMMAND, and may have been taken over by it."""
        try:
            self.init_says.hear(record)
            if record.kind == Kind.FATAL:
                self._fail(inside.last_words(record, runs=self.announced))
        except Malformed as error:
            close_all(record.fds)
            self._distrust("PID 1 of COMMAND", error)
            return
        if record.kind == Kind.READY:
            self._arrived("init")
        elif record.kind == Kind.PASSED_ON:
            self.answered += 1
        elif record.kind == Kind.STOPPED:
            self._ask_whether_stopped()
        elif record.kind == Kind.CHECKED:
            if record.small and self.host.terminal:
                self.host.terminal.stop()
        elif record.kind == Kind.EXITED:
            self._end(exit_status(record.detail))

    def _ask_whether_stopped(self) -> None:
        """The terminal's key stops us, too: then we hear of it when COMMAND has gone on already."""
        inside = self.host.container
        if inside and inside.channel.send(Record(Kind.CHECK_STOPPED), wait=False):
            self.init_says.asked(Kind.CHECKED)

    def _on_init_exit(self) -> None:
        """PID 1 is gone, and all of the PID namespace with it; it said how COMMAND ended, or was
        killed itself.
        """
        assert self.host.container is not None
        inside = self.host.container
        try:
            for _ in range(LAST_RECORDS):
                if (record := inside.channel.receive(wait=False)) is None:
                    break
                self._on_init_record(inside, record)
        except BlockingIOError:
            pass
        except Malformed as error:
            self._distrust("PID 1 of COMMAND", error)
        self.loop.remove(inside.pidfd)
        status, how = inside.status()
        if self.init_says.phase is not Phase.ENDING:
            self.log.last_words(str(Failure("keep", "COMMAND running", how)))
        self._end(status)

    # --- words ------------------------------------------------------------------------------------

    def flow_ended(self, end: int, row: bytes) -> None:
        """A flow of an outbound relay ended."""
        if self.flows:
            self.flows.ended(Direction.OUTBOUND, end, row)

    def note(self, kind: int, detail: int, index: int, text: bytes) -> None:
        """An outbound relay, or its keeper, has something for the log."""
        self._tell(Direction.OUTBOUND, Record(Kind.NOTE, kind, index, detail, text))

    def _tell(self, direction: Direction, record: Record) -> None:
        self.teller.tell(direction, record)
        if record.small == Note.RESTARTED and self.host.desk:
            self.host.desk.look_soon()
