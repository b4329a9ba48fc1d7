# SPDX-License-Identifier: GPL-2.0-or-later
"""How a program that an engine starts has its ports served: it opens their listeners, finds the
server of its user and of the namespace that they lead to, or starts one, and passes them on.

Programs that start at the same time wait for each other, so that there is one server. One that has
ended, or ends at that moment, hangs up without an answer: then the next one is started.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hardsplice.frontends import offers, packets
from hardsplice.frontends.offers import Offer
from hardsplice.ipc import descriptors
from hardsplice.ipc.channel import close_all
from hardsplice.ipc.messages import MalformedError
from hardsplice.kernel import socketcalls
from hardsplice.kernel.scm import Messages
from hardsplice.model.errors import HardspliceError, error_of, reason_of, text_of, write_all
from hardsplice.model.forward import Forward
from hardsplice.model.unforeseen import as_error
from hardsplice.net import listeners

LOCK_SECONDS = 12.0  # that one program waits for others
ANSWER_SECONDS = 12.0  # that the server has; Docker gives up after 16
PORT_SECONDS = 0.01  # ... and for each port besides
TRIES = 3  # with one server after the other
_PAUSE = 0.01
_ENDING = ".sock"
_ROOM = 1 << 14  # bytes of an answer


_OWN = "/proc/self/ns/net"


class Place(NamedTuple):
    """Where a server is found."""

    folder: str  # for its user only
    netns: str | None  # the path of the network namespace that it serves; None is our own

    @property
    def path(self) -> str:
        """Its socket's path. While a namespace is held open, no other one has its number."""
        numbers = f"{_inode(self.netns or _OWN)}-{_inode(_OWN)}"
        return f"{self.folder}/{offers.VERSION}-{numbers}{_ENDING}"


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError as error:
        raise HardspliceError("join", f"namespace {path}", reason_of(error)) from error


class Wanted(NamedTuple):
    """What a program wants to have served."""

    forwards: Sequence[Forward]
    passed: int | None = None  # the only one's listener, if it is open already
    ends: int | None = None  # as an Offer's
    moves: int | None = None


def publish(place: Place, wanted: Wanted) -> int:
    """Have ports served: the connection that stands for them, a descriptor. HardspliceError where
    not all can be had: then none is.
    """
    descriptors.raise_limit()
    for _ in range(TRIES):
        with _opened(wanted) as opened:
            connection = _found(place)
            try:
                answered = _ask(connection, wanted, opened)
                if answered is not None:
                    failure = offers.failure_of(answered)
                    if failure is not None:
                        raise failure
                    return connection.detach()
            except MalformedError as error:
                raise HardspliceError("trust", "the server", str(error)) from None
            except BaseException:
                connection.close()
                raise
            connection.close()
    raise HardspliceError("forward", "ports", f"{TRIES} servers ended, one after the other")


@contextlib.contextmanager
def _opened(wanted: Wanted) -> Iterator[Sequence[tuple[Forward, int]]]:
    """The listeners, as long as they are passed on."""
    if wanted.passed is not None:
        yield [(wanted.forwards[0], wanted.passed)]
        return
    opened = listeners.open_listeners(wanted.forwards, listeners.usable_families((4, 6)))
    try:
        yield opened
    finally:
        close_all(one.fd for one in opened)


def _ask(
    connection: socket.socket, wanted: Wanted, opened: Sequence[tuple[Forward, int]]
) -> bytes | None:
    """The server's answer; None where it has ended without one."""
    messages = Messages(offers.SIZE, offers.FDS)
    offer = Offer(
        [forward for forward, _ in opened], [fd for _, fd in opened], wanted.ends, wanted.moves
    )
    fd = connection.fileno()
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    try:
        for data, fds in offers.encode(offer):
            messages.sendmsg(fd, data, fds, socket.MSG_NOSIGNAL)
        seconds = ANSWER_SECONDS + PORT_SECONDS * len(opened)
        if not poller.poll(1000 * seconds):
            raise HardspliceError("forward", "ports", "the server does not answer")
        return connection.recv(_ROOM) or None
    except ConnectionError:  # perhaps with an answer: it need not have heard all
        with contextlib.suppress(OSError):
            return connection.recv(_ROOM, socket.MSG_DONTWAIT) or None
        return None
    except OSError as error:
        raise HardspliceError("pass on", "listeners", reason_of(error)) from error


# --- the server -----------------------------------------------------------------------------------


def _found(place: Place) -> socket.socket:
    """A connection to the server, which is started if there is none. HardspliceError."""
    path = place.path
    with _locked(place.folder):
        connection = _connected(path)
        if connection is None:
            _forget_others(place.folder)
            _start(path, place.netns)
            connection = _connected(path)
    if connection is None or place.path != path:
        raise HardspliceError("reach", "the server", "it ended as soon as it was started")
    return connection


def _connected(path: str) -> socket.socket | None:
    """A connection to what listens at a path; None if nobody does."""
    try:
        connection = packets.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise HardspliceError("reach", f"the server at {path}", reason_of(error)) from error
    if socketcalls.peer_user(connection.fileno()) != os.geteuid():
        connection.close()
        raise HardspliceError("trust", f"the server at {path}", "it is another user's")
    return connection


def _forget_others(folder: str) -> None:
    """Remove the sockets of servers that have ended, which couldn't."""
    for name in os.listdir(folder):
        if name.endswith(_ENDING):
            with contextlib.suppress(HardspliceError, OSError):
                connection = _connected(f"{folder}/{name}")
                if connection is None:
                    os.unlink(f"{folder}/{name}")
                else:
                    connection.close()


def _start(path: str, netns: str | None) -> None:
    """Start a server in a process that is nobody's child once it serves, so that nobody has to wait
    for its end. HardspliceError where that failed.
    """
    told, tell = os.pipe2(os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # our caller may ignore it, and so would we
    try:
        between = os.fork()
    except OSError as error:
        os.close(tell)
        os.close(told)
        raise HardspliceError("start", "the server", reason_of(error)) from error
    if between == 0:
        _live(path, netns, tell)
    os.close(tell)
    with open(told, "rb") as file:
        text = file.read()
    _, status = os.waitpid(between, 0)
    if status:
        raise error_of(text)


def _live(path: str, netns: str | None, tell: int) -> None:
    status = 1
    try:
        from hardsplice.frontends import serving

        serving.serve(path, netns)
        status = 0
    except BaseException as error:  # noqa: BLE001 - a forked process must not return
        with contextlib.suppress(OSError):
            write_all(tell, text_of(as_error(error, "start", "the server")))
    os._exit(status)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keep other programs from starting a server meanwhile; HardspliceError if another one takes
    too long.
    """
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HardspliceError("make", f"folder {folder}", reason_of(error)) from error
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                reason = f"another process has had it for {LOCK_SECONDS:.0f} seconds"
                raise HardspliceError("lock", folder, reason)
            time.sleep(_PAUSE)
        yield
    finally:
        os.close(fd)
