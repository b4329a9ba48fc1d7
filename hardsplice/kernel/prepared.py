# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls for one datagram at a time, which are prepared once for each socket.

Where a request has one answer, what is done around such a call takes longer than the call itself.
So its arguments are put together before: what is called then takes none, and returns -1 where it
fails, of which ``error`` tells the errno. Received is into the first slot; sent is the first entry
of `Parts`, as many bytes as its size says.

After lock-down the interpreter may make instances of ctypes' types, but no views of other memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_char, c_size_t
from functools import partial

from hardsplice.kernel.datagrams import RECEIVE_FLAGS, RECVMMSG, SEND_FLAGS, SENDMMSG, hot
from hardsplice.kernel.hints import Any
from hardsplice.kernel.mmsghdr import ROOM, Buffers, Inbox, Mmsghdr, Parts
from hardsplice.kernel.packet_info import FORMS, Form, form_of, space
from hardsplice.kernel.socketcalls import IS_DIRECT, way

Call = Callable[[], int]

error = ctypes.get_errno

_ROOM = c_size_t(ROOM)
_syscall, _writev = hot.syscall, hot.writev
_receive = way("recvfrom", hot) if IS_DIRECT else hot.recv


def _with_reply(form: Form) -> type[Any]:
    """A struct mmsghdr, and behind it what ``reply_to`` makes for a family."""
    fields = (("message", Mmsghdr), ("reply", c_char * (form.control + space(form.info))))
    return type("_WithReply", (ctypes.Structure,), {"_fields_": fields})


_WITH_REPLY = {size: _with_reply(form) for size, form in FORMS.items()}


def take(fd: int, inbox: Inbox) -> Call:
    """Receive a datagram of a listener, with what comes with it: 1."""
    return partial(_syscall, RECVMMSG, fd, inbox.references[0], 1, RECEIVE_FLAGS, None)


def hear(fd: int, buffers: Buffers) -> Call:
    """Receive a datagram of a connected socket: its size."""
    nobody = (None, None) if IS_DIRECT else ()  # recvfrom(2) can tell whose it is, recv(3) can't
    return partial(_receive, fd, buffers.pointers[0], _ROOM, RECEIVE_FLAGS, *nobody)


def send(fd: int, parts: Parts) -> Call:
    """Send a datagram from a connected socket: its size. An empty one isn't sent by writev(2)."""
    return partial(_writev, fd, parts.references[0], 1)


def answer(fd: int, parts: Parts, reply: bytes) -> Call:
    """Send a datagram from a listener to where ``reply_to`` says: 1."""
    form = form_of(reply)
    memory = _WITH_REPLY[form.name_size]()
    header, name = memory.message.header, ctypes.addressof(memory) + ctypes.sizeof(Mmsghdr)
    ctypes.memmove(name, reply, len(reply))
    header.name, header.name_size = name, form.name_size
    header.parts, header.parts_number = parts.addresses[0], 1
    header.control, header.control_size = name + form.control, len(reply) - form.control
    return partial(_syscall, SENDMMSG, fd, byref(memory), 1, SEND_FLAGS)
