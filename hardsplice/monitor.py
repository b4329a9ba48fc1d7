# SPDX-License-Identifier: GPL-2.0-or-later
"""The two monitors. Each lives in one namespace, keeps the relay that connects there, and never
touches a connection.

The target monitor passes what its relay reports up to the host monitor, which alone talks to
people. Each learns of the other's end by end of file, and then ends too: hardsplice is never half
alive.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hardsplice import container, linux
from hardsplice.channel import Channel, Kind, Malformed, Record, discard
from hardsplice.errors import Failure
from hardsplice.keeper import STOP_SECONDS, Keeper, describe_status, wait_for
from hardsplice.listeners import describe
from hardsplice.log import Level, Log
from hardsplice.loop import Loop
from hardsplice.namespaces import Target
from hardsplice.notes import in_words
from hardsplice.ports import Forward
from hardsplice.relay import main as relay

# What is passed on to COMMAND when it is sent to hardsplice; without a COMMAND the first two end
# hardsplice.
ENDING = (signal.SIGTERM, signal.SIGINT)
PASSED_ON = (*ENDING, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class TargetMonitor:
    """Lives in the target namespace; keeps the inbound relay."""

    def __init__(self, parent: Channel, plan: relay.Plan | None, missing: Sequence[str]) -> None:
        self.parent = parent
        self.loop = Loop()
        self.keeper = Keeper(plan, self.loop, self) if plan else None
        self.missing = missing

    def run(self) -> int:
        """Serve until the host monitor hangs up; the exit status."""
        self.loop.add(self.parent.fileno(), self._on_parent)
        if self.keeper:
            self.keeper.start()
        else:
            self.relay_ready()
        status = self.loop.run()
        if self.keeper:
            self.keeper.stop()
        return status

    def relay_ready(self) -> None:
        """The relay serves: say so upward, and what lock-down had to do without."""
        self.parent.send(Record(Kind.READY, text="\n".join(self.missing).encode()))

    def relay_lost(self, reason: str) -> None:
        """Without its relay this monitor is of no use."""
        self.parent.send(Record(Kind.FATAL, text=relay_lost("inbound", reason)))
        self.loop.stop(1)

    def note(self, kind: int, detail: int, index: int, text: bytes) -> None:
        """Pass a note up; the host monitor makes words of it."""
        self.parent.send(Record(Kind.NOTE, kind, index, detail, text), wait=False)

    def _on_parent(self) -> None:
        with contextlib.suppress(BlockingIOError, Malformed):
            record = self.parent.receive(wait=False)
            if record is not None:
                discard(record.fds)
            self.loop.stop(0)


def relay_lost(direction: str, reason: str) -> bytes:
    """The text of a FATAL record: verb, object, reason, one a line."""
    return f"keep\nthe {direction} relay running\n{reason}".encode()


def failure_of(text: bytes) -> Failure:
    """The Failure that a FATAL record carries: verb, object, reason and perhaps a next step, one a
    line.
    """
    parts = text.decode(errors="replace").split("\n", 3)
    if len(parts) < 3:
        return Failure("go on", "serving", parts[0] or "no reason was given")
    return Failure(parts[0], parts[1], parts[2], parts[3] if len(parts) > 3 else None)


def text_of(failure: Failure) -> bytes:
    """A Failure as the text of a FATAL record."""
    parts = [failure.verb, failure.object, failure.reason]
    if failure.hint:
        parts.append(failure.hint)
    return "\n".join(parts).encode(errors="replace")


@dataclass(slots=True)
class Child:
    """A process that the host monitor waits for."""

    pid: int
    pidfd: int
    channel: Channel


@dataclass(slots=True)
class Host:
    """What the host monitor is told by set-up."""

    log: Log
    target: Target | None
    quit_with_target: bool
    inbound: Sequence[Forward]
    outbound: Sequence[Forward]
    signals: int  # signalfd
    monitor: Child | None  # the target monitor
    container: container.Container | None
    plan: relay.Plan | None  # of the outbound relay
    missing: list[str] = field(default_factory=list)


class HostMonitor:
    """The process that was started; keeps the outbound relay, watches the namespace, writes the
    log.
    """

    def __init__(self, host: Host, on_ready: Callable[[Sequence[str]], None]) -> None:
        self.host = host
        self.log = host.log
        self.on_ready = on_ready
        self.loop = Loop()
        self.keeper = Keeper(host.plan, self.loop, self) if host.plan else None
        self.waiting = {
            name for name, part in (("target", host.monitor), ("relay", host.plan)) if part
        }
        self.failure: Failure | None = None
        self.announced = False
        self.is_init_told = False

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
        elif host.target and host.quit_with_target:
            self._watch(host.target)
        if self.keeper:
            self.keeper.start()
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
        if self.keeper:
            self.keeper.stop()
        monitor = self.host.monitor
        if monitor:
            monitor.channel.drain()
            monitor.channel.close()
            wait_for(monitor.pid, monitor.pidfd, 2 * STOP_SECONDS)
            self.host.monitor = None
        inside = self.host.container
        if inside:
            # End of file makes PID 1 leave, and the kernel ends the rest in there
            inside.channel.drain()
            inside.channel.close()
            wait_for(inside.init, inside.pidfd, STOP_SECONDS)
            self.host.container = None

    # --- getting ready ----------------------------------------------------------------------------

    def _arrived(self, who: str) -> None:
        self.waiting.discard(who)
        inside = self.host.container
        if self.waiting or self.announced:  # whoever says it twice says nothing new
            return
        if inside and not self.is_init_told:
            self.is_init_told = True
            self.waiting.add("init")
            inside.channel.send(Record(Kind.GO))  # fork COMMAND, and lock down
            return
        self.announced = True
        self.on_ready(self.host.missing)
        if inside:
            inside.channel.send(Record(Kind.GO))  # let COMMAND run

    def relay_ready(self) -> None:
        """The outbound relay serves."""
        self._arrived("relay")

    def relay_lost(self, reason: str) -> None:
        """The outbound relay can't be kept running: end."""
        self._fail(failure_of(relay_lost("outbound", reason)))

    def _fail(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = failure
        self.loop.stop(1)

    # --- what happens -----------------------------------------------------------------------------

    def _on_signal(self) -> None:
        number, code = linux.siginfo(os.read(self.host.signals, linux.SIGNALFD_SIGINFO))
        if self.host.container is None:
            if number in ENDING:
                self.log.line(Level.DEBUG, f"ending: {signal.Signals(number).name}")
                self.loop.stop(0)
        elif self.waiting:
            self.loop.stop(128 + number)
        elif code != linux.SI_KERNEL:  # what the terminal sends reaches COMMAND by itself
            self.host.container.channel.send(Record(Kind.SIGNAL, detail=number))

    def _watch(self, target: Target) -> None:
        if target.process is not None:
            self.loop.add(target.process, lambda: self._target_gone(target))
        if target.watch is not None:
            self.loop.add(target.watch, lambda: self._on_directory(target))

    def _on_directory(self, target: Target) -> None:
        assert target.watch is not None
        assert target.path is not None
        with contextlib.suppress(BlockingIOError):
            if os.path.basename(target.path) in linux.inotify_names(os.read(target.watch, 4096)):
                self._target_gone(target)

    def _target_gone(self, target: Target) -> None:
        self.log.line(Level.DEBUG, f"ending: {target.name} is gone")
        self.loop.stop(0)

    def _on_monitor(self) -> None:
        assert self.host.monitor is not None
        channel = self.host.monitor.channel
        try:
            record = channel.receive(wait=False)
        except BlockingIOError:
            return
        except Malformed as error:
            self._fail(Failure("trust", "the target monitor", str(error)))
            return
        if record is None:
            self.loop.remove(channel.fileno())  # that it ended comes by the pidfd
        else:
            self._on_record(record)

    def _on_record(self, record: Record) -> None:
        """The target monitor may have been taken over: it can say these three things, and no
        descriptor beside them.
        """
        if record.fds or record.kind not in (Kind.READY, Kind.FATAL, Kind.NOTE):
            discard(record.fds)
            self._fail(Failure("trust", "the target monitor", f"record of kind {record.kind}"))
        elif record.kind == Kind.READY:
            missing = [line for line in record.text.decode(errors="replace").split("\n") if line]
            self.host.missing += [line for line in missing if line not in self.host.missing]
            self._arrived("target")
        elif record.kind == Kind.FATAL:
            self._fail(failure_of(record.text))
        else:
            self._tell("inbound", self.host.inbound, record)

    def _on_monitor_exit(self) -> None:
        monitor = self.host.monitor
        assert monitor is not None
        with contextlib.suppress(BlockingIOError, Malformed):  # its last words
            while self.failure is None and (record := monitor.channel.receive(wait=False)):
                self._on_record(record)
        monitor.channel.drain()
        self.host.monitor = None
        self.loop.remove(monitor.channel.fileno())
        self.loop.remove(monitor.pidfd)
        how = describe_status(os.waitpid(monitor.pid, 0)[1])
        self._fail(Failure("keep", "the target monitor running", f"it was {how}"))

    def _on_init(self) -> None:
        assert self.host.container is not None
        try:
            record = self.host.container.channel.receive(wait=False)
        except BlockingIOError:
            return
        except Malformed as error:
            self._fail(Failure("trust", "PID 1 of COMMAND", str(error)))
            return
        if record is None:
            self.loop.remove(self.host.container.channel.fileno())
        elif record.fds:
            discard(record.fds)
            self._fail(Failure("trust", "PID 1 of COMMAND", "it sends descriptors"))
        elif record.kind == Kind.FATAL:
            self._fail(failure_of(record.text))
        elif record.kind == Kind.READY:
            self._arrived("init")
        elif record.kind == Kind.EXITED:
            self.loop.stop(exit_status(record.detail))

    def _on_init_exit(self) -> None:
        """PID 1 is gone, and all of the PID namespace with it; it said how COMMAND ended, or was
        killed itself.
        """
        assert self.host.container is not None
        inside = self.host.container
        with contextlib.suppress(BlockingIOError, Malformed):
            while (record := inside.channel.receive(wait=False)) is not None:
                if record.kind == Kind.EXITED:
                    self.loop.stop(exit_status(record.detail))
                elif record.kind == Kind.FATAL:
                    self._fail(failure_of(record.text))
                discard(record.fds)
        inside.channel.drain()
        self.host.container = None
        self.loop.stop(exit_status(os.waitpid(inside.init, 0)[1]))

    # --- words ------------------------------------------------------------------------------------

    def note(self, kind: int, detail: int, index: int, text: bytes) -> None:
        """The outbound relay, or its keeper, has something for the log."""
        self._tell("outbound", self.host.outbound, Record(Kind.NOTE, kind, index, detail, text))

    def _tell(self, direction: str, forwards: Sequence[Forward], record: Record) -> None:
        where = describe(forwards[record.index]) if record.index < len(forwards) else "a port"
        level, line = in_words(direction, where, record.small, record.detail, record.text)
        if level is Level.TRACE:
            self.log.line(level, line)  # each of them was asked for
        else:
            self.log.limited(level, (direction, record.small), line)


def exit_status(status: int) -> int:
    """A wait status as a shell gives it: the exit status, or 128 + the signal's number."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
