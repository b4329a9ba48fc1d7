# SPDX-License-Identifier: GPL-2.0-or-later
"""The host monitor's side of COMMAND: the messages to and from PID 1 of its PID namespace, the
signals that are passed on, and its end.

PID 1 shares its namespaces with COMMAND, which may have taken it over: only what is due is accepted
(ipc/dialogue.py), and nothing waits for a PID 1 that doesn't read.
"""

from __future__ import annotations

import signal

from hardsplice.command.container import Container
from hardsplice.command.terminal import Terminal
from hardsplice.ipc.channel import close_all
from hardsplice.ipc.dialogue import INIT, ChildState, Dialogue
from hardsplice.ipc.loop import Loop
from hardsplice.ipc.messages import Kind, MalformedError, Record
from hardsplice.kernel import hints
from hardsplice.kernel.signals import FINAL
from hardsplice.kernel.status import exit_status
from hardsplice.model.errors import HardspliceError
from hardsplice.telemetry.log import Log

PASS_ON_SECONDS = 0.5  # for PID 1 to pass on a signal that is expected to end COMMAND


class Above(hints.Protocol):
    """What is called as messages arrive."""

    def command_prepared(self) -> None:
        """PID 1 is locked down, and COMMAND is ready to run."""

    def command_ended(self, status: int) -> None:
        """COMMAND has ended, or PID 1: with this exit status, as a shell gives it."""

    def take_signals(self) -> None:
        """Take those that have arrived: pass_on is called for those that COMMAND is to get."""

    def fail(self, failure: HardspliceError) -> None:
        """COMMAND can't go on."""

    def distrust(self, whom: str, error: Exception | str) -> None:
        """That process sent what it may not send, or not then."""


class Command:
    """COMMAND, through PID 1."""

    def __init__(
        self, inside: Container, terminal: Terminal | None, loop: Loop, log: Log, above: Above
    ) -> None:
        self._inside: Container | None = inside
        self._terminal = terminal
        self._loop = loop
        self._log = log
        self._above = above
        self._dialogue = Dialogue(INIT)
        self._runs = False
        self._is_unresponsive = False
        self._passed_on = self._answered = 0  # signals to COMMAND, and PID 1's answers
        self._checks = 0  # questions whether it is stopped that PID 1 has not answered
        self._outdated = 0  # how many of them were asked before we were told to go on

    @property
    def pids(self) -> tuple[int, ...]:
        """The children of this process that COMMAND depends on."""
        return self._inside.pids if self._inside else ()

    def watch(self) -> None:
        """Receive from PID 1 from now on, and notice its end."""
        assert self._inside is not None
        self._loop.add(self._inside.channel.fileno(), self._on_channel)
        self._loop.add(self._inside.pidfd, self._on_exit)

    def end(self) -> None:
        """End all processes in there, and wait until they have ended."""
        inside, self._inside = self._inside, None
        if inside and self._is_unresponsive:
            inside.end(patience=0)
        elif inside:
            inside.end()

    # --- messages to PID 1 ------------------------------------------------------------------------

    def _send(self, record: Record) -> bool:
        return self._inside is not None and bool(self._inside.channel.send(record, wait=False))

    def prepare(self) -> None:
        """Have PID 1 fork COMMAND, and lock itself down."""
        self._dialogue.state = ChildState.PREPARING
        self._send(Record(Kind.PREPARE))

    def run(self) -> None:
        """Have COMMAND run."""
        self._runs = True
        self._send(Record(Kind.RUN))

    def pass_on(self, number: int) -> None:
        """Have a signal sent to COMMAND. If that is expected to end it, PID 1 has so long."""
        self._send(Record(Kind.SIGNAL, detail=number))
        self._dialogue.expect(Kind.PASSED_ON)
        self._passed_on += 1
        if number == signal.SIGCONT and self._checks > self._outdated:
            self._outdated = self._checks
            self._check_stopped()
        if number in FINAL:
            sent = self._passed_on
            self._loop.after(PASS_ON_SECONDS, lambda: self._is_passed_on(sent))

    def _is_passed_on(self, sent: int) -> None:
        if self._inside and self._answered < sent:
            self._is_unresponsive = True
            reason = "PID 1 of its namespaces does not answer"
            self._above.fail(HardspliceError("pass on", "a signal to COMMAND", reason))

    def _check_stopped(self) -> None:
        """The terminal's key stops us, too, and by the time that we go on COMMAND may do so."""
        if self._send(Record(Kind.CHECK_STOPPED)):
            self._dialogue.expect(Kind.CHECKED)
            self._checks += 1

    def _checked(self, *, is_stopped: bool) -> None:
        """Stop as COMMAND has, unless we have been told to go on since that was asked; then it was
        asked again.
        """
        self._above.take_signals()  # SIGCONT may be among them
        self._checks -= 1
        if self._outdated:
            self._outdated -= 1
        elif is_stopped and self._terminal:
            self._terminal.stop()
            self._outdated = self._checks  # here SIGCONT has arrived

    # --- messages from PID 1 ----------------------------------------------------------------------

    def _on_channel(self) -> None:
        inside = self._inside
        if inside is None:
            return
        try:
            record = inside.channel.receive(wait=False)
        except BlockingIOError:
            return
        except MalformedError as error:
            self._above.distrust("PID 1 of COMMAND", error)
            record = None
        if record is not None:
            self._take(inside, record)
        else:
            self._loop.remove(inside.channel.fileno())  # there will be none any more

    def _take(self, inside: Container, record: Record) -> None:
        try:
            self._dialogue.check(record)
            if record.kind == Kind.FATAL:
                self._above.fail(inside.last_words(record, runs=self._runs))
        except MalformedError as error:
            close_all(record.fds)
            self._above.distrust("PID 1 of COMMAND", error)
            return
        if record.kind == Kind.READY:
            self._above.command_prepared()
        elif record.kind == Kind.PASSED_ON:
            self._answered += 1
        elif record.kind == Kind.STOPPED:
            self._check_stopped()
        elif record.kind == Kind.CHECKED:
            self._checked(is_stopped=bool(record.small))
        elif record.kind == Kind.EXITED:
            self._above.command_ended(exit_status(record.detail))

    def _on_exit(self) -> None:
        """PID 1 has ended, and with it the whole PID namespace. Its last message says how COMMAND
        ended; without one it was killed itself.
        """
        inside = self._inside
        assert inside is not None
        try:
            for record in inside.last_records():
                self._take(inside, record)
        except MalformedError as error:
            self._above.distrust("PID 1 of COMMAND", error)
        self._loop.remove(inside.pidfd)
        status, how = inside.status()
        if self._dialogue.state is not ChildState.ENDING:
            self._log.last_words(str(HardspliceError("keep", "COMMAND running", how)))
        self._above.command_ended(status)
