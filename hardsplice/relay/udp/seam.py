# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface between the engine and the kernel: every call that a datagram relay makes.

The engine takes a Kernel; tests pass another one. The methods are the plain functions themselves.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from ctypes import c_void_p

from hardsplice.kernel import datagrams, prepared, socketcalls, unotify
from hardsplice.kernel.mmsghdr import Buffers, Inbox, Outbox, Parts
from hardsplice.kernel.prepared import Call
from hardsplice.relay.targets import connect
from hardsplice.sandbox.address_book import Pointer


class Kernel:
    """The real calls."""

    to_take: Callable[[int, Inbox], Call] = staticmethod(prepared.take)
    to_hear: Callable[[int, Buffers], Call] = staticmethod(prepared.hear)
    to_send: Callable[[int, Parts], Call] = staticmethod(prepared.send)
    to_answer: Callable[[int, Parts, bytes], Call] = staticmethod(prepared.answer)
    error: Callable[[], int] = staticmethod(prepared.error)
    receive: Callable[[int, Inbox, int, int], int] = staticmethod(datagrams.receive)
    receive_single: Callable[[int, c_void_p], int] = staticmethod(datagrams.receive_single)
    discard_errors: Callable[[int, Inbox], int] = staticmethod(datagrams.discard_errors)
    send_all: Callable[[int, Outbox, int, int], int] = staticmethod(datagrams.send_all)
    send: Callable[[int, c_void_p, int], int] = staticmethod(datagrams.send)
    write: Callable[[int, Parts, int, int], int] = staticmethod(datagrams.write)
    take_joined: Callable[[int], int] = staticmethod(datagrams.take_joined)
    segment: Callable[[int, int], int] = staticmethod(datagrams.segment)
    connect: Callable[[int, Pointer], int] = staticmethod(connect)
    option: Callable[[int, int, int], int] = staticmethod(socketcalls.option)
    close: Callable[[int], None] = staticmethod(os.close)
    take_listener: Callable[[int], bool] = staticmethod(unotify.request_descriptor)
    now: Callable[[], float] = staticmethod(time.monotonic)
    epoll: Callable[[], select.epoll] = staticmethod(select.epoll)
