# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared memory: a relay that was taken over can write anything there, and every reader lives with
it; what monitors count is out of its reach, and so is what belongs to other relays.
"""

from __future__ import annotations

import json
import os
import random
import struct
import time
from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hardsplice.control.host import HostWorld
from hardsplice.control.http import Request, Response
from hardsplice.control.report import FLOWS_SHOWN
from hardsplice.ctl import show, top
from hardsplice.model.direction import Direction
from hardsplice.model.protocol import Protocol
from hardsplice.telemetry import flow_log
from hardsplice.telemetry.counters import (
    ACCEPTED,
    COUNTERS,
    KEPT,
    UNLOGGED,
    Stats,
    count_latency,
)
from hardsplice.telemetry.flow_log import FlowLog, Traffic
from hardsplice.telemetry.flow_table import WORDS_A_ROW, FlowTable
from hardsplice.telemetry.log import Level, Log
from tests.support.tables import LARGEST, full_of_noise
from tests.unit.control.fake_host import world_of
from tests.unit.relay.fake_kernel import FakeKernel

ROWS = 4
WORDS = len(Stats(ROWS).count)


def both_ways(stats: Stats) -> HostWorld:
    """A host monitor with one relay each way, both with this memory."""
    return world_of([Traffic(direction, [stats]) for direction in Direction])


def ask(world: HostWorld, path: str) -> str:
    answers: list[Response] = []
    world.handle(Request("GET", path, "", b"", True), answers.append)
    (answer,) = answers
    assert answer.status == 200, answer.body
    return answer.body.decode()


def no_number(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def read_rows(stats: Stats) -> None:
    """What both monitors and the control socket's clients read of flows."""
    world = both_ways(stats)
    status, flows = (
        json.loads(ask(world, path), parse_constant=no_number)
        for path in ("/v1/status", "/v1/flows")
    )
    assert len(flows["flows"]) <= FLOWS_SHOWN
    for text in (show.status(status), show.flows(flows)):
        assert all(len(line) < 1000 for line in text)
    samples = [top.Sample(at, status, flows) for at in (1.0, 2.0)]
    assert len(top.frame(samples[0], samples[1], 80, 24)) <= 24


def read_everything(stats: Stats) -> None:
    """All that they read. Metrics have nothing of flows that the status doesn't have."""
    read_rows(stats)
    metrics = show.metrics(ask(both_ways(stats), "/metrics"))
    assert metrics
    assert all(isinstance(one["value"], float) for one in metrics)


def read_the_log(stats: Stats, capfd: pytest.CaptureFixture[str] | None = None) -> None:
    """The end of everything."""
    log = FlowLog(Log(Level.ERROR), [Traffic(Direction.INBOUND, [stats])], lambda *_: "a port")
    log._say_missed((Direction.INBOUND, Protocol.TCP))
    log.finish()
    if capfd:
        assert all(len(line) < 1000 for line in capfd.readouterr().err.splitlines())


doubles = st.floats().map(lambda number: struct.unpack("=Q", struct.pack("=d", number))[0])
rows = st.tuples(
    st.sampled_from([0, 1, LARGEST]) | st.integers(0, LARGEST),
    st.sampled_from([0, 1, LARGEST]),
    st.sampled_from([0, 1, 2, 3, 4, LARGEST]) | st.integers(0, LARGEST),
    st.integers(0, LARGEST),
    doubles,
    *[st.integers(0, LARGEST)] * 4,
)
tables = st.lists(rows, min_size=ROWS, max_size=ROWS).map(lambda some: sum(some, ()))
heads = st.tuples(*[st.sampled_from([0, 1, 3, ROWS, LARGEST])] * FlowTable.HEAD_WORDS)
# What hypothesis makes byte by byte takes it longer than all that reads it.
noise = st.integers(0, 2**32).map(lambda seed: random.Random(seed).randbytes(8 * WORDS))


def written(stats: Stats, data: bytes, end: Iterable[int] = ()) -> None:
    """A relay has written this, and ``end`` behind it."""
    words = memoryview(data).cast("Q").tolist()
    tail = list(end)
    words[len(words) - len(tail) :] = tail
    for at, word in enumerate(words):
        stats.count[at] = word


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Lines of the log go nowhere: there are thousands."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    yield
    os.dup2(saved, 2)
    os.close(saved)
    os.close(nowhere)


@given(noise, st.tuples(heads, tables).map(lambda both: (*both[0], *both[1])))
@example(b"\xff" * 8 * WORDS, ())
@example(bytes(8 * WORDS), ())
def test_whatever_a_relay_writes_every_reader_lives_with_it(data: bytes, end: Any) -> None:
    for more in (end, ()):
        stats = Stats(ROWS)
        written(stats, data, more)
        read_everything(stats)
        assert stats.kept.tolist() == [0] * len(KEPT)
        written(stats, data, more)
        for _ in cast(FlowTable, stats.flows).close_all(stats.count, time.monotonic()):
            read_rows(stats)  # another one writes meanwhile
        written(stats, data, more)
        read_the_log(stats)


def test_of_a_table_that_is_larger_than_an_answer_the_first_rows_are_shown() -> None:
    rows = 4 * FLOWS_SHOWN
    stats = full_of_noise(rows)
    assert stats.flows is not None
    assert len(list(stats.flows)) == rows
    read_everything(stats)


def test_the_end_waits_for_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be written in time is counted, and hardsplice ends."""
    stats = Stats(ROWS)
    assert stats.flows is not None
    for at in stats.flows.positions():
        stats.flows.open(at, 1, Protocol.TCP.number, (bytes(16), 1), (bytes(16), 2), 1.0)
    said: list[str] = []
    log = Log(Level.WARNING)
    monkeypatch.setattr(log, "write", lambda level, text, fields: said.append(text))
    clock = FakeKernel()
    monkeypatch.setattr(time, "monotonic", lambda: clock.clock)

    def where(*_: object) -> str:
        clock.clock += flow_log.FINISH_SECONDS
        return "a port"

    FlowLog(log, [Traffic(Direction.INBOUND, [stats])], where).finish()
    lines = [line for line in said if "broken off" in line]
    assert 0 < len(lines) < ROWS
    assert said[-1].startswith(f"inbound: {ROWS - len(lines)} ends of flows are not in the log")


def test_a_relay_that_counts_wildly_is_no_reason_to_stop_telling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stats, said = Stats(ROWS), list[str]()
    log = Log(Level.WARNING)
    monkeypatch.setattr(log, "write", lambda level, text, fields: said.append(text))
    flows = FlowLog(log, [Traffic(Direction.INBOUND, [stats])], lambda *_: "a port")
    for count in (LARGEST, 0, LARGEST, 5):
        stats.count[UNLOGGED] = count
        flows._say_missed((Direction.INBOUND, Protocol.TCP), at_last=True)
    assert len(said) == 1


# --- what a relay leaves behind ---


@pytest.mark.parametrize("rows", [0, ROWS])
def test_a_relay_s_successor_begins_with_nothing_and_its_counts_are_kept(rows: int) -> None:
    stats = Stats(rows)
    for at in range(len(COUNTERS)):
        stats.count[at] = at + 1
    count_latency(stats.count, 0.0002)
    stats.gauges()[0] = 7
    before, waited = stats.snapshot(), stats.connect_latency()
    stats.begin_anew()
    assert not any(stats.count)
    assert (stats.snapshot(), stats.connect_latency()) == (before, waited)
    assert stats.in_use()["pipes_open"] == 0
    for _ in range(2):
        stats.count[ACCEPTED] += 1
        stats.begin_anew()
    assert stats.snapshot()["accepted"] == before["accepted"] + 2
    assert stats.unreported() == before["unlogged"]


@pytest.mark.parametrize("rows", [0, ROWS])
def test_whatever_a_relay_leaves_its_successors_can_count(rows: int) -> None:
    stats = Stats(rows)
    for _ in range(3):
        for at in range(len(stats.count)):
            stats.count[at] = LARGEST
        for _ in () if stats.flows is None else stats.flows.close_all(stats.count, 1.0):
            pass
        stats.begin_anew()
        head = len(stats.count) if stats.flows is None else stats.flows.positions().start
        assert not any(stats.count[:head])
        for at in range(len(COUNTERS)):
            stats.count[at] += 1
        count_latency(stats.count, 0.0)
        assert all(0 <= count <= LARGEST for count in stats.snapshot().values())


def test_rows_lie_where_words_say() -> None:
    table = Stats(ROWS).flows
    assert table is not None
    assert len(table.positions()) == table.capacity == ROWS
    assert table.positions().step == WORDS_A_ROW
