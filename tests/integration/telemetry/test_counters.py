# SPDX-License-Identifier: GPL-2.0-or-later
"""Which process has which counters in its memory, and how long a hostile table can take."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
from collections.abc import Callable

from hardsplice.telemetry.counters import (
    RESTARTS,
    Stats,
    shared_with_monitor,
)
from hardsplice.telemetry.flow_table import ROWS_MAX
from tests.support.tables import full_of_noise

NOTHING = contextlib.nullcontext()
ROWS = 4


# --- whose memory it is ---


def fork(
    what: Callable[[], object], shared: contextlib.AbstractContextManager[None] = NOTHING
) -> int:
    """How a child ended that is forked while this is shared and does that: a signal's number,
    negative, or its status.
    """
    with shared:
        pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            what()
            os._exit(0)
        os._exit(1)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


def test_a_relay_has_its_own_memory_and_no_other() -> None:
    ours, other = Stats(ROWS), Stats(ROWS)

    def of(stats: Stats) -> Callable[[], None]:
        def write() -> None:
            stats.count[0] = 7

        return write

    def keep() -> None:
        ours.kept[RESTARTS] = 7

    assert fork(of(ours), ours.shared()) == 0
    assert fork(of(other), ours.shared()) == -signal.SIGSEGV
    assert fork(keep, ours.shared()) == -signal.SIGSEGV
    assert fork(of(ours)) == -signal.SIGSEGV, "nor has any other process"
    assert (ours.count[0], other.count[0], ours.kept[RESTARTS]) == (7, 0, 0)


def test_a_monitor_has_what_its_relays_have_and_a_page_with_the_host_monitor() -> None:
    kept, other = (Stats(ROWS), Stats(ROWS)), Stats(ROWS)

    def monitor() -> None:
        for stats in kept:
            stats.count[0] = stats.kept[RESTARTS] = 7
        assert fork(lambda: kept[0].count.__setitem__(1, 8), kept[0].shared()) == 0
        assert fork(lambda: kept[0].kept[0], kept[0].shared()) == -signal.SIGSEGV
        assert fork(lambda: kept[1].count[0], kept[0].shared()) == -signal.SIGSEGV
        assert fork(lambda: other.count[0]) == -signal.SIGSEGV
        assert other.snapshot()  # which ends this process, too

    assert fork(monitor, shared_with_monitor(kept)) == -signal.SIGSEGV
    assert [(stats.count[0], stats.kept[RESTARTS]) for stats in kept] == [(7, 7)] * 2
    assert kept[0].count[1] == 8
    assert kept[0].snapshot()["restarts"] == 7


# --- what a hostile relay leaves there ---


def test_a_table_of_the_largest_size_costs_no_more_than_its_rows() -> None:
    """Whatever the relay says of how many are used, and however long it says that it is writing."""
    stats = full_of_noise(ROWS_MAX)
    flows = stats.flows
    assert flows is not None
    assert sum(flows.states().values()) == ROWS_MAX
    closed = sum(1 for _ in flows.close_all(stats.count, 2.0))
    assert closed == ROWS_MAX
    assert list(flows.close_all(stats.count, 2.0)) == []
