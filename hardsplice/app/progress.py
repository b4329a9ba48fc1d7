# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports about the start: its stages, with --debug; and finally that hardsplice is ready, or what
went wrong, to the launcher in front of us, the service manager and the log.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence

from hardsplice.app import free_ports
from hardsplice.app.options import Options, Verbosity
from hardsplice.ipc import descriptors
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.messages import Kind, Record
from hardsplice.ipc.sd_notify import Notifier
from hardsplice.model.errors import HardspliceError, printable, text_of
from hardsplice.model.forward import Forward
from hardsplice.model.unforeseen import as_error
from hardsplice.telemetry.log import Level, Log

_LEVELS = {
    Verbosity.QUIET: Level.ERROR,
    Verbosity.NORMAL: Level.INFO,
    Verbosity.DEBUG: Level.DEBUG,
    Verbosity.TRACE: Level.TRACE,
}


class Progress:
    """The progress of one start, and where to report it."""

    def __init__(self, options: Options, launcher: Channel | None, began: float) -> None:
        """``launcher`` leads to the process that waits, where there is one. The start ``began``
        then, in CLOCK_MONOTONIC seconds.
        """
        self.began = began
        self.launcher = launcher
        self.log = Log(
            _LEVELS[options.verbosity], options.log_format, os.environ.get("JOURNAL_STREAM", "")
        )
        self._notifier = Notifier(None)
        # In the foreground it only waits to show the audit.
        self._is_waited_for = launcher is not None and not options.foreground
        self._is_ready = False

    def report_to(self, notifier: Notifier) -> None:
        """Report failures to the service manager, too."""
        self._notifier = notifier

    def say(self, text: str) -> None:
        """Report what is being done, for --debug."""
        self.log.line(Level.DEBUG, text)

    def stage(self, name: str, at: float | None = None) -> None:
        """A stage begins now, or began ``at`` that time."""
        passed = (time.monotonic() if at is None else at) - self.began
        self.say(f"[{1000 * passed:6.1f} ms] stage {name}")

    def ready(
        self,
        lacking: Iterable[str],
        unsealed: Sequence[str],
        free: Sequence[Forward],
        *,
        has_ready_fd: bool,
    ) -> None:
        """All is bound and locked down, except for layers that are ``lacking``, and for what is
        ``unsealed``, which is reported only on request, since the filter enforces the same.
        HardspliceError if the process that waited has gone.
        """
        # Text from the namespace monitor is not trusted either.
        layers = list(dict.fromkeys(map(printable, lacking)))
        for what in layers:
            self.log.line(Level.WARNING, f"not in force: {what}")
        for what in unsealed:
            self.say(f"not in force: {what}")
        self.stage("ready")
        self._is_ready = True
        took = f"ready in {1000 * (time.monotonic() - self.began):.0f} ms"
        self.say(took)
        free_ports.write_log(free, self.log)
        if has_ready_fd:
            free_ports.write_report(free_ports.lines_of(free), descriptors.READY_FD)
            descriptors.clear((descriptors.READY_FD,))
        if self.launcher:  # it exits now, or prints what --audit shows
            text = "\n".join([took, *layers, *unsealed])
            was_sent = self.launcher.send(Record(Kind.READY, text=text.encode()))
            if not was_sent and self._is_waited_for:
                raise HardspliceError(
                    "go", "into the background", "the process that started it is gone"
                )
            self.launcher.leave()
            self._is_waited_for = False

    def fail(self, error: BaseException) -> int:
        """Report what went wrong: to the launcher while it waits in front of us, else in the log.
        Returns the exit status.
        """
        what = ("go on", "serving") if self._is_ready else ("start", "hardsplice")
        failure = as_error(error, *what)
        self._notifier.status(str(failure))
        if self.launcher and self._is_waited_for:
            self.launcher.send(Record(Kind.FATAL, text=text_of(failure)))
        else:
            for text in filter(None, (str(failure), failure.hint)):
                self.log.last_words(text)
        return failure.status
