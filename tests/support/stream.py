# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes that know their place, and bounded ways to send, receive, reset and wait.

A test of a byte mover needs a payload in which a lost, doubled, swapped or foreign byte can't hide:
every stream here is a window into one block of pseudo-random bytes whose length is a prime above
1 MiB, so no power-of-two shift maps it onto itself, and each connection has a window of its own, so
bytes of one never pass for bytes of another.

Nothing here waits without a bound: sockets carry timeouts, threads are joined with one.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

KIB = 1024
MIB = 1024 * KIB
PATIENCE = 20.0
"""Seconds until a wait that should be short is called a stall."""

_PERIOD = 1_048_583  # the first prime above 1 MiB
_CHUNK = 256 * KIB
_BLOCK = random.Random("a stream that knows its offsets").randbytes(_PERIOD)
_WINDOWS = memoryview(_BLOCK + _BLOCK[:MIB])
_tags = itertools.count(1)


class Violation(AssertionError):
    """A rule of the contract was broken; the message says which byte, when, or what was awaited."""


class Stream:
    """An endless sequence of bytes, told apart from every other by its tag."""

    def __init__(self) -> None:
        self._offset = next(_tags) * 65_537

    def at(self, position: int, size: int) -> memoryview:
        """The `size` bytes (at most 1 MiB) from `position` on."""
        start = (self._offset + position) % _PERIOD
        return _WINDOWS[start : start + size]

    def check(self, position: int, data: bytes | memoryview) -> None:
        """Raise Violation unless `data` is what the stream holds at `position`."""
        expected = self.at(position, len(data))
        if expected == data:
            return
        wrong = next(i for i, (a, b) in enumerate(zip(expected, data, strict=True)) if a != b)
        sample = bytes(data[wrong : wrong + 16])
        found = (_BLOCK + _BLOCK[:16]).find(sample) if len(sample) == 16 else -1
        origin = (
            f"they belong at offset {(found - self._offset) % _PERIOD} (modulo {_PERIOD})"
            if found >= 0
            else "they belong to no stream"
        )
        raise Violation(f"wrong bytes at offset {position + wrong}: {sample!r}; {origin}")


@dataclass(frozen=True, slots=True)
class Received:
    """How many right bytes came, and what came after them: "fin", "reset" or "limit"."""

    count: int
    end: str


def send(sock: socket.socket, stream: Stream, size: int, *, start: int = 0) -> None:
    """Send `size` bytes of the stream; a peer that takes nothing for PATIENCE is a Violation."""
    position, stop = start, start + size
    while position < stop:
        try:
            position += sock.send(stream.at(position, min(_CHUNK, stop - position)))
        except TimeoutError:
            raise Violation(f"sending stalled at offset {position} of {stop}") from None
        except ConnectionError as error:
            raise Violation(f"sending failed at offset {position} of {stop}: {error}") from None


def finish(sock: socket.socket) -> None:
    """Send FIN."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:  # ENOTCONN, after a reset
        raise Violation(f"the connection broke before its FIN: {error}") from None


def send_and_finish(sock: socket.socket, stream: Stream, size: int, *, start: int = 0) -> None:
    """Send `size` bytes, then FIN."""
    send(sock, stream, size, start=start)
    finish(sock)


def receive(
    sock: socket.socket,
    stream: Stream,
    *,
    start: int = 0,
    limit: int | None = None,
    chunk: int = _CHUNK,
    pause: float = 0.0,
) -> Received:
    """Receive and check bytes up to `limit` of them, or until the other side finishes or resets.

    `chunk` and `pause` make a slow reader: so many bytes at most, then so many seconds of rest.
    """
    buffer = memoryview(bytearray(chunk))
    count = 0
    while limit is None or count < limit:
        want = chunk if limit is None else min(chunk, limit - count)
        try:
            got = sock.recv_into(buffer[:want])
        except ConnectionResetError:
            return Received(count, "reset")
        except TimeoutError:
            raise Violation(f"nothing more came after {count} bytes") from None
        if not got:
            return Received(count, "fin")
        stream.check(start + count, buffer[:got])
        count += got
        if pause:
            time.sleep(pause)
    return Received(count, "limit")


def expect(sock: socket.socket, stream: Stream, size: int, *, start: int = 0) -> None:
    """Receive exactly `size` bytes and leave the connection open."""
    got = receive(sock, stream, start=start, limit=size)
    if got.count != size:
        raise Violation(f"expected {size} bytes, got {got.count} and then {got.end}")


def expect_end(
    sock: socket.socket, stream: Stream, size: int, end: str = "fin", **how: Any
) -> None:
    """Receive exactly `size` bytes and then `end`."""
    got = receive(sock, stream, **how)
    if got != Received(size, end):
        raise Violation(f"expected {size} bytes and {end}, got {got.count} and {got.end}")


def fill(sock: socket.socket, stream: Stream, *, start: int = 0, still: float = 0.25) -> int:
    """Send until the path takes nothing for `still` seconds; return how many bytes it holds."""
    position = start
    timeout = sock.gettimeout()
    sock.settimeout(still)
    try:
        while position - start < 512 * MIB:
            position += sock.send(stream.at(position, _CHUNK))
    except TimeoutError:
        return position - start
    except ConnectionError as error:
        raise Violation(f"sending failed at offset {position}: {error}") from None
    finally:
        sock.settimeout(timeout)
    raise Violation(f"{position - start} bytes went into a path whose reader reads nothing")


def reset(sock: socket.socket) -> None:
    """Close with a reset instead of a FIN, whatever is still queued."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def notices_reset(sock: socket.socket, within: float = 1.0) -> None:
    """The connection must be seen to be broken, without a read or a write, in `within` seconds.

    In CLOSE_WAIT the kernel stores EPIPE and otherwise ECONNRESET; both show as POLLERR, a clean
    end never does.
    """
    poller = select.poll()
    poller.register(sock, 0)  # POLLERR and POLLHUP are reported whether asked for or not
    events = dict(poller.poll(within * 1000)).get(sock.fileno(), 0)
    if not events & select.POLLERR:
        seen = "a clean end" if events else "nothing"
        raise Violation(f"the peer's reset was not passed on within {within} s: {seen} seen")


def expect_broken(sock: socket.socket, within: float = 1.0) -> None:
    """As notices_reset, for a side whose unread bytes don't matter: then nothing more comes."""
    notices_reset(sock, within)
    sock.setblocking(False)
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(MIB):
            pass


def together(*jobs: Callable[[], Any], patience: float = 40.0) -> list[Any]:
    """Run the jobs at once, each in a thread; return their results, raise the first failure."""
    results: list[Any] = [None] * len(jobs)
    failures: list[BaseException] = []

    def run(index: int, job: Callable[[], Any]) -> None:
        try:
            results[index] = job()
        except BaseException as error:  # handed to the test's own thread below
            failures.append(error)

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(jobs)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if failures:
        raise failures[0]
    if any(thread.is_alive() for thread in threads):
        raise Violation(f"{len(jobs)} jobs at once did not end within {patience} s")
    return results


def eventually(
    condition: Callable[[], Any], what: str | Callable[[], str], *, within: float = PATIENCE
) -> Any:
    """Poll until the condition is true and return its value; a Violation names what never came.

    For states that have no event to wait for: another process's descriptors, an entry in /proc.
    """
    deadline = time.monotonic() + within
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            told = what if isinstance(what, str) else what()
            raise Violation(f"{told}: not within {within:g} s")
        time.sleep(0.005)


def close_all(sockets: Sequence[socket.socket]) -> None:
    """Close quietly; closing twice is no error."""
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.close()
