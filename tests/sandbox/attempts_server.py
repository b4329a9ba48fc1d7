# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways out for the host monitor that is the server of many containers' ports
(hardsplice/frontends/server.py): by its clients, and by what they pass. Part of attempts.py.

A client passes a file that it may read, where programs pass listeners, a pipe and a socket.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
import time

from hardsplice.kernel import socketcalls
from hardsplice.kernel.scm import Messages
from tests.sandbox.attempts import (
    _BUFFER,
    _FLAGS,
    _ZEROS,
    WORKS,
    NotMadeError,
    Row,
    Scene,
    call,
    place,
)  # fmt: skip

_CREDENTIALS, _LENGTH = place(bytes(12)), place(struct.pack("i", 12))
_MESSAGES = Messages(4096, 8)


def _client(scene: Scene) -> int:
    """A client of the server's, which has said something."""
    deadline = time.monotonic() + 1.0
    while (fd := socketcalls.accept4(scene.server)) < 0:
        if time.monotonic() > deadline:
            raise NotMadeError(f"no client: errno {-fd}")
    return fd


def _passed(scene: Scene) -> int:
    """What one has passed."""
    data, fds, _ = _MESSAGES.recvmsg(_client(scene), socket.MSG_CMSG_CLOEXEC)
    if not data or len(fds) != 1:
        raise NotMadeError(f"{len(data)} bytes and {len(fds)} descriptors")
    return fds[0]


def _its_socket(scene: Scene) -> bytes:
    """Where the server is found, a struct sockaddr_un."""
    return struct.pack("=H", socket.AF_UNIX) + os.fsencode(scene.job.server) + b"\0"


def _connect(scene: Scene) -> int:
    """To a socket at a path, as another user's server might be."""
    address = _its_socket(scene)
    result = call("connect", scene.props["packets"], place(address), len(address))
    return 0 if result == -errno.EAGAIN else result


def _bind(scene: Scene) -> int:
    address = _its_socket(scene)[:-1] + b"~\0"
    return call("bind", scene.props["packets"], place(address), len(address))


def _name_of(scene: Scene) -> int:
    return place(os.fsencode(scene.job.server) + b"\0")


def all_of_them() -> list[Row]:
    conceded = [
        ("server: accept a client", _client),
        (
            "server: ask who a client is",
            lambda s: call(
                "getsockopt",
                _client(s),
                socket.SOL_SOCKET,
                socket.SO_PEERCRED,
                _CREDENTIALS,
                _LENGTH,
            ),
        ),
        ("server: take what a client passes", _passed),
        (
            "server: tell a client something",
            lambda s: call("sendto", _client(s), _BUFFER, 8, _FLAGS, 0, 0),
        ),
        ("server: close what a client has passed", lambda s: call("close", _passed(s))),
    ]
    refused = [
        (
            "server: read a file that a client has passed",
            lambda s: call("read", _passed(s), _ZEROS, 8),
        ),
        ("server: the same, by pread64", lambda s: call("pread64", _passed(s), _ZEROS, 8, 0)),
        (
            "server: map a file that a client has passed",
            lambda s: call(
                "mmap", 0, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE, _passed(s), 0
            ),
        ),
        (
            "server: open a file beside one that a client has passed",
            lambda s: call("openat", _passed(s), place(b"/etc/passwd\0"), 0),
        ),
        (
            "server: peek at what a client says",
            lambda s: call("recvfrom", _client(s), _ZEROS, 8, socket.MSG_PEEK, 0, 0),
        ),
        ("server: connect to a socket at a path", _connect),
        ("server: bind a socket at a path", _bind),
        ("server: remove its socket", lambda s: call("unlink", _name_of(s))),
    ]
    return [
        *(
            Row(name, make, ("host",), elsewhere={"host": WORKS}, server=True)
            for name, make in conceded
        ),
        *(Row(name, make, ("host",), server=True) for name, make in refused),
    ]
