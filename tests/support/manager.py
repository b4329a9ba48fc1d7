# SPDX-License-Identifier: GPL-2.0-or-later
"""A small service manager: it speaks sd_notify(3), passes listeners, and keeps those that it is
given, as systemd does. What it knows of the protocol comes from the manual pages.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.stream import PATIENCE, Violation

FIRST = 3  # SD_LISTEN_FDS_START
# What a shell does that is to say its own PID, which the program after it has too.
_START = 'export LISTEN_PID=$$ WATCHDOG_PID=$$; [ "$LISTEN_FDS" ] || unset LISTEN_PID; exec "$@"'


@contextlib.contextmanager
def notify_socket(folder: Path) -> Iterator[socket.socket]:
    """A service manager's socket that is read by hand."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(folder / "notify"))
        end.setblocking(False)
        yield end


class Manager:
    """One service, which it starts and hears of."""

    def __init__(self, *, keeps: int = 64, watchdog: float | None = None) -> None:
        """``keeps`` is FileDescriptorStoreMax=, ``watchdog`` WatchdogSec= in seconds."""
        self.keeps, self.watchdog = keeps, watchdog
        self._folder = tempfile.TemporaryDirectory(prefix="hardsplice-tests-")
        folder = Path(self._folder.name)
        folder.chmod(0o755)
        self._path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(self._path))
        self._path.chmod(0o777)
        self.store: list[tuple[str, int]] = []
        self.units: list[tuple[str, int]] = []  # listeners of socket units, by name
        self.heard: list[dict[str, str]] = []
        self.main = 0  # whose word it takes
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, argv: list[str], environment: dict[str, str]) -> None:
        """Start the service, with all that it is passed."""
        passed = [*self.units, *self.store]
        extra = {"NOTIFY_SOCKET": str(self._path), "FDSTORE": str(self.keeps)}
        if self.watchdog:
            extra["WATCHDOG_USEC"] = str(int(self.watchdog * 1e6))
        if passed:
            extra["LISTEN_FDS"] = str(len(passed))
            extra["LISTEN_FDNAMES"] = ":".join(name for name, _ in passed)
        # The numbers from FIRST on: a process in between has them.
        places = [os.dup(fd) for _, fd in passed]
        high = [_above(fd, FIRST + len(places)) for fd in places]
        moves = " ".join(f"{FIRST + at}<&{fd} {fd}<&-" for at, fd in enumerate(high))
        while self.hear():  # of the one that has ended
            pass
        self.heard.clear()
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {moves}; {_START}" if moves else _START, "bash", *argv],
            env={**environment, **extra},
            pass_fds=high,
            stdin=subprocess.DEVNULL,
            stderr=self.stderr,
            cwd="/",
            start_new_session=True,
        )
        self.main = self.process.pid
        for fd in (*places, *high):
            with contextlib.suppress(OSError):
                os.close(fd)

    def hear(self, seconds: float = 0.0) -> bool:
        """Take one message, if one comes in time."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return False
        data, ancillary, _, _ = self._socket.recvmsg(4096, 1024)
        fds: list[int] = []
        sender = 0
        for _, kind, raw in ancillary:
            if kind == socket.SCM_RIGHTS:
                fds += memoryview(raw).cast("i").tolist()
            elif kind == socket.SCM_CREDENTIALS:
                sender = memoryview(raw).cast("i")[0]
        message = dict(line.split("=", 1) for line in data.decode().splitlines())
        if sender != self.main:  # NotifyAccess=main
            raise Violation(f"{message} comes from {sender}, not from the main process {self.main}")
        self._take(message, fds)
        self.heard.append(message)
        return True

    def _take(self, message: dict[str, str], fds: list[int]) -> None:
        if "MAINPID" in message:
            self.main = int(message["MAINPID"])
        if message.get("FDSTORE") == "1":
            for fd in fds:
                self.store.append((message["FDNAME"], fd))
            if len(self.store) > self.keeps:
                raise Violation("more is to be kept than there is room for")
        elif fds:
            raise Violation(f"descriptors beside {message}")
        if message.get("FDSTOREREMOVE") == "1":
            for name, fd in list(self.store):
                if name == message["FDNAME"]:
                    self.store.remove((name, fd))
                    os.close(fd)

    def until(self, wanted: Callable[[dict[str, str]], bool], within: float = PATIENCE) -> None:
        """Hear until a message says what is wanted; a Violation if it does not come."""
        deadline = time.monotonic() + within
        while (left := deadline - time.monotonic()) > 0:
            if self.hear(left) and wanted(self.heard[-1]):
                return
        raise Violation(f"not heard within {within} s, but {self.heard}; {self.messages()}")

    def until_ready(self) -> Manager:
        self.until(lambda message: message.get("READY") == "1")
        return self

    def stop(self) -> None:
        """SIGTERM to the main process, which must say that it stops."""
        os.kill(self.main, signal.SIGTERM)
        self.until(lambda message: message.get("STOPPING") == "1")
        self.wait()

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def messages(self) -> str:
        return os.pread(self.stderr.fileno(), 1 << 20, 0).decode(errors="replace")

    def close(self) -> None:
        """End the service, whatever it does, and let go of everything."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        for _, fd in (*self.store, *self.units):
            os.close(fd)
        self._socket.close()
        self.stderr.close()
        self._folder.cleanup()


def _above(fd: int, least: int) -> int:
    """A copy of a descriptor with a number from ``least`` on."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD, max(least, 64))
