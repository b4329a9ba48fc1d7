# SPDX-License-Identifier: GPL-2.0-or-later
"""The loopback interface of the network namespace that this process is in. In a new
namespace it is down (after `ip netns add`, say), and then no process there can reach another one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

from hardsplice.kernel import socketcalls
from hardsplice.net.namespaces import RUN_NETNS

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h
_REQUEST = struct.Struct("16sH22x")  # struct ifreq; 40 bytes in 64 bits
_NAME = b"lo"


def is_up() -> bool:
    """Whether ``lo`` is up; OSError where there is none."""
    with _any_socket() as fd:
        return bool(_flags(fd) & _IFF_UP)


def bring_up() -> None:
    """Set ``lo`` up; OSError when this process may not."""
    with _any_socket() as fd:
        fcntl.ioctl(fd, _SIOCSIFFLAGS, _REQUEST.pack(_NAME, _flags(fd) | _IFF_UP))


@contextlib.contextmanager
def _any_socket() -> Iterator[int]:
    """A socket of this network namespace, of the kind that monitors may make."""
    fd = socketcalls.stream_socket(socket.AF_INET)
    try:
        yield fd
    finally:
        os.close(fd)


def _flags(fd: int) -> int:
    answer = fcntl.ioctl(fd, _SIOCGIFFLAGS, _REQUEST.pack(_NAME, 0))
    return int(_REQUEST.unpack(answer)[1])


def have_up() -> int:
    """Have ``lo`` up, and nothing else changed: 0, or the errno with which it stays down."""
    try:
        if not is_up():
            bring_up()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def is_down() -> bool:
    """Whether ``lo`` is there, and down."""
    with contextlib.suppress(OSError):
        return not is_up()
    return False


def command_for(path: str) -> str:
    """What root types to set ``lo`` up in the network namespace at a path."""
    import shlex  # a start that has nothing to complain about has no use for it

    folder, name = os.path.split(path)
    if folder == RUN_NETNS:
        return f"ip -n {shlex.quote(name)} link set lo up"
    return f"nsenter --net={shlex.quote(path)} ip link set lo up"
