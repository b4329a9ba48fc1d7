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

from hardsplice.frontends import offers, packets
from hardsplice.frontends.offers import Answer, Offer
from hardsplice.frontends.place import ENDING, Place
from hardsplice.ipc import descriptors
from hardsplice.ipc.channel import close_all
from hardsplice.ipc.messages import MalformedError
from hardsplice.kernel import socketcalls
from hardsplice.kernel.files import identity
from hardsplice.kernel.record import NamedTuple
from hardsplice.kernel.scm import Messages
from hardsplice.model.errors import HardspliceError, error_of, reason_of, text_of, write_all
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.model.unforeseen import as_error
from hardsplice.net import listeners

LOCK_SECONDS = 12.0  # that one program waits for others
ANSWER_SECONDS = 12.0  # that the server has; Docker gives up after 16
PORT_SECONDS = 0.01  # ... and for each port besides
YOUNG_SECONDS = 10.0  # that a socket may be there before somebody listens at it
TRIES = 3  # with one server after the other
_PAUSE = 0.01
_ROOM = 1 << 14  # bytes of an answer
_SERVES = b"\0"  # what is told of a server that was started; else it is why there is none
_SILENT = "the server does not answer"


class Wanted(NamedTuple):
    """What a program wants to have served."""

    forwards: Sequence[Forward]
    passed: int | None = None  # the only one's listener, if it is open already
    ends: int | None = None  # as an Offer's
    moves: int | None = None
    # Listeners of TCP ports, in their order, from an earlier time. They stay open whatever comes of
    # it: who connects waits until there is a server. If not all of them are sound, none is left.
    kept: list[int] = []  # noqa: RUF012 - an empty one is never changed


class Published(NamedTuple):
    """What stands for ports that are served."""

    connection: int
    listeners: Sequence[int]  # of TCP ports: clients that connect between two servers wait there
    moves: int | None  # so does who tells the container's new address


def publish(place: Place, wanted: Wanted) -> Published:
    """Have ports served. HardspliceError where not all can be had: then none is. For more ports
    than the server has places for, there is another one.
    """
    descriptors.raise_limit()
    for _ in range(TRIES):
        opened = _open(wanted)
        try:
            connection, answer = _offer(place, wanted, opened)
        except BaseException:
            _close(wanted, opened)
            raise
        if answer is not None and answer.failure is None:
            is_tcp = [forward.protocol is Protocol.TCP for forward, _ in opened]
            fds = [fd for (_, fd), is_kept in zip(opened, is_tcp, strict=True) if is_kept]
            return Published(connection.detach(), fds, wanted.moves)
        connection.close()
        _close(wanted, opened)
        if answer is not None:
            if place.ports or not answer.is_full:
                assert answer.failure is not None
                raise answer.failure
            place = place._replace(ports=len(wanted.forwards))
    raise HardspliceError("forward", "ports", f"{TRIES} servers ended, one after the other")


def _open(wanted: Wanted) -> Sequence[tuple[Forward, int]]:
    """The listeners, which are the caller's to close."""
    if wanted.passed is not None:
        return [(wanted.forwards[0], os.dup(wanted.passed))]
    tcp = [one for one in wanted.forwards if one.protocol is Protocol.TCP]
    if len(tcp) != len(wanted.kept) or not all(map(_is_as_it_was, tcp, wanted.kept)):
        close_all(wanted.kept)
        wanted.kept.clear()
    kept = dict(zip(tcp, wanted.kept, strict=False))
    families = listeners.usable_families((4, 6))

    def again(forward: Forward) -> int | None:
        return os.dup(kept[forward]) if forward in kept else None

    return listeners.open_listeners(wanted.forwards, families, again)


def _close(wanted: Wanted, opened: Sequence[tuple[Forward, int]]) -> None:
    """Close listeners that are not served. A server that hangs still has those that were passed:
    nobody is to wait for it there, and a later program is to have the port.
    """
    if wanted.passed is None and not wanted.kept:
        for forward, fd in opened:
            if forward.protocol is Protocol.TCP:
                with socket.socket(fileno=os.dup(fd)) as listener, contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
    close_all(fd for _, fd in opened)


def _is_as_it_was(forward: Forward, fd: int) -> bool:
    """Whether a listener still is one. Whoever had it meanwhile may have changed its options."""
    if not listeners.is_listener(fd, forward):
        return False
    with contextlib.closing(socket.socket(fileno=os.dup(fd))) as listener:
        listeners.make_sound(listener)
    return listeners.is_bound_to(fd, forward.address)


def _offer(
    place: Place, wanted: Wanted, opened: Sequence[tuple[Forward, int]]
) -> tuple[socket.socket, Answer | None]:
    with contextlib.ExitStack() as later:
        connection = _found(place, later)
        try:
            return connection, _ask(connection, wanted, opened)
        except BaseException:
            connection.close()
            raise


def _ask(
    connection: socket.socket, wanted: Wanted, opened: Sequence[tuple[Forward, int]]
) -> Answer | None:
    """The server's answer; None where it has ended without one. HardspliceError."""
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
            raise _silent("forward", "ports", connection)
        data = connection.recv(_ROOM)
    except ConnectionError:  # perhaps with an answer: it need not have heard all
        data = b""
        with contextlib.suppress(OSError):
            data = connection.recv(_ROOM, socket.MSG_DONTWAIT)
    except BlockingIOError:
        raise _silent("forward", "ports", connection) from None
    except OSError as error:
        raise HardspliceError("pass on", "listeners", reason_of(error)) from error
    try:
        return offers.answer_of(data) if data else None
    except MalformedError as error:
        raise HardspliceError("trust", "the server", str(error)) from None


# --- the server -----------------------------------------------------------------------------------


def _found(place: Place, later: contextlib.ExitStack) -> socket.socket:
    """A connection to the server, which is started if there is none. HardspliceError."""
    path = place.path
    with _locked(place.folder):
        connection = _connected(path)
        if connection is None:
            _forget_ended(place.folder, ENDING)
            if place.containers is not None:
                _forget_ended(place.containers)
            _start(path, place, later)
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
    except BlockingIOError:
        raise _silent("reach", f"the server at {path}") from None
    except OSError as error:
        raise HardspliceError("reach", f"the server at {path}", reason_of(error)) from error
    if socketcalls.peer_user(connection.fileno()) != os.geteuid():
        connection.close()
        raise HardspliceError("trust", f"the server at {path}", "it is another user's")
    return connection


def _silent(verb: str, what: str, server: socket.socket | None = None) -> HardspliceError:
    """It hangs, or was stopped: no other signal ends it then. Who listens is the one to be ended,
    if it is of our PID namespace.
    """
    pid = 0 if server is None else packets.listener_of(server)
    how = f"kill -KILL {pid or 'PID, of: ps -C hs-host -o pid,args'}"
    return HardspliceError(verb, what, _SILENT, f"end it, and ports have a new one: {how}")


def _forget_ended(folder: str, ending: str = "") -> None:
    """Remove sockets of our user where nobody listens any more: who is killed can't do it. A young
    one may be about to be listened at.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.endswith(ending):
                with contextlib.suppress(OSError):
                    _forget_if_ended(f"{folder}/{name}")


def _forget_if_ended(path: str) -> None:
    found = os.lstat(path)
    is_young = time.time() - found.st_mtime < YOUNG_SECONDS
    if found.st_uid != os.geteuid() or is_young or not packets.has_ended(path):
        return
    if identity(os.lstat(path)) == identity(found):  # and not another one's by now
        os.unlink(path)


def _start(path: str, place: Place, later: contextlib.ExitStack) -> None:
    """Start a server in a process that is nobody's child once it serves, so that nobody has to wait
    for its end. HardspliceError where that failed. The process between ends meanwhile, and its
    status is read ``later``.
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
        _live(path, place, tell)
    later.callback(os.waitpid, between, 0)
    os.close(tell)
    with open(told, "rb") as file:
        text = file.read()
    if text != _SERVES:
        raise error_of(text)


def _live(path: str, place: Place, tell: int) -> None:
    status = 1
    try:
        from hardsplice.frontends import serving

        serving.serve(path, place)
        write_all(tell, _SERVES)
        os.close(tell)  # the end of a process takes a while, and nobody waits for it
        status = 0
    except BaseException as error:  # noqa: BLE001 - a forked process must not return
        with contextlib.suppress(OSError):
            write_all(tell, text_of(as_error(error, "start", "the server")))
    os._exit(status)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keep other programs from starting a server meanwhile; HardspliceError if another one takes
    too long, or the folder is not for our user alone.
    """
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HardspliceError("make", f"folder {folder}", reason_of(error)) from error
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            reason = "it is not for its user alone"
            raise HardspliceError("trust", f"folder {folder}", reason, "remove it: it is made anew")
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
