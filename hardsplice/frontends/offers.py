# SPDX-License-Identifier: GPL-2.0-or-later
"""What the programs of engines and the server of their ports tell each other. Pure.

A program connects to the server (SOCK_SEQPACKET) and offers ports, in as many messages as that
takes, with a listener for each one beside them. In the first there may also be a descriptor whose
end of file ends the ports, and a socket at which the container's new address is told. The answer to
the last one is whether all ports are served, or why none is. From then on the connection stands for
the ports: they end with it. When they end by end of file of that descriptor, or because the program
has said something more, whatever it is, the server sends one more message, ENDED; if it hangs up
without, it has ended itself. And it tells each new address of the container's, for whoever serves
the ports next.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from hardsplice.ipc import forwards
from hardsplice.ipc.messages import MalformedError
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError, error_of, text_of
from hardsplice.model.forward import Forward
from hardsplice.model.spec import Address

# Of all this: a program finds servers of its own version only. Where an upgrade changes it, those
# of the old one go on beside the new one's until their containers end.
VERSION = 1
PORTS = 64  # of a message
FDS = PORTS + 2
_HEADER = struct.Struct("=BB")  # what there is besides ports; how many ports
_LAST, _ENDS, _MOVES = 1, 2, 4
SIZE = _HEADER.size + PORTS * forwards.SIZE  # bytes of the longest message

# What an answer begins with; a failure's text follows. FULL: there are no places for so many.
SERVED, FAILED, FULL = b"\0", b"\1", b"\2"
ENDED = b"\n"  # a line, for the shell that waits for it


class Offer(NamedTuple):
    """What a program has served."""

    forwards: Sequence[Forward]
    listeners: Sequence[int]  # one for each
    ends: int | None = None  # its end of file ends the ports
    moves: int | None = None  # a socket that listens for the container's new address
    is_last: bool = True  # of several messages that make one


def encode(offer: Offer) -> Iterator[tuple[bytes, Sequence[int]]]:
    """The messages of an offer, each with the descriptors beside it."""
    for first in range(0, max(1, len(offer.forwards)), PORTS):
        some = offer.forwards[first : first + PORTS]
        flags = _LAST if first + PORTS >= len(offer.forwards) else 0
        fds = [*offer.listeners[first : first + PORTS]]
        for flag, fd in ((_MOVES, offer.moves), (_ENDS, offer.ends)):
            if fd is not None and first == 0:
                flags |= flag
                fds.insert(0, fd)
        yield _HEADER.pack(flags, len(some)) + b"".join(map(forwards.pack, some)), fds


def decode(data: bytes, fds: Sequence[int]) -> Offer:
    """The offer in one message; MalformedError where there is none. The descriptors are the
    caller's to close in either case.
    """
    if len(data) < _HEADER.size:
        raise MalformedError(f"{len(data)} bytes are no offer")
    flags, count = _HEADER.unpack_from(data)
    if flags & ~(_LAST | _ENDS | _MOVES):
        raise MalformedError(f"flags {flags}")
    if len(data) != _HEADER.size + count * forwards.SIZE or count > PORTS:
        raise MalformedError(f"{len(data)} bytes are not {count} ports")
    listeners = [*fds]
    if len(fds) != count + bool(flags & _ENDS) + bool(flags & _MOVES):
        raise MalformedError(f"{len(fds)} descriptors beside {count} ports")
    ends = listeners.pop(0) if flags & _ENDS else None
    moves = listeners.pop(0) if flags & _MOVES else None
    starts = range(_HEADER.size, len(data), forwards.SIZE)
    ports = [forwards.unpack(data[at : at + forwards.SIZE], Direction.INBOUND) for at in starts]
    if any(not port.port or port.interface for port in ports):
        raise MalformedError("a port that has no number, or an interface")
    return Offer(ports, listeners, ends, moves, bool(flags & _LAST))


def moved(address: Address) -> Iterator[bytes]:
    """The messages that tell an address, as a line. A shell reads byte by byte, and with a byte it
    takes a whole message.
    """
    for byte in f"{address}\n".encode():
        yield bytes([byte])


class Answer(NamedTuple):
    """What becomes of an offer."""

    failure: HardspliceError | None = None
    is_full: bool = False  # another server might have places for so many ports

    def encode(self) -> bytes:
        """The message."""
        if self.failure is None:
            return SERVED
        return (FULL if self.is_full else FAILED) + text_of(self.failure)


def answer_of(data: bytes) -> Answer:
    """The answer in a message. MalformedError where it is none."""
    if data == SERVED:
        return Answer()
    if data[:1] not in (FAILED, FULL):
        raise MalformedError("an answer that is none")
    return Answer(error_of(data[1:]), data[:1] == FULL)
