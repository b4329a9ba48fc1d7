# SPDX-License-Identifier: GPL-2.0-or-later
"""The service manager's protocols: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).

Its settings come in the environment, which is read once and then cleared, since it isn't meant for
COMMAND. Notifications go over one datagram socket, connected before lock-down. Descriptors for it
to keep are sent there, too: after lock-down listeners of ports that are added, and no others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Mapping, MutableMapping

from hardsplice.ipc import descriptors
from hardsplice.kernel.record import NamedTuple
from hardsplice.kernel.scm import Messages
from hardsplice.model.errors import HardspliceError, printable, reason_of

VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "FDSTORE",
)
SECONDS = 2  # that the service manager may take to receive a notification
FIRST_PASSED = 3  # SD_LISTEN_FDS_START
_MESSAGE_SIZE = 1024  # bytes; a name has 255 at most
_NAMELESS = "unknown"  # what sd_listen_fds_with_names calls a descriptor without a name


class Manager(NamedTuple):
    """The settings that the service manager passes to the process that it started."""

    notify: str | None  # the path of its socket; an abstract one begins with @
    watchdog: float | None  # the watchdog's period in seconds
    keeps: int  # descriptors that it keeps for us while we are restarted
    passed: tuple[tuple[str, int], ...]  # names and descriptors that it passes to us


def manager_of(environment: Mapping[str, str], pid: int) -> Manager:
    """The settings in the environment for the process ``pid``. One that is not the main process of
    its service sends no notifications: with NotifyAccess=all the manager would believe them.
    """
    passed = _passed(environment) if _number(environment, "LISTEN_PID") == pid else ()
    if not _is_main(environment, pid):
        return Manager(notify=None, watchdog=None, keeps=0, passed=passed)
    notify = environment.get("NOTIFY_SOCKET", "")
    period = _number(environment, "WATCHDOG_USEC")
    for_us = _number(environment, "WATCHDOG_PID", pid) == pid
    return Manager(
        notify=notify if notify.startswith(("/", "@")) else None,
        watchdog=period / 1e6 if period and for_us else None,
        keeps=_number(environment, "FDSTORE"),
        passed=passed,
    )


def _is_main(environment: Mapping[str, str], pid: int) -> bool:
    """Whether the process ``pid`` can be its service's main one. MAINPID says which that is, where
    there is one already (ExecStartPost= and its like); SYSTEMD_EXEC_PID, from systemd 248 on, which
    process the manager itself started (systemd.exec(5)).
    """
    return all(
        environment.get(name, "") in ("", str(pid)) for name in ("MAINPID", "SYSTEMD_EXEC_PID")
    )


def _passed(environment: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    number = _number(environment, "LISTEN_FDS")
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    if len(names) != number:
        names = [_NAMELESS] * number
    return tuple(zip(names, range(FIRST_PASSED, FIRST_PASSED + number), strict=True))


def _number(environment: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def forget(environment: MutableMapping[str, str]) -> None:
    """Remove the variables that are for hardsplice alone."""
    for name in VARIABLES:
        environment.pop(name, None)


class Notifier:
    """The socket to the service manager; without one, notifications are not sent."""

    def __init__(self, path: str | None) -> None:
        """Connect; HardspliceError where that is not possible."""
        self._fd: int | None = None
        self._messages, self._flags = Messages(_MESSAGE_SIZE, 1), socket.MSG_NOSIGNAL
        if path is None:
            return
        end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # A manager that doesn't receive isn't waited for in set-up either.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", SECONDS, 0))
        try:
            end.connect(path.replace("@", "\0", 1) if path[0] == "@" else path)
        except OSError as error:
            end.close()
            raise HardspliceError(
                "reach", f"the service manager at {path}", reason_of(error)
            ) from error
        self._fd = end.detach()

    def keep(self, name: str, fd: int) -> bool:
        """Have a descriptor kept, under a name; False where too many of this user's are under way
        (channel.Sent.CROWDED), and after lock-down where the service manager takes none.
        """
        return self._send(f"FDSTORE=1\nFDNAME={name}", [fd])

    def drop(self, name: str) -> None:
        """Have what is kept under a name kept no longer."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}", [])

    def _send(self, text: str, fds: list[int]) -> bool:
        if self._fd is None:
            return True
        try:
            self._messages.sendmsg(self._fd, text.encode(), fds, self._flags)
        except OSError as error:
            if self._flags & socket.MSG_DONTWAIT or error.errno == errno.ETOOMANYREFS:
                return False
            what = "the service manager"
            raise HardspliceError("pass listeners to", what, reason_of(error)) from error
        return True

    def settle(self) -> tuple[int, ...]:
        """Set-up is over: take the number that the policy names. The descriptors to keep."""
        if self._fd is None:
            return ()
        descriptors.move(self._fd, descriptors.NOTIFY_FD)
        self._fd = descriptors.NOTIFY_FD
        os.set_blocking(self._fd, False)  # a manager that doesn't receive is not waited for
        self._flags |= socket.MSG_DONTWAIT  # which a filter looks for
        return (self._fd,)

    def say(self, *assignments: str) -> None:
        """Notify the service manager; if it doesn't receive, that is no reason to stop."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, "\n".join(assignments).encode(errors="replace"))

    def status(self, text: str, *assignments: str) -> None:
        """Set the status text, with more notifications if any."""
        self.say(*assignments, f"STATUS={printable(text)}")

    def reloading(self) -> None:
        """Report that a reload begins; READY=1 reports that it is complete."""
        self.say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


class Watchdog:
    """Sends watchdog notifications, twice in each period, if every process that matters has
    answered a ping.
    """

    def __init__(
        self,
        period: float,
        notifier: Notifier,
        after: Callable[[float, Callable[[], None]], object],
        ping: Callable[[], Collection[str]],
    ) -> None:
        """``period`` is in seconds; ``ping`` pings all of them, and returns which they are."""
        self._period = period
        self._notifier = notifier
        self._after = after
        self._ping = ping
        self._awaited: set[str] = set()

    def start(self) -> None:
        """Ping now, and periodically."""
        self._awaited = set(self._ping())
        if not self._awaited:
            self._notifier.say("WATCHDOG=1")
        self._after(self._period / 2, self.start)

    def answered(self, who: str) -> None:
        """A process has answered."""
        if who in self._awaited:
            self._awaited.remove(who)
            if not self._awaited:
                self._notifier.say("WATCHDOG=1")
