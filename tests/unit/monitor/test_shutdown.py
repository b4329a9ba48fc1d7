# SPDX-License-Identifier: GPL-2.0-or-later
"""What the namespace monitor is told when all is to end."""

from __future__ import annotations

import pytest

from hardsplice.ipc.messages import Kind, MalformedError, Record, decode, encode
from hardsplice.monitor.shutdown import orders, stored_ports


@pytest.mark.parametrize("number", [0, 1, 512, 513, 2000])
def test_however_many_listeners_are_kept_the_namespace_monitor_is_told_all(number: int) -> None:
    """In as many records as it takes, of which the last one says so."""
    kept = list(range(7, 7 + number))
    told = [decode(encode(record)) for record in orders(kept)]
    assert {record.kind for record in told} == {Kind.DRAIN_RELAYS}
    assert [number for record in told for number in stored_ports(record)] == kept
    assert [bool(record.small) for record in told] == [True] * (len(told) - 1) + [False]


def test_what_is_no_list_of_listeners_is_malformed() -> None:
    with pytest.raises(MalformedError):
        stored_ports(Record(Kind.DRAIN_RELAYS, text=b"12345"))
