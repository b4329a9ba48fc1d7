# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways to have the kernel serve the call that relays make to ask their monitor; attempts.py has the
rest.

A monitor may install a filter of its own that asks, and be the one who answers: that the kernel go
on with the call. Then nothing but its arguments stands between a process and the descriptors of
others.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
from collections.abc import Callable

from hardsplice.ipc.descriptors import FIRST_LISTENER
from hardsplice.kernel import linux, unotify
from tests.sandbox.attempts import MONITORS, REACHES, SERVING, Row, Scene, call

# linux/filter.h, linux/seccomp.h, asm-generic/ioctl.h
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ASK, _ALLOW = 0x7FC00000, 0x7FFF0000
_NOTIF_SEND, _CONTINUE = 0xC0182101, 1
_PIDFD_GETFD, _NO_NEW_PRIVS = 438, 38

_PROGRAM = b"".join(
    struct.pack("=HBBI", *one)
    for one in (
        (_LOAD, 0, 0, 0),
        (_EQUAL, 0, 1, _PIDFD_GETFD),
        (_RETURN, 0, 0, _ASK),
        (_RETURN, 0, 0, _ALLOW),
    )
)
_libc = ctypes.CDLL(None, use_errno=True)
_set_filter = unotify.set_filter  # takeover.py replaces it


def _go_on(questions: int, identity: int) -> None:
    response = struct.pack("=QqiI", identity, 0, 0, _CONTINUE)
    if _libc.ioctl(questions, ctypes.c_ulong(_NOTIF_SEND), response) != 0:
        linux.fail()


def _served(pidfd: int) -> Callable[[Scene], int]:
    """Take a listener of its own by pidfd_getfd, from a pidfd at number 0, and with ``pidfd`` as
    the argument. The pidfd gets there by the monitor's right to put descriptors into processes
    that ask.
    """

    def attempt(scene: Scene) -> int:
        if scene.job.bare:
            call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
        questions = _set_filter(_PROGRAM)
        pid = linux.fork()
        if pid == 0:
            os._exit(min(255, abs(call("pidfd_getfd", pidfd, FIRST_LISTENER, 0))))
        pidfd_of_it = os.pidfd_open(pid)
        ready = select.poll()
        ready.register(questions, select.POLLIN)
        ready.register(pidfd_of_it, select.POLLIN)  # it may have been killed, and asks nothing
        asks = [fd for fd, _ in ready.poll()] == [questions]
        if asks and (asked := unotify.next_question(questions)) is not None:
            unotify.put(questions, asked[0], pidfd_of_it, 0)
            _go_on(questions, asked[0])
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == -signal.SIGSYS:
            return call("pidfd_getfd", pidfd, FIRST_LISTENER, 0)  # and ends in the same way
        return -status if pidfd < 0 else status

    return attempt


def all_of_them() -> list[Row]:
    """For the table."""
    return [
        Row("dup3 onto standard input", lambda _: call("dup3", 1, 0, 0), SERVING),
        Row("pidfd_getfd of a pidfd, which the kernel is told to serve", _served(0), MONITORS),
        Row("pidfd_getfd of none, which the kernel is told to serve", _served(-1), MONITORS,
            dynamic=dict.fromkeys(MONITORS, "EBADF"), bare=REACHES),
    ]  # fmt: skip
