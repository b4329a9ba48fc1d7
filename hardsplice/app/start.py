# SPDX-License-Identifier: GPL-2.0-or-later
"""From the command line to the running program: parse, go to the background if requested, set up,
and report what went wrong.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

from hardsplice.app.options import Mode, Options, Verbosity
from hardsplice.command import caller
from hardsplice.kernel.hints import TYPE_CHECKING, Any, NoReturn
from hardsplice.model.errors import HardspliceError, print_lines, reason_of, write_all
from hardsplice.model.unforeseen import as_error
from hardsplice.net import procfs

if TYPE_CHECKING:
    from hardsplice.app.service import Besides
    from hardsplice.command.caller import Caller
    from hardsplice.ipc.channel import Channel
    from hardsplice.ipc.messages import Record

# Signals that end the process that waits for the one in the background.
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
ENDING_SECONDS = 3.0  # that a process which said what is wrong may take to end


def main(argv: Sequence[str]) -> int:
    """Run hardsplice with the words of its command line; the exit status."""
    began = time.monotonic()
    from hardsplice.app import command_line, modes

    given = caller.take()
    try:
        options = command_line.parse_args(argv)
        _check(options)
        if options.mode is Mode.COMMAND and not options.command:
            modes.refuse_no_command(has_terminal=os.isatty(0))
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # which is COMMAND's to inherit
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if options.foreground:
            _serve(options, _start_auditor(options) if options.audit else None, began, given)
        _launch(options, began, given)
    except Exception as error:  # noqa: BLE001 - the last resort: no traceback
        return _say(as_error(error, "start", "hardsplice"))
    return 0


def launch(options: Options, began: float, besides: Besides | None = None) -> None:
    """Run it in a process of its own, in the background, and what it serves ``besides``; return
    once all of it is bound and locked down. HardspliceError where that failed: then nothing is
    left.
    """
    given = caller.take()
    _check(options)
    _launch(options, began, given, besides)


def _check(options: Options) -> None:
    """HardspliceError where nothing can be served here."""
    _refuse_jit(getattr(sys, "_jit", None))
    procfs.refuse_without_proc()
    if options.mode is not Mode.NETNS:
        procfs.refuse_others_proc()


def _refuse_jit(jit: Any) -> None:
    """Python 3.14 and later have ``sys._jit``. What it makes is memory to be executed, which the
    filters don't allow. An isolated interpreter can't be told to do without it.
    """
    if jit is not None and jit.is_enabled():
        reason = "it compiles machine code while it runs"
        hint = "use one whose just-in-time compiler is not on by default"
        raise HardspliceError("use", "this Python", reason, hint)


def _say(failure: HardspliceError) -> int:
    print_lines(failure.lines())
    return 1


def _start_auditor(options: Options) -> Channel:
    """Start a process that reads /proc once we are ready, when we no longer can.

    Its parent ends at once, so it needn't be reaped.
    """
    from hardsplice.ipc import child
    from hardsplice.ipc.messages import LAUNCHER
    from hardsplice.model.roles import HOST

    server = os.getpid()

    def life(theirs: Channel) -> NoReturn:
        if os.fork() == 0:
            # COMMAND may put us into the background of a terminal that stops background writers.
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
            record = theirs.receive()
            if record is not None:
                _audit(options, server, record)
        os._exit(0)

    between, ours = child.fork(HOST.name, LAUNCHER, life)
    os.waitpid(between, 0)
    return ours


def _audit(options: Options, server: int, record: Record) -> None:
    """Print what --audit shows: to standard output, unless that is COMMAND's."""
    from hardsplice.telemetry import audit

    lacking = record.text.decode(errors="replace").split("\n")[1:]
    try:
        text = audit.report(server, lacking, options.audit or "table")
        write_all(2 if options.mode is Mode.COMMAND else 1, text.encode() + b"\n")
    except HardspliceError as failure:
        _say(failure)
    except BrokenPipeError:
        pass  # the reader has seen enough
    except OSError as error:
        _say(HardspliceError("write", "the audit", reason_of(error)))


def _serve(
    options: Options,
    launcher: Channel | None,
    began: float,
    given: Caller,
    besides: Besides | None = None,
) -> NoReturn:
    """Set up and serve in this process. After lock-down the interpreter's own way out is closed, so
    leave by os._exit.
    """
    from hardsplice.app.progress import Progress

    progress = Progress(options, launcher, began)
    status = 1
    try:
        programs = besides.prepare() if besides else None
        from hardsplice.app import stages

        status = stages.run(options, given, progress, besides, programs)
    except BaseException as error:  # noqa: BLE001 - the last resort: one line, and no traceback
        status = progress.fail(error)
    os._exit(status)


class _SignalError(Exception):
    """A signal ends this process."""


def _on_signal(number: int, _frame: object) -> NoReturn:
    raise _SignalError(number)


def _launch(
    options: Options,
    began: float,
    given: Caller,
    besides: Besides | None = None,
) -> None:
    """Start a process in the background; wait until it is ready. HardspliceError if it has failed.

    Whatever happens to it, or to us meanwhile: it is there if this returns, and gone if not.
    """
    from hardsplice.ipc import child
    from hardsplice.ipc.messages import LAUNCHER, Kind, MalformedError
    from hardsplice.ipc.sd_notify import Notifier, manager_of
    from hardsplice.model.errors import error_of
    from hardsplice.model.roles import HOST

    had_pid_file = options.pid_file is not None and os.path.lexists(options.pid_file)
    notifier = Notifier(manager_of(os.environ, os.getpid()).notify)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)

    def life(theirs: Channel) -> NoReturn:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        os.setsid()
        _serve(options, theirs, began, given, besides)

    server = child.Child(*child.fork(LAUNCHER, HOST.name, life))
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup(1)
            signal.signal(number, _on_signal)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        # The one that the service manager started is about to end; it takes the word of no other.
        notifier.say(f"MAINPID={server.pid}")
        try:
            record = server.first_word()
        except MalformedError:
            record = None
        if record is not None and record.kind == Kind.READY:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # from here on we say that it runs
            if options.verbosity >= Verbosity.DEBUG:
                said = record.text.decode(errors="replace").partition("\n")[0]
                print_lines([f"hardsplice: {said}"])
            if options.audit:
                _audit(options, server.pid, record)
            return
        server.end(ENDING_SECONDS)
    except _SignalError as ended:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        server.end(0)
        _clean_up(options, server.pid, had_pid_file=had_pid_file)
        record, (number,) = None, ended.args
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    failure = HardspliceError("start", "hardsplice", "its process ended early")
    _clean_up(options, server.pid, had_pid_file=had_pid_file)
    raise error_of(record.text) if record else failure


def _clean_up(options: Options, pid: int, *, had_pid_file: bool) -> None:
    """Remove what a process that has locked itself down can't."""
    if options.pid_file is not None and not had_pid_file:
        from hardsplice.app.pidfile import remove_left

        remove_left(options.pid_file, pid)
    if options.control is not None:
        from hardsplice.control.socketfile import remove_if_stale

        remove_if_stale(options.control)
        if options.metrics is not None:
            remove_if_stale(options.metrics)
