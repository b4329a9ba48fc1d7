# SPDX-License-Identifier: GPL-2.0-or-later
"""Sessions at random, over plain TCP and through hardsplice: what is seen of them is the same.

A session is a list of steps of a client and a server: they send, also urgent data, read a little,
finish, close with and without unread bytes, reset, or are killed. A step that ends something waits
until what was sent before has begun to arrive, since TCP's own answer depends on that. At last each
end that is still there takes what comes. Then:

- what it got is what the other one sent, from the beginning, and all of it unless there was a
  reset;
- it comes to the end that it comes to over plain TCP: none, a clean one, or a reset;
- the last urgent byte has its mark where it has it over plain TCP.

The seed of a session that fails is in the message. `make soak` runs thousands.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.support.paths import Lane, Path
from tests.support.stream import PATIENCE, Stream, Violation, eventually

CLIENT, SERVER = 0, 1
ARRIVAL = 100  # milliseconds in which more would have arrived, or an end
GRACE = 5.0  # seconds until a reset is passed on, at the latest
OUTSTANDING = 100_000  # bytes that nobody has read, at the most: any path holds so many
SIOCATMARK = 0x8905  # asm-generic/sockios.h


@dataclass(frozen=True)
class Step:
    """One thing that one end does."""

    who: int
    what: str
    number: int = 0


def script(chance: random.Random) -> list[Step]:
    """Steps that make sense one after the other: who has closed does nothing any more."""
    here, may_send, has_sent_urgent = {CLIENT, SERVER}, {CLIENT, SERVER}, set[int]()
    steps = []
    for _ in range(chance.randint(2, 14)):
        if not here:
            break
        who = chance.choice(sorted(here))
        what = chance.choice(("send",) * 6 + ("read",) * 4 + ("urgent", "finish", "finish", "end"))
        if what == "end":
            what = chance.choice(("close", "close", "reset", "kill"))
            here.remove(who)
        elif what != "read" and who not in may_send:
            continue
        elif what == "urgent":  # a second one displaces one that was not read yet
            if who in has_sent_urgent:
                continue
            has_sent_urgent.add(who)
        if what in ("finish", "close", "reset", "kill"):
            may_send.discard(who)
        size = chance.choice((1, 20, 1000, 1460, 5000, 20_000, 40_000))
        steps.append(Step(who, what, size))
    return steps


@dataclass
class End:
    """A client or a server, and what is known of it."""

    sock: socket.socket
    stream: Stream = field(default_factory=Stream)
    sent: int = 0
    urgent: int | None = None  # where the last urgent byte is in what it sent
    got: int = 0
    mark: int | None = None  # where the last one was in what came
    state: str = "open"  # or "finish", "close", "reset", "kill"
    is_broken: bool = False  # a call has been told of a reset, and no other one will be
    saw: str = ""  # "open", "fin", "reset"; "" once it is not there any more

    @property
    def is_there(self) -> bool:
        return self.state in ("open", "finish")

    def take(self, other: End, most: int) -> int:
        """Receive so many bytes; how many there were, 0 at the end. BlockingIOError, OSError."""
        if fcntl.ioctl(self.sock, SIOCATMARK, bytes(4)) != bytes(4):
            self.mark = self.got
        data = self.sock.recv(most)
        other.stream.check(self.got, data)
        self.got += len(data)
        return len(data)


class Session:
    """Both ends, over one way."""

    def __init__(self, lane: Lane, buffer: int | None) -> None:
        self.ends = [End(sock) for sock in lane.pair(buffer=buffer)]
        for end in self.ends:
            end.sock.setblocking(False)
            end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    def run(self, steps: list[Step]) -> list[End]:
        for step in steps:
            end, other = self.ends[step.who], self.ends[1 - step.who]
            if end.is_there:
                self._do(step, end, other)
        for end, other in ((self.ends[0], self.ends[1]), (self.ends[1], self.ends[0])):
            if end.is_there:
                end.saw = "reset" if end.is_broken else _outcome(end, other)
        for end in self.ends:
            end.sock.close()
        return self.ends

    def _do(self, step: Step, end: End, other: End) -> None:
        try:
            self._try(step, end, other)
        except BlockingIOError:
            pass
        except ConnectionError:
            end.is_broken = True

    def _try(self, step: Step, end: End, other: End) -> None:
        if step.what == "send":
            room = OUTSTANDING - (end.sent - other.got)
            size = max(0, min(step.number, room))
            end.sent += end.sock.send(end.stream.at(end.sent, size)) if size else 0
        elif step.what == "urgent":
            end.sock.send(end.stream.at(end.sent, 1), socket.MSG_OOB)
            end.urgent = end.sent
            end.sent += 1
        elif step.what == "read":
            _arrives(end, other)
            end.take(other, step.number)
        else:
            _arrives(end, other)
            _arrives(other, end)
            _leave(end, other, step.what)


def _leave(end: End, other: End, what: str) -> None:
    """Finish, or go; where that resets the connection, the other one sees it before it goes on."""
    if what == "finish":
        end.state = what
        with contextlib.suppress(OSError):  # ENOTCONN, after a reset
            end.sock.shutdown(socket.SHUT_WR)
        return
    is_over = end.state == other.state == "finish"
    resets = what == "reset" or _unread(end) > 0
    end.state = what
    if what == "reset":
        end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if what == "kill":
        fd = end.sock.fileno()
        holder = subprocess.Popen(["sleep", "1000"], pass_fds=[fd])
        end.sock.close()
        holder.send_signal(signal.SIGKILL)
        holder.wait(PATIENCE)
    end.sock.close()
    if resets and not is_over and other.is_there:
        other.is_broken |= _has_failed(other, GRACE)


def _unread(end: End) -> int:
    """Bytes that have arrived and are not read."""
    count: int = struct.unpack("i", fcntl.ioctl(end.sock, termios.FIONREAD, bytes(4)))[0]
    return count


def _arrives(end: End, other: End) -> None:
    """Wait until what the other one has sent and this one has not read is there, as far as the
    window has room for it, and its end, if nothing is before that.
    """
    if not (end.is_there and other.state != "reset"):
        return
    poller = select.poll()
    poller.register(end.sock, select.POLLRDHUP)
    seen = [-1.0, 0.0]  # bytes that are there, and since when

    def is_there() -> bool:
        if dict(poller.poll(0)):
            return True
        missing, unread = other.sent - end.got, _unread(end)
        if unread != seen[0]:
            seen[:] = unread, time.monotonic()
        if unread >= missing:
            return missing > 0 or other.state == "open"
        return unread > 0 and time.monotonic() - seen[1] > ARRIVAL / 1000  # the window is full

    eventually(is_there, "what was sent does not arrive")
    if other.state != "open":
        poller.poll(ARRIVAL)  # in vain where its end is behind more than the window has room for


def _outcome(end: End, other: End) -> str:
    """Take what comes: how it ended."""
    poller = select.poll()
    poller.register(end.sock, select.POLLIN)
    while True:
        if other.state == "open" and end.got == other.sent:
            return "reset" if _has_failed(end, 0) else "open"
        if not poller.poll(1000 * PATIENCE):
            raise Violation(f"after {end.got} of {other.sent} bytes nothing comes")
        try:
            if not end.take(other, 1 << 16):
                # Where the other one has gone, what this one had sent it may be answered yet.
                is_over = other.is_there or end.sent == other.got
                return "reset" if _has_failed(end, 0 if is_over else GRACE) else "fin"
        except BlockingIOError:
            continue
        except ConnectionError:
            return "reset"


def _has_failed(end: End, within: float) -> bool:
    poller = select.poll()
    poller.register(end.sock, 0)
    found = dict(poller.poll(1000 * within))
    return bool(found.get(end.sock.fileno(), 0) & select.POLLERR)


def compare(direct: list[End], spliced: list[End]) -> None:
    """Raise Violation where hardsplice is not like plain TCP."""
    for who, name in ((CLIENT, "client"), (SERVER, "server")):
        expected, seen, sender = direct[who], spliced[who], spliced[1 - who]
        if not seen.is_there and not expected.is_there:
            continue
        # A connection that has ended both ways for one end is over for it, whatever comes after
        # that from behind the forwarder.
        was_over = (seen.saw, expected.saw) == ("fin", "reset") and seen.state == "finish"
        if seen.saw != expected.saw and not was_over:
            raise Violation(f"the {name} sees {seen.saw}, over plain TCP {expected.saw}")
        if seen.saw != "reset":
            if seen.got != sender.sent:
                raise Violation(f"the {name} got {seen.got} of {sender.sent} bytes")
            if expected.mark == direct[1 - who].urgent and seen.mark != sender.urgent:
                raise Violation(f"the {name} has its mark at {seen.mark}, not {sender.urgent}")


def both(plain: Lane, forwarded: Lane, seed: int) -> None:
    chance = random.Random(seed)
    steps = script(chance)
    buffer = chance.choice((None, None, 4096, 30_000))
    try:
        compare(Session(plain, buffer).run(steps), Session(forwarded, buffer).run(steps))
    except Violation as violation:
        raise Violation(f"seed {seed}, buffer {buffer}: {violation}; {steps}") from violation
    finally:
        plain.close_connections()
        forwarded.close_connections()


@pytest.mark.parametrize("way", ["inbound-ipv4-root", "outbound-ipv6-user"])
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(200, marks=pytest.mark.timeout(120)),
        pytest.param(5000, marks=[pytest.mark.soak, pytest.mark.timeout(3000)]),
    ],
)
def test_sessions_at_random_are_as_over_plain_tcp(
    ways: Callable[[str], Path], way: str, number: int
) -> None:
    first = int(os.environ.get("HARDSPLICE_SEED", "0")) or random.SystemRandom().randrange(1 << 40)
    with ways("direct-" + way.split("-")[1]).lane() as plain, ways(way).lane() as forwarded:
        plain.listen()
        forwarded.listen()
        for seed in range(first, first + number):
            both(plain, forwarded, seed)
