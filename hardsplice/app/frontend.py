# SPDX-License-Identifier: GPL-2.0-or-later
"""What a front-end (hardsplice/frontends) says besides its options: hardsplice is started by the
name of another program there, by a caller that has its own form of errors and of readiness.

A front-end translates what it is asked for into Options, as the command line does, and starts it by
start.serve, with a Frontend, where its own process goes on; or by start.launch, where it returns
once all is bound and locked down.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from hardsplice.ipc import descriptors
from hardsplice.ipc.sd_notify import Manager
from hardsplice.model.errors import HardspliceError, write_all

if TYPE_CHECKING:
    from hardsplice.monitor.host import HostMonitor


class Service(Protocol):
    """A protocol that the locked-down host monitor serves on its loop. Its filter is that of a
    control socket: it may accept, receive and send, and change ports, as far as options allow any.
    """

    @property
    def descriptors(self) -> Sequence[int]:
        """What the host monitor keeps for it."""

    def serve(self, monitor: HostMonitor) -> None:
        """Begin to serve; called once, just before readiness is told."""


class Frontend(NamedTuple):
    """What differs by the program that hardsplice is started as."""

    failures: int  # the descriptor to which a failure of the start is written
    form: Callable[[HardspliceError], bytes]  # what is written there
    ready: bytes  # what is written to options.ready_fd
    #: How many more listeners there may come to be than options name, where ports may change.
    late: int = 0
    #: Listeners that the caller passes, by names (for options.inherited), at their descriptors.
    passed: tuple[tuple[str, int], ...] = ()
    #: Makes what is served besides, in the stage *open*; the stack gets what undoes it. Raises
    #: HardspliceError.
    make_service: Callable[[contextlib.ExitStack], Service] | None = None

    def manager(self) -> Manager:
        """There is no service manager, whatever the environment says: that is our caller's."""
        return Manager(notify=None, watchdog=None, keeps=0, passed=self.passed)


class Failures:
    """Where failures are told until all is ready: at any descriptor at first, and at one that the
    host monitor's filter knows from lock-down on.
    """

    def __init__(self, frontend: Frontend) -> None:
        self._fd = frontend.failures
        self._form = frontend.form

    def take(self, first: int) -> None:
        """Move to a number from ``first`` on."""
        moved = descriptors.above(self._fd, first, "the descriptor for errors")
        if self._fd > descriptors.LOG_FD:
            os.close(self._fd)
        self._fd = moved

    def settle(self) -> None:
        """Move to the number that the filter knows, where front-ends have no service manager."""
        descriptors.move(self._fd, descriptors.NOTIFY_FD)
        self._fd = descriptors.NOTIFY_FD

    def tell(self, failure: HardspliceError) -> None:
        """Write it; if that fails there is no other place to tell it."""
        with contextlib.suppress(OSError):
            write_all(self._fd, self._form(failure))

    def close(self) -> None:
        """All is ready: have /dev/null there."""
        descriptors.clear((self._fd,))


def in_a_line(failure: HardspliceError) -> str:
    """A failure and its next step in one line, for callers that put their own words before it."""
    return f"{failure}; {failure.hint}" if failure.hint else str(failure)
