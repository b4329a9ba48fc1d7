# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of flows: empty ones, and those that a hostile relay has filled."""

from __future__ import annotations

import random
import struct

from hardsplice.model.protocol import Protocol
from hardsplice.telemetry.counters import Stats
from hardsplice.telemetry.flow_table import FlowTable, State

LARGEST = 2**64 - 1


def empty(rows: int = 4) -> tuple[Stats, FlowTable]:
    """A relay's counters, and the table of so many rows that is behind them."""
    stats = Stats(rows)
    assert stats.flows is not None
    return stats, stats.flows


def full_of_noise(rows: int) -> Stats:
    """A table with so many rows, all in use, of which more are said to be used than there are, and
    which is being written for ever.
    """
    stats, flows = empty(rows)
    data = bytearray(random.Random(7).randbytes(8 * len(stats.count)))
    for at in flows.positions():  # those that can't be told from flows cost most
        row = State.ESTABLISHED, Protocol.TCP.number, 1.0
        struct.pack_into("=I8xB3xd", data, 8 * at + 16, *row)
    stats.count[:] = memoryview(data).cast("Q")
    head = flows.positions().start - FlowTable.HEAD_WORDS
    stats.count[head], stats.count[head + 1] = LARGEST, LARGEST
    return stats
