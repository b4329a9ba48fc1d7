# SPDX-License-Identifier: GPL-2.0-or-later
"""Sockets for messages with descriptors beside them: socketpair(2), sendmsg(2), recvmsg(2),
SCM_RIGHTS in cmsg(3).

They are made by numbers of their own, like those of kernel/socketcalls.py, where the C library
would use socketcall(2).
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Sequence
from ctypes import byref, c_int, c_size_t, c_uint, c_void_p

from hardsplice.kernel.linux import fail
from hardsplice.kernel.socketcalls import way

_errno = ctypes.get_errno
_sendmsg = way("sendmsg")
_recvmsg = way("recvmsg")
_socketpair = way("socketpair")


class _Iovec(ctypes.Structure):
    _fields_ = (("base", c_void_p), ("length", c_size_t))


class _Msghdr(ctypes.Structure):
    """struct user_msghdr of linux/socket.h."""

    _fields_ = (
        ("name", c_void_p), ("name_length", c_uint),
        ("iov", c_void_p), ("iov_length", c_size_t),
        ("control", c_void_p), ("control_length", c_size_t),
        ("flags", c_uint),
    )  # fmt: skip


_CMSG = struct.Struct("@Nii")  # struct cmsghdr
_LONG = struct.calcsize("@l")
_NAME_SIZE = 128  # struct sockaddr_storage


def _padded(size: int) -> int:
    return -(-size // _LONG) * _LONG


_PACKETS = int(socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
_two = (c_int * 2)()


def packet_pair() -> tuple[int, int]:
    """Two UNIX sockets connected to each other, blocking, close-on-exec."""
    if _socketpair(int(socket.AF_UNIX), _PACKETS, 0, _two) < 0:
        fail()
    return _two[0], _two[1]


class Messages:
    """Room for the messages of one socket: ``size`` bytes and so many descriptors."""

    def __init__(self, size: int, descriptors: int) -> None:
        self._data = ctypes.create_string_buffer(size)
        self._control = ctypes.create_string_buffer(_padded(_CMSG.size + 4 * descriptors))
        self._iovec = _Iovec(ctypes.addressof(self._data), size)
        self._name = ctypes.create_string_buffer(_NAME_SIZE)
        self._header = _Msghdr(
            name=ctypes.addressof(self._name), iov=ctypes.addressof(self._iovec), iov_length=1
        )
        self._ref = byref(self._header)
        self._control_at = ctypes.addressof(self._control)
        self._size, self._control_size = size, len(self._control)
        # Of them .raw would copy the whole
        self._view = memoryview(self._data).cast("B")
        self._beside = memoryview(self._control).cast("B")

    def sendmsg(self, fd: int, data: bytes, fds: Sequence[int], flags: int) -> None:
        """Send one message, with descriptors beside it."""
        header = self._header
        self._view[: len(data)] = data  # ValueError where there is no room
        self._iovec.length = len(data)
        header.name_length = 0  # to whom the socket is connected
        header.control, header.control_length = None, 0
        if fds:
            rights = struct.pack(f"@{len(fds)}i", *fds)
            length = _CMSG.size + len(rights)
            beside = _CMSG.pack(length, socket.SOL_SOCKET, socket.SCM_RIGHTS) + rights
            self._beside[: len(beside)] = beside
            header.control, header.control_length = self._control_at, length
        while _sendmsg(fd, self._ref, flags) < 0:
            if _errno() != errno.EINTR:
                fail()

    def recvmsg(self, fd: int, flags: int) -> tuple[bytes, tuple[int, ...], int]:
        """Receive one message: its bytes, the descriptors beside it, MSG_* of what is missing."""
        header = self._header
        self._iovec.length, header.name_length = self._size, _NAME_SIZE
        header.control, header.control_length = self._control_at, self._control_size
        while (count := _recvmsg(fd, self._ref, flags)) < 0:
            if _errno() != errno.EINTR:
                fail()
        length = header.control_length
        fds = self._rights(length) if length else ()
        return self._view[:count].tobytes(), fds, header.flags

    def sender(self) -> bytes:
        """From which address the last message came, a struct sockaddr; empty if it had none."""
        return self._name.raw[: self._header.name_length]

    def _rights(self, length: int) -> tuple[int, ...]:
        control, at = self._control, 0
        fds: list[int] = []
        while at + _CMSG.size <= length:
            size, level, kind = _CMSG.unpack_from(control, at)
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                number = (min(size, length - at) - _CMSG.size) // 4
                fds += struct.unpack_from(f"@{number}i", control, at + _CMSG.size)
            at += _padded(max(size, _CMSG.size))
        return tuple(fds)
