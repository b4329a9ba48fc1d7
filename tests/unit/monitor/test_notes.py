# SPDX-License-Identifier: GPL-2.0-or-later
"""The lines that a relay's notes become."""

from __future__ import annotations

import errno

import pytest

from hardsplice.ipc.messages import Note
from hardsplice.model.direction import Direction
from hardsplice.model.protocol import Protocol
from hardsplice.monitor.notes import in_words

TCP = (Direction.INBOUND, Protocol.TCP)
UDP = (Direction.OUTBOUND, Protocol.UDP)
ABOUT_A_PORT = {
    Note.REFUSED, Note.TIMED_OUT, Note.ERROR, Note.OPENED, Note.ENDED, Note.LOOPBACK
}  # fmt: skip


def line(group: tuple[Direction, Protocol], kind: int) -> str:
    return in_words(group, "port 80", kind, errno.EMFILE, b"text")[1]


@pytest.mark.parametrize("kind", [*Note, 255], ids=str)
def test_a_note_that_is_about_no_port_names_its_relay_s_direction_and_protocol(kind: int) -> None:
    """A port's name has the protocol in it."""
    of_tcp, of_udp = line(TCP, kind), line(UDP, kind)
    if kind in ABOUT_A_PORT:
        assert of_tcp.startswith("inbound, port 80: ")
        assert of_udp.startswith("outbound, port 80: ")
    else:
        assert of_tcp.startswith("inbound: ")
        assert of_udp.startswith("outbound UDP: ")


def test_only_tcp_has_connections() -> None:
    assert line(TCP, Note.DIED) == "inbound: a relay ended before its connections did: text"
    assert line(UDP, Note.DIED) == "outbound UDP: a relay ended before its flows did: text"
