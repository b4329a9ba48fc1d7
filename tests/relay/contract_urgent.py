# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract's part on urgent data (MSG_OOB), which stalls every forwarder that ignores it.

Acceptable:
- the urgent byte is announced and delivered as urgent data at its place in the stream, to a
  receiver that takes it inline (SO_OOBINLINE) as to one that takes it aside (recv with MSG_OOB);
  all ordinary bytes arrive in order, then the end;
- through a forwarder only: the flow is reset, after a prefix of that.

TCP keeps one urgent byte at a time. When a second comes before the first was taken, the first may
stand in the stream as an ordinary byte, or be left out, as the kernels on the way have it.

Not acceptable: a stall, a spin, a clean end before the last byte, the byte in a wrong place.
"""

from __future__ import annotations

import array
import fcntl
import itertools
import select
import socket
import time
from dataclasses import dataclass, field
from typing import Literal

from tests.relay.contract import SIDES, SMALL_BUFFER, Side, case, sides
from tests.support.paths import Lane
from tests.support.stream import MIB, Stream, Violation, expect, fill, finish, send, together

Mode = Literal["inline", "aside"]
MODES: tuple[Mode, Mode] = ("inline", "aside")
Script = tuple[int | bytes | None, ...]
"""What is sent: so many ordinary bytes, an urgent byte, or (None) FIN."""

SCRIPTS: dict[str, Script] = {
    "alone": (b"!",),
    "first": (b"!", 100),
    "middle": (1000, b"!", 1000, None),
    "middle of much": (MIB, b"!", MIB, None),
    "before fin": (1000, b"!", None),
    "only, then fin": (b"!", None),
    "two": (100, b"!", b"?", 100, None),
    "two apart": (100, b"!", 100, b"?", 100, None),
    "three apart": (50_000, b"!", 50_000, b"?", 50_000, b"#", 50_000, None),
}
STALLED = 5.0  # seconds
_SIOCATMARK = 0x8905  # asm-generic/sockios.h; other values on mips, parisc and sparc only


def play(lane: Lane, sock: socket.socket, script: Script, stream: Stream, start: int = 0) -> None:
    """Send what the script says; ordinary bytes are the stream's from `start` on.

    A forwarder may have reset the flow before the script is through; what its receiver saw decides.
    """
    try:
        for item in script:
            if item is None:
                finish(sock)
            elif isinstance(item, bytes):
                sock.send(item, socket.MSG_OOB)
            else:
                send(sock, stream, item, start=start)
                start += item
    except (ConnectionError, Violation):
        if not lane.spliced:
            raise


@dataclass
class Heard:
    """What a receiver saw: ordinary bytes, where marks stood among them, urgent bytes, the end."""

    ordinary: bytearray = field(default_factory=bytearray)
    marks: list[int] = field(default_factory=list)
    urgent: bytearray = field(default_factory=bytearray)
    end: Literal["open", "fin", "reset"] = "open"

    def complete(self, script: Script) -> bool:
        """Whether nothing more can come of this script."""
        if self.end != "open":
            return True
        ordinary = sum(item for item in script if isinstance(item, int))
        return None not in script and len(self.ordinary) >= ordinary and bool(self.urgent)


def at_mark(sock: socket.socket) -> bool:
    """SIOCATMARK: whether the next byte to read is the urgent one."""
    answer = array.array("i", [0])
    fcntl.ioctl(sock, _SIOCATMARK, answer)
    return bool(answer[0])


def listen_to(sock: socket.socket, script: Script, mode: Mode, heard: Heard | None = None) -> Heard:
    """Receive as a program does that knows about urgent data."""
    heard = heard or Heard()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, int(mode == "inline"))
    # Before a recv with a timeout CPython polls for POLLIN; an urgent byte alone is POLLPRI.
    timeout = sock.gettimeout()
    sock.setblocking(False)
    poller = select.poll()
    poller.register(sock, select.POLLIN | select.POLLPRI)
    deadline = time.monotonic() + STALLED
    while not heard.complete(script):
        ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            raise Violation(
                f"stalled: {len(heard.ordinary)} ordinary bytes, urgent {bytes(heard.urgent)!r}"
            )
        try:
            if _take(sock, mode, ready[0][1], heard):
                deadline = time.monotonic() + STALLED
        except ConnectionResetError:
            heard.end = "reset"
    sock.settimeout(timeout)
    return heard


def _take(sock: socket.socket, mode: Mode, events: int, heard: Heard) -> bool:
    """Receive once, or twice; return whether anything new was learnt."""
    known = len(heard.ordinary), len(heard.marks), len(heard.urgent), heard.end
    if mode == "aside" and events & select.POLLPRI:
        heard.urgent += _take_aside(sock)
    if events & ~select.POLLPRI:
        marked = at_mark(sock)
        if marked and (not heard.marks or heard.marks[-1] != len(heard.ordinary)):
            heard.marks.append(len(heard.ordinary))
        data = sock.recv(1 if marked and mode == "inline" else 65_536)
        if not data:
            heard.end = "fin"
        elif marked and mode == "inline":
            heard.urgent += data
        else:
            heard.ordinary += data
    elif mode == "aside" and at_mark(sock) and heard.marks[-1:] != [len(heard.ordinary)]:
        heard.marks.append(len(heard.ordinary))
    return known != (len(heard.ordinary), len(heard.marks), len(heard.urgent), heard.end)


def _take_aside(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1, socket.MSG_OOB)
    except ConnectionResetError:
        raise
    except OSError:  # EINVAL: taken already; EAGAIN: announced, not yet here
        return b""


def outcomes(script: Script, stream: Stream, *, start: int = 0) -> list[tuple[bytes, int]]:
    """The acceptable ordinary bytes, and the place of the last mark among them."""
    urgent = [index for index, item in enumerate(script) if isinstance(item, bytes)]
    found = []
    for kept in itertools.product((False, True), repeat=len(urgent) - 1):
        ordinary, mark, position = bytearray(), 0, start
        for index, item in enumerate(script):
            if index == urgent[-1]:
                mark = len(ordinary)
            elif isinstance(item, bytes):
                ordinary += item * kept[urgent.index(index)]
            elif item is not None:
                for at in range(position, position + item, MIB):
                    ordinary += stream.at(at, min(MIB, position + item - at))
                position += item
        found.append((bytes(ordinary), mark))
    return found


def judge(lane: Lane, heard: Heard, script: Script, stream: Stream, *, start: int = 0) -> None:
    """Raise a Violation unless what was heard is acceptable."""
    possible = outcomes(script, stream, start=start)
    ordinary = bytes(heard.ordinary)
    if heard.end == "reset" and lane.spliced:
        if not any(whole.startswith(ordinary) for whole, _ in possible):
            raise Violation("wrong bytes before the reset")
        return
    if heard.end != ("fin" if None in script else "open"):
        raise Violation(f"{len(ordinary)} bytes and then {heard.end}")
    places = {mark for whole, mark in possible if whole == ordinary}
    if not places:
        raise Violation(f"wrong ordinary bytes: {len(ordinary)}, expected {len(possible[0][0])}")
    last = [item for item in script if isinstance(item, bytes)][-1]
    if heard.urgent[-1:] != last:
        raise Violation(f"urgent {bytes(heard.urgent)!r}, expected {last!r} last")
    if not heard.marks or heard.marks[-1] not in places:
        raise Violation(f"urgent mark after {heard.marks} bytes, expected after {places}")


def urgent(lane: Lane, by: Side, name: str, mode: Mode) -> None:
    """The script, and that the other direction still works while and after."""
    one, other = sides(lane, by)
    script, stream = SCRIPTS[name], Stream()
    _, heard = together(
        lambda: play(lane, one, script, stream), lambda: listen_to(other, script, mode)
    )
    judge(lane, heard, script, stream)
    if heard.end == "reset":
        return
    back = Stream()
    send(other, back, 1000)
    expect(one, back, 1000)


def urgent_untaken(lane: Lane, by: Side, name: str) -> None:
    """Nobody reads: whatever waits, waits asleep. Then it is all there."""
    one, other = sides(lane, by)
    script, stream = SCRIPTS[name], Stream()
    play(lane, one, script, stream)
    lane.assert_quiet()
    judge(lane, listen_to(other, script, "aside"), script, stream)


def urgent_while_blocked(lane: Lane, by: Side, mode: Mode) -> None:
    """The path is full when the urgent byte is sent; the reader comes a second later."""
    one, other = sides(lane, by, buffer=SMALL_BUFFER)
    stream = Stream()
    sent = fill(one, stream)
    before: Script = (sent,)
    script: Script = (100_000, b"!", 100_000, None)
    heard = Heard()

    def read_late() -> Heard:
        lane.assert_quiet()
        return listen_to(other, before + script, mode, heard)

    together(lambda: play(lane, one, script, stream, sent), read_late)
    judge(lane, heard, before + script, stream)


def urgent_into_backlog(lane: Lane, by: Side, mode: Mode) -> None:
    """The way is nearly full when the urgent byte enters it, which waits behind what is held."""
    one, other = sides(lane, by, buffer=SMALL_BUFFER)
    stream = Stream()
    sent = fill(one, stream)
    heard = Heard()
    room = select.poll()
    room.register(one, select.POLLOUT)
    while not room.poll(20):  # ms: room made at this end takes its time to get to the other one
        heard.ordinary += other.recv(MIB // 4)
    assert len(heard.ordinary) < sent, "the way is not full any more"
    script: Script = (sent, b"!", 10, None)
    play(lane, one, script[1:], stream, sent)
    lane.assert_quiet()
    judge(lane, listen_to(other, script, mode, heard), script, stream)


def urgent_early(lane: Lane, mode: Mode) -> None:
    """Sent, and finished, before the server accepts."""
    lane.listen()
    client = lane.client()
    script, stream = SCRIPTS["middle"], Stream()
    play(lane, client, script, stream)
    server = lane.accept()
    judge(lane, listen_to(server, script, mode), script, stream)


for side in SIDES:
    for mode in MODES:
        for name in SCRIPTS:
            case(urgent, side, name, mode)
        case(urgent_while_blocked, side, mode, long=True)
        case(urgent_into_backlog, side, mode, long=True)
    case(urgent_untaken, side, "alone", long=True)
    case(urgent_untaken, side, "middle", long=True)
for mode in MODES:
    case(urgent_early, mode)
