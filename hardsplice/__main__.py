# SPDX-License-Identifier: GPL-2.0-or-later
"""Where hardsplice starts: parse, go into the background if asked to, set up, and say what went
wrong.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from hardsplice import cli
from hardsplice.errors import Failure

if TYPE_CHECKING:
    from hardsplice.channel import Channel, Record


def main(argv: Sequence[str] | None = None) -> int:
    """Run hardsplice; the exit status. The console script calls this."""
    began = time.monotonic()
    try:
        options = cli.parse_args(sys.argv[1:] if argv is None else argv)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # which is COMMAND's to inherit
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if options.foreground:
            _serve(options, _start_auditor(options) if options.audit else None, began)
        return _launch(options, began)
    except Failure as failure:
        return _say(failure)


def _say(failure: Failure) -> int:
    for line in failure.lines():
        os.write(2, line.encode(errors="backslashreplace") + b"\n")
    return 1


def _unforeseen(error: BaseException) -> Failure:
    """An error that no rule foresees, in the common form: traceback would read source files, which
    may be gone by now.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" in {trace.tb_frame.f_code.co_qualname}, line {trace.tb_lineno}" if trace else ""
    return Failure("go on", "serving", f"{type(error).__name__}{where}: {error}")


def _start_auditor(options: cli.Options) -> Channel:
    """A process beside us that looks at /proc once we are ready, which we can't any more by then.

    It is nobody's child to wait for: its parent ends at once.
    """
    from hardsplice.channel import Channel

    ours, theirs = Channel.pair()
    between = os.fork()
    if between == 0:
        if os.fork() == 0:
            theirs.close()
            record = ours.receive()
            if record is not None:
                _audit(options, record)
        os._exit(0)
    ours.close()
    os.waitpid(between, 0)
    return theirs


def _audit(options: cli.Options, record: Record) -> None:
    """Print what --audit shows: to standard output, unless that is COMMAND's."""
    from hardsplice import audit

    lacking = record.text.decode().split("\n")[1:]
    try:
        text = audit.report(record.detail, lacking, options.audit or "table")
    except (FileNotFoundError, ProcessLookupError):
        _say(Failure("audit", f"process {record.detail}", "it has ended already"))
        return
    os.write(2 if options.mode is cli.Mode.COMMAND else 1, text.encode() + b"\n")


def _serve(options: cli.Options, launcher: Channel | None, began: float) -> NoReturn:
    """Set up and serve in this process. After lock-down the interpreter's own way out is closed, so
    leave by os._exit.
    """
    from hardsplice.setup import Setup

    setup = Setup(options, launcher, began)
    status = 1
    try:
        status = setup.run()
    except Failure as failure:
        setup.report(failure)
    except BaseException as error:  # noqa: BLE001 - the last resort: one line, and no traceback
        setup.report(_unforeseen(error))
    os._exit(status)


def _launch(options: cli.Options, began: float) -> int:
    """Start a process in the background; wait until it is ready, or has failed, and say which."""
    from hardsplice.channel import Channel, Kind
    from hardsplice.errors import failure_of
    from hardsplice.service import Notifier, manager_of

    had_pid_file = options.pid_file is not None and os.path.lexists(options.pid_file)
    notifier = Notifier(manager_of(os.environ, os.getpid()).notify)
    ours, theirs = Channel.pair()
    child = os.fork()
    if child == 0:
        ours.close()
        os.setsid()
        _serve(options, theirs, began)
    theirs.close()
    # The one that the service manager started is about to end; it takes the word of no other one.
    notifier.say(f"MAINPID={child}")
    record = ours.receive()
    if record is not None and record.kind == Kind.READY:
        if options.verbosity >= cli.Verbosity.DEBUG:
            os.write(2, b"hardsplice: " + record.text.partition(b"\n")[0] + b"\n")
        if options.audit:
            _audit(options, record)
        return 0
    if options.pid_file is not None and not had_pid_file:
        with contextlib.suppress(OSError):
            os.unlink(options.pid_file)  # a process that has locked itself down can't
    if options.control is not None:
        from hardsplice.control.socketfile import remove_if_stale

        remove_if_stale(options.control)
    if record is not None:
        return _say(failure_of(record.text))
    return _say(Failure("start", "hardsplice", "its process ended early"))


if __name__ == "__main__":
    sys.exit(main())
