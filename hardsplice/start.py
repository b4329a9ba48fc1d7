# SPDX-License-Identifier: GPL-2.0-or-later
"""From the command line to the running program: parse, go into the background if asked to, set up,
and say what went wrong.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from hardsplice import cli
from hardsplice.errors import Failure, reason_of, tell, write_all

if TYPE_CHECKING:
    from hardsplice.channel import Channel, Record

# What ends the process that waits for the one in the background.
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
ENDING_SECONDS = 3.0  # that a process which said what is wrong may take to end


def main(argv: Sequence[str]) -> int:
    """Run hardsplice with the words of its command line; the exit status."""
    began = time.monotonic()
    # Who has SIGCHLD ignored never learns how a child ended (wait(2)).
    ignores = signal.signal(signal.SIGCHLD, signal.SIG_DFL) is signal.SIG_IGN
    try:
        _refuse_jit(getattr(sys, "_jit", None))
        options = cli.parse_args(argv)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # which is COMMAND's to inherit
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if options.foreground:
            _serve(options, _start_auditor(options) if options.audit else None, began, ignores)
        return _launch(options, began, ignores)
    except Failure as failure:
        return _say(failure)
    except OSError as error:
        return _say(Failure("start", "hardsplice", reason_of(error)))


def _refuse_jit(jit: Any) -> None:
    """Python 3.14 and later have ``sys._jit``. What it makes is memory to be executed, which the
    filters don't allow. An isolated interpreter can't be told to do without it.
    """
    if jit is not None and jit.is_enabled():
        reason = "it compiles machine code while it runs"
        hint = "use one whose just-in-time compiler is not on by default"
        raise Failure("use", "this Python", reason, hint)


def _say(failure: Failure) -> int:
    tell(failure.lines())
    return 1


def _unforeseen(error: BaseException, *, is_ready: bool) -> Failure:
    """An error that no rule foresees, in the common form: traceback would read source files, which
    may be gone by now.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" in {trace.tb_frame.f_code.co_qualname}, line {trace.tb_lineno}" if trace else ""
    reason = f"{type(error).__name__}{where}: {error}"
    return Failure("go on", "serving", reason) if is_ready else Failure("start", "serving", reason)


def _start_auditor(options: cli.Options) -> Channel:
    """A process beside us that looks at /proc once we are ready, which we can't any more by then.

    It is nobody's child to wait for: its parent ends at once.
    """
    from hardsplice.channel import Channel

    ours, theirs = Channel.pair()
    server = os.getpid()
    between = os.fork()
    if between == 0:
        if os.fork() == 0:
            theirs.close()
            record = ours.receive()
            if record is not None:
                _audit(options, server, record)
        os._exit(0)
    ours.close()
    os.waitpid(between, 0)
    return theirs


def _audit(options: cli.Options, server: int, record: Record) -> None:
    """Print what --audit shows: to standard output, unless that is COMMAND's."""
    from hardsplice import audit

    lacking = record.text.decode(errors="replace").split("\n")[1:]
    try:
        text = audit.report(server, lacking, options.audit or "table")
        write_all(2 if options.mode is cli.Mode.COMMAND else 1, text.encode() + b"\n")
    except (FileNotFoundError, ProcessLookupError):
        _say(Failure("audit", f"process {server}", "it has ended already"))
    except BrokenPipeError:
        pass  # the reader has seen enough
    except OSError as error:
        _say(Failure("write", "the audit", reason_of(error)))


def _serve(
    options: cli.Options, launcher: Channel | None, began: float, ignores_children: bool
) -> NoReturn:
    """Set up and serve in this process. After lock-down the interpreter's own way out is closed, so
    leave by os._exit.
    """
    from hardsplice.setup import Setup

    setup = Setup(options, launcher, began, ignores_children=ignores_children)
    status = 1
    try:
        status = setup.run()
    except Failure as failure:
        setup.report(failure)
    except BaseException as error:  # noqa: BLE001 - the last resort: one line, and no traceback
        setup.report(_unforeseen(error, is_ready=setup.is_ready))
    os._exit(status)


class _Ended(Exception):  # noqa: N818 - it is what happened
    """A signal ends this process."""


def _on_signal(number: int, _frame: object) -> NoReturn:
    raise _Ended(number)


def _launch(options: cli.Options, began: float, ignores_children: bool) -> int:
    """Start a process in the background; wait until it is ready, or has failed, and say which.

    Whatever happens to it, or to us meanwhile: it is there if this returns 0, and gone if not.
    """
    from hardsplice.channel import Channel, Kind
    from hardsplice.errors import failure_of
    from hardsplice.service import Notifier, manager_of

    had_pid_file = options.pid_file is not None and os.path.lexists(options.pid_file)
    notifier = Notifier(manager_of(os.environ, os.getpid()).notify)
    ours, theirs = Channel.pair()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        ours.close()
        os.setsid()
        _serve(options, theirs, began, ignores_children)
    theirs.close()
    pidfd = os.pidfd_open(child)
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup(1)
            signal.signal(number, _on_signal)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        # The one that the service manager started is about to end; it takes the word of no other.
        notifier.say(f"MAINPID={child}")
        record = _first_word(ours, pidfd)
        if record is not None and record.kind == Kind.READY:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # from here on we say that it runs
            if options.verbosity >= cli.Verbosity.DEBUG:
                said = record.text.decode(errors="replace").partition("\n")[0]
                tell([f"hardsplice: {said}"])
            if options.audit:
                _audit(options, child, record)
            return 0
        _finish(child, pidfd)
    except _Ended as ended:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        _finish(child, pidfd, wait=0)
        _clean_up(options, child, had_pid_file=had_pid_file)
        record, (number,) = None, ended.args
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    failure = Failure("start", "hardsplice", "its process ended early")
    status = _say(failure_of(record.text) if record else failure)
    _clean_up(options, child, had_pid_file=had_pid_file)
    return status


def _first_word(channel: Channel, pidfd: int) -> Record | None:
    """What the background process says at last; None where it ended without a word. Processes that
    it started may hold its end of the channel, and outlive it.
    """
    from hardsplice.channel import Malformed

    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    poller.register(pidfd, select.POLLIN)
    poller.poll()
    try:
        return channel.receive(wait=False)
    except (BlockingIOError, Malformed):
        return None


def _finish(child: int, pidfd: int, wait: float = ENDING_SECONDS) -> None:
    """See to it that the background process ends, by itself if that does not take it long."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(1000 * wait):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitpid(child, 0)


def _clean_up(options: cli.Options, child: int, *, had_pid_file: bool) -> None:
    """Remove what a process that has locked itself down can't."""
    if options.pid_file is not None and not had_pid_file:
        from hardsplice.pidfile import remove_left

        remove_left(options.pid_file, child)
    if options.control is not None:
        from hardsplice.control.socketfile import remove_if_stale

        remove_if_stale(options.control)
        if options.metrics is not None:
            remove_if_stale(options.metrics)
