# SPDX-License-Identifier: GPL-2.0-or-later
"""Which ports are listened on once the options' are open, and what is told of free ones."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address

from hardsplice.app.command_line import parse_args
from hardsplice.app.listening import Listening
from hardsplice.app.options import Options
from hardsplice.model.direction import Direction
from hardsplice.model.families import IPV4
from hardsplice.model.forward import Forward, Origin, Source
from hardsplice.net.listeners import Bound, open_listeners


def parse(*words: str) -> Options:
    return parse_args([*words, "--", "true"])


def test_the_ports_of_both_directions_are_numbered_in_one_row() -> None:
    """Those that could not be listened on leave a gap; what was added before a restart says so."""
    options = parse("-t", "8080:80", "-t", "8443:443", "-T", "5432", "-T", "6379")
    assert options.next_number == 5
    _, inbound = options.inbound
    outbound = options.outbound
    added = outbound[0]._replace(port=1, source=Source.CONTROL, id=options.next_number)
    options = options.adding([added])
    listening = Listening(
        options,
        {
            Direction.INBOUND: [Bound(inbound, 10)],
            Direction.OUTBOUND: [Bound(one, fd) for fd, one in enumerate(options.outbound, 10)],
        },
    )
    assert [(one.id, one.direction, one.port, one.source) for one in listening.ports()] == [
        (2, Direction.INBOUND, 8443, Source.OPTION),
        (3, Direction.OUTBOUND, 5432, Source.OPTION),
        (4, Direction.OUTBOUND, 6379, Source.OPTION),
        (5, Direction.OUTBOUND, 1, Source.CONTROL),
    ]
    assert options.next_number == 6


def test_a_free_port_has_the_number_of_its_listener() -> None:
    """What was known before stays as it was."""
    options = parse("-t", "127.0.0.1/0:80", "-t", "127.0.0.1/0:81")
    first, second = open_listeners(options.inbound, (IPV4,))
    with socket.socket(fileno=first.fd) as one, socket.socket(fileno=second.fd) as other:
        numbers = [each.getsockname()[1] for each in (one, other)]
    listening = Listening(options, {Direction.INBOUND: [first, second]})
    assert [each.port for each in listening.free()] == numbers
    assert [each._replace(port=0) for each in listening.free()] == list(options.inbound)
    assert [each.port for each in options.inbound] == [0, 0]


def test_what_was_not_asked_for_as_any_port_is_no_free_one() -> None:
    (option,) = parse("-t", "8080:80").inbound
    added = option._replace(id=2, origin=Origin.FREE, source=Source.CONTROL)
    opened = {Direction.INBOUND: [Bound(option, 10), Bound(added, 11)]}
    assert Listening(parse(), opened).free() == []


def test_more_forwards_go_to_their_directions() -> None:
    options = parse("-t", "8080:80", "-T", "5432")
    more = [
        Forward(direction, IPv4Address("127.0.0.1"), None, 1, None, 2, required=True, id=number)
        for number, direction in enumerate(Direction, options.next_number)
    ]
    both = options.adding(more)
    for direction, one in zip(Direction, more, strict=True):
        assert both.forwards(direction) == (*options.forwards(direction), one)
