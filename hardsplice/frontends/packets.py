# SPDX-License-Identifier: GPL-2.0-or-later
"""Sockets at a path, of whole messages (SOCK_SEQPACKET). A path may be longer than a socket's
address may be, so the socket is reached by way of a descriptor of its folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator

BACKLOG = 128  # clients that wait to be heard
SECONDS = 5.0  # that a client waits until it is heard
_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_KIND = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC


@contextlib.contextmanager
def _folder_of(path: str) -> Iterator[tuple[int, str]]:
    """The folder's descriptor, and the address of the socket by way of it."""
    folder, name = os.path.split(path)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield at, f"/proc/self/fd/{at}/{name}"
    finally:
        os.close(at)


def listen(path: str, backlog: int = BACKLOG) -> socket.socket:
    """A listening socket for our user only, instead of what is at ``path``, in a folder for our
    user only. OSError where that can't be done.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with _folder_of(path) as (at, address):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.basename(path), dir_fd=at)
        listener = socket.socket(socket.AF_UNIX, _KIND | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(listener.fileno(), 0o600)
            umask = os.umask(0o077)
            try:
                listener.bind(address)
            finally:
                os.umask(umask)
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
        return listener


def connect(path: str) -> socket.socket:
    """A connection to what listens at ``path``, with blocking calls. OSError where nobody does; a
    BlockingIOError, as of later messages, where that one doesn't take it within SECONDS.
    """
    with _folder_of(path) as (_, address):
        client = socket.socket(socket.AF_UNIX, _KIND)
        try:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(SECONDS))
            client.connect(address)
        except BaseException:
            client.close()
            raise
        return client


def listener_of(connection: socket.socket) -> int:
    """The PID of who listened where a connection was made; 0 if it is of another PID namespace."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid: int = _UCRED.unpack(credentials)[0]
    return pid


def has_ended(path: str) -> bool:
    """Whether nobody listens any more at the socket at ``path``, which one may just have been made
    at, too. OSError where there is none, or it can't be told.
    """
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    with (
        _folder_of(path) as (_, address),
        socket.socket(socket.AF_UNIX, _KIND | socket.SOCK_NONBLOCK) as client,
    ):
        return client.connect_ex(address) == errno.ECONNREFUSED


def _timeval(seconds: float) -> bytes:
    """struct timeval, as socket(7) has it."""
    whole = int(seconds)
    return struct.pack("@ll", whole, int(1e6 * (seconds - whole)))
