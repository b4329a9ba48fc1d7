# SPDX-License-Identifier: GPL-2.0-or-later
"""The flow table: one row for each flow of a relay, in memory that the relay shares with monitors.

The relay writes (relay/tcp/flow_writer.py), monitors read, and neither calls the kernel or the
other side. The memory was created before the relay was forked, so the rows of a relay that was
killed are still there, and its monitor closes them: nothing that was counted is lost.

A relay may have been taken over, so nothing in the memory is trusted: a row with an invalid state
is skipped, everything else is a number that is only shown. The same holds for the record of a
flow's end, which is a row followed by the time that the flow took.

The relay writes without a lock. A generation, odd while a flow's bytes are moved to the relay's own
counters, shows a reader that it read at the wrong moment; then it reads again, though not forever,
since the writer may be dead or hostile.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from hardsplice.kernel.record import NamedTuple
from hardsplice.model.protocol import BY_NUMBER, Protocol

ROWS_MAX = 1 << 16  # flows of one relay that are listed; those beyond are counted only
ATTEMPTS = 8  # to read a table that is being changed
# Seconds on CLOCK_MONOTONIC that make sense: it begins at 0, and a machine runs for some centuries
# at the most.
_LAST_SECOND = 2.0**34

# Bytes to the target and to the client, state, the forward's ID, ports of the client and of the
# target, the protocol's number, the start's time in CLOCK_MONOTONIC seconds, addresses of the
# client and of the target.
_ROW = struct.Struct("=QQIIHHB3xd16s16s")
_STATE, _STATE_OFFSET = struct.Struct("=I"), 16
_TARGET_PORT, _TARGET_PORT_OFFSET = struct.Struct("=H"), 26
_STARTED, _STARTED_OFFSET = struct.Struct("=d"), 32
_TARGET, _TARGET_OFFSET = struct.Struct("=16s"), 56
_TAIL = struct.Struct("=d")  # seconds from start to end
WORDS_A_ROW = _ROW.size // 8
RECORD_SIZE = _ROW.size + _TAIL.size
_STATE_WORD = _STATE_OFFSET // 8  # a row whose word here is 0 is free
_STATE_SHIFT = 0 if sys.byteorder == "little" else 32  # the other half is the port's ID
WORD_MASK = 2**64 - 1

Endpoint = tuple[IPv4Address | IPv6Address, int]
Packed = tuple[bytes, int]  # address and port, the address in 16 bytes (socketcalls.endpoint)


def endpoint_text(endpoint: Endpoint) -> str:
    """An address and a port as people write them."""
    address, port = endpoint
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


class State(IntEnum):
    """What a row holds."""

    FREE = 0
    CONNECTING = 1
    ESTABLISHED = 2
    HALF_CLOSED = 3  # one side has sent FIN


class End(IntEnum):
    """How a flow ended."""

    FIN = 0
    CLIENT_RESET = 1
    TARGET_RESET = 2
    REFUSED = 3  # by the target, or on the way to it
    TIMEOUT = 4  # the target did not answer
    LIMIT = 5  # a limit of this machine: no port or no memory was left to connect
    ERROR = 6  # of our own
    RELAY_DIED = 7
    STOPPED = 8  # hardsplice ended
    REMOVED = 9  # its port was removed, and its flows with it
    IDLE = 10  # nothing had moved for --idle-timeout
    JAMMED = 11  # half-closed, and in the way of others
    LOOPBACK = 12  # the loopback interface with the target is down: a monitor finds that out
    EXPIRED = 13  # of datagrams, answered: nothing came for --udp-stream-timeout
    UNANSWERED = 14  # of datagrams: no answer for --udp-timeout
    EVICTED = 15  # of datagrams, unanswered or brief: it made room for another one


_BUSY = frozenset(State) - {State.FREE}
_CONNECTING = State.CONNECTING.value  # it takes time to look that up for each flow


def _state(word: int) -> int:
    return word >> _STATE_SHIFT & 0xFFFFFFFF


class FlowRow(NamedTuple):
    """One flow."""

    port_id: int  # of the forward
    protocol: Protocol
    client: Endpoint
    target: Endpoint  # while connecting the first to be tried
    started: float  # CLOCK_MONOTONIC seconds
    bytes_to_target: int
    bytes_to_client: int
    state: State


class Ended(NamedTuple):
    """One flow's end."""

    flow: FlowRow
    seconds: float
    end: End


_ENDS = frozenset(End)


class InvalidRowError(ValueError):
    """A record of a flow that a correct relay never sends."""


class FlowTable:
    """Rows in a part of the shared words, behind two words for all of them."""

    HEAD_WORDS = 2
    _GENERATION, _USED = 0, 1

    def __init__(self, words: memoryview, first: int) -> None:
        """The table begins at ``first`` and goes on to the end of ``words``."""
        self._words = words
        self._bytes = words.cast("B")
        self._head = first
        self._first = first + self.HEAD_WORDS
        self.capacity = (len(words) - self._first) // WORDS_A_ROW  # rows

    # --- reading ----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[FlowRow]:
        """The flows that there are now."""
        for at, word in self._states():
            if _state(word) in _BUSY:
                row = _read_row(self._bytes[8 * at : 8 * at + _ROW.size])
                if row is not None:
                    yield row

    def states(self) -> dict[str, int]:
        """How many flows are in each state, by its name."""
        counts = {state: 0 for state in State if state in _BUSY}
        for _, word in self._states():
            state = _state(word)
            if state in _BUSY:
                counts[State(state)] += 1
        return {state.name.lower(): count for state, count in counts.items()}

    def _states(self) -> Iterator[tuple[int, int]]:
        """Each row that is used, and the word that has its state."""
        rows = self._in_use()
        words = self._words[rows.start + _STATE_WORD : rows.stop : WORDS_A_ROW]
        return ((at, word) for at, word in zip(rows, words, strict=True) if word)

    def bytes_with(self, others: memoryview) -> tuple[int, int]:
        """Bytes of all flows that there are, and of those counted in ``others``, each way."""
        words = self._words
        to_target = to_client = 0
        for _ in range(ATTEMPTS):
            before = words[self._head + self._GENERATION]
            to_target, to_client = others
            rows = self._in_use()
            to_target += sum(words[rows.start : rows.stop : WORDS_A_ROW])
            to_client += sum(words[rows.start + 1 : rows.stop : WORDS_A_ROW])
            if before % 2 == 0 and before == words[self._head + self._GENERATION]:
                break
        return to_target, to_client

    def _in_use(self) -> range:
        return self.positions(min(self._words[self._head + self._USED], self.capacity))

    def positions(self, number: int | None = None) -> range:
        """Where the rows are, in the shared words: the first so many, or all."""
        end = self._first + (self.capacity if number is None else number) * WORDS_A_ROW
        return range(self._first, end, WORDS_A_ROW)

    # --- writing: the relay, and its supervisor once the relay has ended --------------------------

    def open(
        self, at: int, port_id: int, protocol: int, client: Packed, target: Packed, now: float
    ) -> None:
        """Begin the row at one of ``positions``; ``protocol`` is the kernel's number of it."""
        _ROW.pack_into(
            self._bytes, 8 * at,
            0, 0, _CONNECTING, port_id, client[1], target[1], protocol, now, client[0], target[0],
        )  # fmt: skip
        number = (at - self._first) // WORDS_A_ROW
        if number >= self._words[self._head + self._USED]:
            self._words[self._head + self._USED] = number + 1

    def aim(self, at: int, target: Packed) -> None:
        """Another target is tried."""
        address, port = target
        _TARGET_PORT.pack_into(self._bytes, 8 * at + _TARGET_PORT_OFFSET, port)
        _TARGET.pack_into(self._bytes, 8 * at + _TARGET_OFFSET, address)

    def mark(self, at: int, state: State) -> None:
        """Give a row its new state."""
        _STATE.pack_into(self._bytes, 8 * at + _STATE_OFFSET, state)

    def started(self, at: int) -> float:
        """When a row was begun."""
        (started,) = _STARTED.unpack_from(self._bytes, 8 * at + _STARTED_OFFSET)
        return float(started)

    def close(self, at: int, others: memoryview, now: float) -> bytes:
        """End a row, and count its bytes in ``others`` from now on: the text of the record."""
        words, generation = self._words, self._head + self._GENERATION
        row = bytes(self._bytes[8 * at : 8 * at + _ROW.size])
        seconds = now - self.started(at)
        words[generation] |= 1
        for direction in (0, 1):  # a hostile relay's numbers may be too large for a word
            others[direction] = (others[direction] + words[at + direction]) & WORD_MASK
        words[at] = words[at + 1] = words[at + _STATE_WORD] = 0
        words[generation] = (words[generation] + 1) & WORD_MASK
        return row + _TAIL.pack(seconds)

    def close_all(self, others: memoryview, now: float) -> Iterator[bytes | None]:
        """End the rows that a relay left behind, one per step of the iteration: the text of its
        record, or None for an invalid row.
        """
        for at in [at for at, _ in self._states()]:
            text = self.close(at, others, now)
            yield text if _makes_sense(text) else None
        self._words[self._head + self._USED] = self._words[self._head + self._GENERATION] = 0


def read_record(end: int, text: bytes) -> Ended:
    """A flow's end as a relay, which may have been taken over, reports it; InvalidRowError."""
    if len(text) != RECORD_SIZE:
        raise InvalidRowError(f"{len(text)} bytes are no flow's end")
    row = _read_row(text[: _ROW.size])
    (seconds,) = _TAIL.unpack_from(text, _ROW.size)
    if row is None or not -_LAST_SECOND < seconds < _LAST_SECOND or end not in _ENDS:
        raise InvalidRowError("a flow's end makes no sense")
    return Ended(row, max(0.0, seconds), End(end))


def _makes_sense(text: bytes) -> bool:
    try:
        read_record(End.RELAY_DIED, text)
    except InvalidRowError:
        return False
    return True


def _read_row(raw: bytes | memoryview) -> FlowRow | None:
    """A row in use; None for one that is free or makes no sense."""
    to_target, to_client, state, port_id, *ports, number, started, client, target = _ROW.unpack(raw)
    client_port, target_port = ports
    protocol = BY_NUMBER.get(number)
    if state not in _BUSY or protocol is None:
        return None
    if not 0 <= started < _LAST_SECOND:  # nor if it is no number at all
        return None
    return FlowRow(
        port_id=port_id,
        protocol=protocol,
        client=(_address(client), client_port),
        target=(_address(target), target_port),
        started=started,
        bytes_to_target=to_target,
        bytes_to_client=to_client,
        state=State(state),
    )


def _address(packed: bytes) -> IPv4Address | IPv6Address:
    """An address as it was in the socket: IPv4 is kept as the IPv6 address that it is mapped to."""
    address = IPv6Address(packed)
    return address.ipv4_mapped or address
