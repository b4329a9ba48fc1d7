# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket's place in the file system: made early, so that a bad path is an early error,
and with a mode that lets nobody else connect from the first moment on.

It remains when hardsplice ends, as the PID file does: a locked-down process can't remove it. So the
next start finds a socket without a listener, and replaces it. Replacing one that a process listens
on would cut that process off from its clients, and is refused; anything that isn't a socket is left
alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator

from hardsplice.kernel.files import identity
from hardsplice.model.errors import HardspliceError, reason_of

BACKLOG = 64  # clients that wait to be accepted
LOCK_SECONDS = 1.0


class SocketFile:
    """A listening UNIX socket at a path."""

    def __init__(self, path: str, mode: int = 0o600) -> None:
        self.path = path
        with _failures(path):
            self.listener = socket.socket(
                socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            try:
                # The file gets the mode that the socket has, but for the umask (unix_bind,
                # net/unix/af_unix.c).
                os.fchmod(self.listener.fileno(), mode)
                with _locked(os.path.dirname(path) or "."):
                    umask = os.umask(0)
                    try:
                        self._bind()
                    finally:
                        os.umask(umask)
                    self._made = identity(os.lstat(path))
                    self.listener.listen(BACKLOG)
            except BaseException:
                self.listener.close()
                raise

    def _bind(self) -> None:
        try:
            self.listener.bind(self.path)
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        _remove_stale(self.path)
        self.listener.bind(self.path)

    def fileno(self) -> int:
        """The descriptor."""
        return self.listener.fileno()

    def remove(self) -> None:
        """Remove what was made, if it is still that which is there."""
        with contextlib.suppress(OSError):
            if identity(os.lstat(self.path)) == self._made:
                os.unlink(self.path)


def remove_if_stale(path: str) -> None:
    """Remove the socket of a process that ended after it was locked down, and so could not."""
    with contextlib.suppress(OSError, HardspliceError), _locked(os.path.dirname(path) or "."):
        _remove_stale(path)


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on. HardspliceError when somebody does, or it is no
    socket.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            reason = "something else than a socket is there"
            raise HardspliceError(
                "bind", f"control socket {path}", reason, "give another path, or move it"
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # more clients wait there than it takes: it lives
    reason = "another process listens there"
    raise HardspliceError(
        "bind", f"control socket {path}", reason, "give each instance a path of its own"
    )


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keep other instances out of ``folder`` meanwhile: what one of them has just bound looks stale
    until it listens.

    They are in there for a moment only. Who stays longer is somebody else, who may look into it,
    and is not waited for.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _failures(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "a socket's path has 107 bytes at most" if error.errno is None else None
        raise HardspliceError("bind", f"control socket {path}", reason_of(error), hint) from error
