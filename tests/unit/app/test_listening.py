# SPDX-License-Identifier: GPL-2.0-or-later
"""Which ports are listened on once the options' are open, and what is told of free ones."""

from __future__ import annotations

import socket

import pytest

from hardsplice.app.free_ports import FreePorts
from hardsplice.app.listening import Listening
from hardsplice.app.options import Options, parse_args
from hardsplice.model.direction import Direction
from hardsplice.monitor.registry import Source


def parse(*words: str) -> Options:
    return parse_args([*words, "--", "true"])


def test_the_ports_of_both_directions_are_numbered_in_one_row() -> None:
    """Those that could not be listened on leave a gap; what was added before a restart says so."""
    listening = Listening(
        parse("-t", "8080:80", "-t", "8443:443", "-T", "5432", "-T", "6379"),
        FreePorts(),
        passed_first=2,
        added_first={Direction.INBOUND: 2, Direction.OUTBOUND: 1},
        opened={Direction.INBOUND: [(1, 10)], Direction.OUTBOUND: [(0, 10), (1, 11)]},
    )
    assert [(one.id, one.direction, one.forward.port, one.source) for one in listening.ports()] == [
        (2, Direction.INBOUND, 8443, Source.OPTION),
        (3, Direction.OUTBOUND, 5432, Source.OPTION),
        (4, Direction.OUTBOUND, 6379, Source.CONTROL),
    ]


def test_a_free_port_has_the_number_of_its_listener() -> None:
    """What was known before stays as it was: each stage has its own."""
    options, before = parse("-t", "8080:81", "-t", "127.0.0.1/0:80"), FreePorts()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        opened = [(0, listener.fileno()), (1, listener.fileno())]
        settled, free = before.settle(options, Direction.INBOUND, opened)
        number = listener.getsockname()[1]
    assert [forward.port for forward in settled.inbound] == [8080, number]
    assert free.chosen == ((Direction.INBOUND, settled.inbound[1]),)
    assert free.as_asked(settled, Direction.INBOUND, 0) == options.inbound[0]
    assert free.as_asked(settled, Direction.INBOUND, 1) == options.inbound[1]
    assert before == FreePorts()
    assert options.inbound[1].port == 0


@pytest.mark.parametrize("direction", Direction)
def test_other_forwards_of_a_direction(direction: Direction) -> None:
    options = parse("-t", "8080:80", "-T", "5432")
    changed = options.with_forwards(direction, ())
    assert changed.forwards(direction) == ()
    assert changed.forwards(direction.opposite) == options.forwards(direction.opposite)
