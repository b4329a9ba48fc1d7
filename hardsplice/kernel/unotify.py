# SPDX-License-Identifier: GPL-2.0-or-later
"""A system call that another process serves: seccomp_unotify(2).

A relay that gets a listener at run time must not get it at a number where it could set the
listener's options, nor at whichever number the kernel finds free. So it isn't sent over the
channel: the relay makes a call that its filter passes on to its monitor, and waits in it; the
monitor puts the listener into the relay's table of descriptors, at a number that the monitor
chooses, and lets the call return (SECCOMP_IOCTL_NOTIF_ADDFD, Linux 5.9). A relay can't get a
listener in another way, or at another number.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from ctypes import c_long, c_ulong

from hardsplice.kernel.linux import MACHINE, SockFprog, fail, libc

_IS_PPC = MACHINE.startswith("ppc")
# linux/seccomp.h
_SET_MODE_FILTER, _FLAG_NEW_LISTENER = 1, 8
_NOTIF_RECV, _NOTIF_SEND = 0xC0502100, 0xC0182101
_NOTIF_ADDFD = 0x80182103 if _IS_PPC else 0x40182103
_ADDFD_FLAG_SETFD = 1
# struct seccomp_notif: id, pid, flags; struct seccomp_data: number, arch, place, six arguments
_NOTIF = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_ADDFD = struct.Struct("=QIIII")  # struct seccomp_notif_addfd

# asm/unistd.h of each architecture; a 32-bit program may run on a 64-bit machine's kernel.
_SECCOMP = {"x86_64": 317, "ppc64le": 358, "s390x": 348}
_SECCOMP_32 = {"x86_64": 354, "i686": 354, "aarch64": 383, "armv7l": 383, "armv8l": 383}
_PIDFD_GETFD = 438
_NO_PIDFD = -1  # no descriptor has this number, so that the kernel never serves the call

_syscall = libc.syscall
_ioctl = libc.ioctl


def set_filter(program: bytes) -> int:
    """Install a filter; return the descriptor from which the calls that it passes on are read."""
    numbers = _SECCOMP_32 if sys.maxsize < 2**32 else _SECCOMP
    code = ctypes.create_string_buffer(program, len(program))
    fprog = SockFprog(len(program) // 8, ctypes.addressof(code))
    fd: int = _syscall(
        c_long(numbers.get(MACHINE, 277)),  # 277 is asm-generic/unistd.h's
        c_ulong(_SET_MODE_FILTER), c_ulong(_FLAG_NEW_LISTENER), ctypes.byref(fprog),
    )  # fmt: skip
    if fd < 0:
        fail()
    return fd


def obstacle() -> str | None:
    """Why such calls are not possible here; None where they are. Another filter that forbids the
    call takes precedence over ours (seccomp(2)). To be called before there is one of ours.
    """
    if _syscall(c_long(_PIDFD_GETFD), c_long(-1), c_long(0), c_long(0)) >= 0:
        return None
    if ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
        return "a filter that hardsplice was started under forbids pidfd_getfd, or Linux is too old"
    return None


def request_descriptor(place: int) -> bool:
    """Ask the monitor to put the descriptor for ``place`` there, in this process; return whether it
    is a listener.
    """
    answer: int = _syscall(c_long(_PIDFD_GETFD), c_long(_NO_PIDFD), c_long(place), c_long(0))
    return answer == place


def next_question(fd: int) -> tuple[int, int] | None:
    """The next call: its ID, for the answer, and the place that it asks for; None if the caller is
    gone. Only for a descriptor that is readable, as this waits otherwise.
    """
    room = ctypes.create_string_buffer(_NOTIF.size)
    if _ioctl(fd, c_ulong(_NOTIF_RECV), ctypes.byref(room)) != 0:
        if ctypes.get_errno() in (errno.ENOENT, errno.EINTR):
            return None
        fail()
    identity, *_, _, place, _, _, _, _ = _NOTIF.unpack(room.raw)
    return identity, place


def put(fd: int, identity: int, source: int, place: int) -> None:
    """Put our descriptor ``source`` at the number ``place`` of the caller. ENOENT when the caller
    is gone, EINVAL where the kernel can't (before Linux 5.9).
    """
    request = _ADDFD.pack(identity, _ADDFD_FLAG_SETFD, source, place, os.O_CLOEXEC)
    if _ioctl(fd, c_ulong(_NOTIF_ADDFD), request) < 0:
        fail()


def answer(fd: int, identity: int, value: int) -> bool:
    """Let the call return ``value``; False when the caller is gone."""
    response = ctypes.create_string_buffer(_RESPONSE.pack(identity, value, 0, 0), _RESPONSE.size)
    if _ioctl(fd, c_ulong(_NOTIF_SEND), ctypes.byref(response)) != 0:
        if ctypes.get_errno() == errno.ENOENT:
            return False
        fail()
    return True
