# SPDX-License-Identifier: GPL-2.0-or-later
"""Which ports a direction may come to use, by the options."""

from __future__ import annotations

import pytest

from hardsplice.app.allowed_ports import MANY_PORTS, connected_to, listened_on
from hardsplice.app.command_line import parse_args
from hardsplice.app.options import Options
from hardsplice.model.direction import Direction
from hardsplice.model.protocol import Protocol


def parse(*argv: str) -> Options:
    return parse_args(argv, ephemeral=lambda: (32768, 60999))


@pytest.mark.parametrize(
    ("argv", "connect", "listen"),
    [
        ((), set(), set()),
        (("-t", "8080:80,8443:443"), {80, 443}, set()),
        (("-t", "auto,1000-1001:80-81"), {80, 81}, {1000, 1001}),
        (("-t", "auto,1000-1001:80-81", "-t", "90"), {80, 81, 90}, {1000, 1001}),
        (("-t", "auto"), None, None),
        (("-t", f"auto,1-{MANY_PORTS}"), set(range(1, MANY_PORTS + 1)), {*range(1, 4097)}),
        (("-t", f"auto,1-{MANY_PORTS + 1}"), None, None),
        (("-t", f"1-{MANY_PORTS + 1}"), {*range(1, MANY_PORTS + 2)}, set()),  # each was asked for
        (("-T", "auto"), set(), set()),
    ],
)
def test_what_the_options_limit(
    argv: tuple[str, ...], connect: set[int] | None, listen: set[int] | None
) -> None:
    options = parse(*argv)
    assert connected_to(options, Direction.INBOUND) == connect
    assert listened_on(options, Direction.INBOUND) == listen


def test_where_any_port_may_be_asked_for_nothing_is_limited() -> None:
    options = parse("-t", "auto,80")._replace(
        any_port=frozenset(((Direction.INBOUND, Protocol.TCP),))
    )
    assert connected_to(options, Direction.INBOUND) is None
    assert listened_on(options, Direction.INBOUND) is None
    assert connected_to(options, Direction.OUTBOUND) == frozenset()
