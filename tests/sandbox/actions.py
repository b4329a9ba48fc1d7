# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process that was taken over does while it serves, when the test says go.

Some of it is abuse of the channel to the process above; some is an accident of its own, such as
an error that nobody foresees.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from hardsplice.ipc.messages import FDS_LIMIT, TEXT_LIMIT, Kind, Note, Record, encode
from hardsplice.kernel import linux, scm
from hardsplice.relay.pools import POOL_SIZE
from tests.sandbox.job import Board

FLOOD = 400  # records
_SCM_MAX_FD = 253  # net/scm.h

_messages = scm.Messages(1 << 17, _SCM_MAX_FD)  # more than any of ours has room for
_modules: set[str] = set()


def remember() -> None:
    """The filter is in force: from now on nothing may be imported."""
    _modules.clear()
    _modules.update(sys.modules)


# --- abuse of a channel ---------------------------------------------------------------------------


def post(fd: int, packet: bytes, fds: list[int] | None = None) -> bool:
    """Send one packet as it is; False when the other end is gone or takes no more."""
    try:
        _messages.sendmsg(fd, packet, fds or (), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    except OSError as error:
        return error.errno == errno.EINVAL  # more descriptors than the kernel passes on
    return True


def _record(kind: int, small: int = 0, detail: int = 0, text: bytes = b"", index: int = 0) -> bytes:
    return encode(Record(kind, small, index, detail, text))


def _flood(packet: bytes, fds: int = 0) -> Callable[[int], None]:
    def abuse(fd: int) -> None:
        for _ in range(FLOOD):
            if not post(fd, packet, [fd] * fds):
                break

    return abuse


def _one(packet: bytes, fds: int = 0) -> Callable[[int], None]:
    def abuse(fd: int) -> None:
        post(fd, packet, [fd] * fds)

    return abuse


def _two(first: bytes, second: bytes | None = None) -> Callable[[int], None]:
    def abuse(fd: int) -> None:
        post(fd, first)
        post(fd, first if second is None else second)

    return abuse


def _orders(fd: int) -> None:
    for _ in range(FLOOD):
        for family in (0, 1):
            post(fd, _record(Kind.WANT_SOCKETS, family, 32))


_LONG = _record(Kind.NOTE, Note.ERROR, text=b"x" * TEXT_LIMIT)
_ASK = _record(Kind.WANT_SOCKETS, 0, 32)

# Records that no relay sends: its monitor must end it.
FORBIDDEN: dict[str, Callable[[int], None]] = {
    "a record without a byte": _one(b""),
    "a record of one byte": _one(b"\1"),
    "a record that is cut short": _one(_LONG[:-1]),
    "a record with more than it says": _one(_LONG + b"x"),
    "a record far too long": _one(_LONG + bytes(100_000)),
    "a flood of nonsense": _flood(b"\xff" * 64),
    "an unknown kind": _one(_record(200)),
    **{
        f"a record of kind {kind.name}": _one(_record(kind))
        for kind in (
            Kind.LISTENERS,
            Kind.BOUND,
            Kind.SOCKETS,
            Kind.NAMESPACES,
            Kind.PREPARE,
            Kind.RUN,
            Kind.PASSED_ON,
            Kind.CHECKED,
            Kind.ADD_LISTENER,
            Kind.READY_PLACING,
            Kind.SIGNAL,
            Kind.EXITED,
            Kind.POLL,
            Kind.OPEN,
            Kind.OPENED,
            Kind.SERVE,
            Kind.SERVED,
            Kind.CLOSE,
            Kind.CLOSED,
        )
    },
    "too many sockets": _one(_record(Kind.WANT_SOCKETS, 0, POOL_SIZE + 1)),
    "no sockets": _one(_record(Kind.WANT_SOCKETS, 0, 0)),
    "less than no sockets": _one(_record(Kind.WANT_SOCKETS, 0, -1)),
    "sockets of no family": _one(_record(Kind.WANT_SOCKETS, 7, 1)),
    "READY again": _one(_record(Kind.READY)),
    "READY again and again": _flood(_record(Kind.READY)),
    "an answer that nobody asked for": _one(_record(Kind.PONG)),
    "orders again and again": _flood(_ASK),
    "orders of both families again and again": _orders,
    "last words again": _two(_record(Kind.FATAL, text=b"so long")),
    "a note after its last words": _two(_record(Kind.FATAL), _record(Kind.NOTE, Note.REFUSED)),
    "a note that is the monitor's own": _one(_record(Kind.NOTE, Note.RESTARTED, text=b"forged")),
    "a note that is its monitor's as well": _one(_record(Kind.NOTE, Note.CROWDED)),
    "a trace that nobody asked for": _one(_record(Kind.NOTE, Note.OPENED)),
    "an escape in a note about UDP": _one(
        _record(Kind.NOTE_OF_UDP, Note.ERROR, -(1 << 31), b"\x1b[2J\n\xff\0", (1 << 32) - 1)
    ),
    "a flood of notes about UDP": _flood(_record(Kind.NOTE_OF_UDP, Note.SOCKETS, 24)),
    "a note with wild numbers": _one(
        _record(Kind.NOTE, 255, -(1 << 31), b"\x1b[2J\n\xff\0", (1 << 32) - 1)
    ),
    "the end of a flow that nobody asked for": _one(_record(Kind.FLOW, text=bytes(80))),
    "a descriptor beside a note": _one(_record(Kind.NOTE, Note.ERROR), 1),
    "a descriptor beside a request": _one(_ASK, 1),
    "a descriptor beside OPENED": _one(_record(Kind.OPENED, index=1), 1),
    "a descriptor beside READY": _one(_record(Kind.READY), 1),
    "a descriptor beside nonsense": _one(b"\xff" * 64, 1),
    "a descriptor beside no byte": _one(b"", 1),
    "a descriptor beside a record far too long": _one(_LONG + bytes(1000), 1),
    "as many descriptors as are taken": _one(_record(Kind.NOTE, Note.ERROR), FDS_LIMIT),
    "more descriptors than are taken": _one(_record(Kind.NOTE, Note.ERROR), _SCM_MAX_FD),
    "a flood of descriptors": _flood(_record(Kind.NOTE, Note.ERROR), _SCM_MAX_FD),
}

# Records that a relay may send, though not like this: whatever comes of it, all goes on.
TOLERATED: dict[str, Callable[[int], None]] = {
    "a flood of notes": _flood(_LONG),
    "a flood of yields": _flood(_record(Kind.ACCEPT_PAUSED)),
    "an escape in a note": _one(
        _record(Kind.NOTE, Note.ERROR, -(1 << 31), b"\x1b[2J\n\xff\0", (1 << 32) - 1)
    ),
    "a refusal of errno 2**31-1": _one(_record(Kind.NOTE, Note.REFUSED, (1 << 31) - 1)),
    "last words about something else": _one(
        _record(Kind.FATAL, text=b"reach\nthe service manager\nConnection refused\na line of mine")
    ),
    "last words with a next step of its own": _one(
        _record(Kind.FATAL, text=b"keep\nthe inbound relay running\nit died\na line of mine")
    ),
    "last words of PID 1 with a next step of its own": _one(
        _record(Kind.FATAL, text=b"run\nCOMMAND\nit is not there\na line of mine")
    ),
    "last words that aren't": _one(_record(Kind.FATAL, text=b"verb\nobject\nreason\nhint\nmore")),
}


def _for_ever(*packets: bytes, reads: bool = False) -> Callable[[int], None]:
    """As fast as the receiver takes it; ``reads`` what it answers."""

    def abuse(fd: int) -> None:
        while True:
            for packet in packets:
                post(fd, packet)
            while reads:
                try:
                    _, fds, _ = _messages.recvmsg(fd, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                for one in fds:
                    os.close(one)

    return abuse


_ROW = struct.pack("=QQIIHH4xd16s16sd", 1, 2, 2, 1, 4000, 80, 1.0, bytes(16), bytes(16), 1.0)

# What keeps the receiver busy for as long as the sender lives.
ENDLESS: dict[str, Callable[[int], None]] = {
    "orders for ever": _for_ever(_ASK),
    "orders for ever, and takes what it gets": _for_ever(_ASK, reads=True),
    "notes for ever": _for_ever(_LONG),
    "yields for ever": _for_ever(_record(Kind.ACCEPT_PAUSED)),
    "ends of flows for ever": _for_ever(_record(Kind.FLOW, text=_ROW)),
}


def _orders_of_both(fd: int) -> None:
    for family in (0, 1):
        post(fd, _record(Kind.WANT_SOCKETS, family, POOL_SIZE))


# What a relay may ask for; but it never looks at the answer.
UNFETCHED: dict[str, Callable[[int], None]] = {"orders that are not fetched": _orders_of_both}
_ABUSES = {**FORBIDDEN, **TOLERATED, **ENDLESS, **UNFETCHED}


def _lingering(fd: int, engine: Any) -> None:
    """Have the receiver close a socket that takes its time: unsent data, SO_LINGER, and the last
    descriptor of it.
    """
    flow = next(iter(engine.flows.values()))
    target = flow.fd[1]
    linger = struct.pack("ii", 1, 60)
    # Through the C library: what the interpreter's tripwire would say to it plays no part.
    if linux.libc.setsockopt(target, socket.SOL_SOCKET, socket.SO_LINGER, linger, len(linger)) != 0:
        raise OSError("SO_LINGER")
    for _ in range(50):  # something to do for the receiver until the descriptor here is closed
        post(fd, _record(Kind.NOTE, Note.REFUSED))
    post(fd, _record(Kind.NOTE, Note.ERROR), [target])
    engine.kernel.close(target)


# --- accidents ------------------------------------------------------------------------------------


def _unforeseen(_: Any) -> None:
    raise ZeroDivisionError("nobody foresaw this: \u20ac")


def _no_memory(_: Any) -> None:
    bytearray(1 << 60)


def _too_deep(subject: Any) -> None:
    _too_deep(subject)


def _use_memory(_: Any) -> None:
    """Arenas come and go, large blocks grow, the collector runs, errors are put into words."""
    heap = [[number] for number in range(300_000)]
    loop: list[Any] = []
    loop.append(loop)
    del heap, loop
    gc.collect()
    blocks = [bytearray(size) for size in (1 << 12, 1 << 17, 1 << 22, 1 << 25)]
    for block in blocks:
        block.extend(bytes(len(block)))
    del blocks
    gc.collect()
    for code in range(1, 134):
        str(OSError(code, "")), repr(OSError(code))
    for text in ("\u00e4\u20ac".encode().decode(), f"{1 / 3:.50f}", str(10**400)):
        text.casefold()
    time.monotonic()


ACCIDENTS: dict[str, Callable[[Any], None]] = {
    "unforeseen": _unforeseen,
    "memory": _no_memory,
    "recursion": _too_deep,
}


def act(name: str, subject: Any, board: Board) -> None:
    """Do it. ``subject`` is what the function belongs to that the process was about to call."""
    if name in ACCIDENTS:
        ACCIDENTS[name](subject)
        return
    if name == "use memory":
        _use_memory(subject)
    elif name != "modules":
        _abuse(name, subject, board)
        return
    board.text = "imported: " + " ".join(sorted(set(sys.modules) - _modules))


def _abuse(name: str, subject: Any, board: Board) -> None:
    if hasattr(subject, "epoll"):  # a relay's engine
        fd = subject.monitor.channel.fileno()
    else:
        fd = (subject.parent if hasattr(subject, "parent") else subject).fileno()
    abuse = None if name == "lingering" else _ABUSES[name]
    board.text = name  # first: what it does may be the end of it
    if abuse is None:
        _lingering(fd, subject)
    else:
        abuse(fd)
    if hasattr(subject, "epoll") and name not in TOLERATED:
        while True:  # it does not leave by itself
            subject.epoll.poll(0.05, 1)
