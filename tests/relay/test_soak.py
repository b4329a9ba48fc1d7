# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections by the thousand, ended in every way: what they used is given back.

The short form is part of an everyday run; `make soak` runs the long one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.paths import Ends, Lane
from tests.support.product import Instance, free_ports
from tests.support.stream import (
    Stream,
    Violation,
    eventually,
    expect,
    expect_end,
    finish,
    notices_reset,
    reset,
    send,
    together,
)

Launch = Callable[..., Instance]
WORKERS = 8
GROWTH = 1024  # KiB that a process may be larger after so many connections: arenas, not leaks


def clean(lane: Lane) -> None:
    """Request, answer, end."""
    client, server = lane.pair()
    there, back = Stream(), Stream()
    send(client, there, 300)
    expect(server, there, 300)
    send(server, back, 3000)
    server.close()
    expect_end(client, back, 3000)


def half_closed(lane: Lane) -> None:
    """The answer comes after the request's end."""
    client, server = lane.pair()
    there, back = Stream(), Stream()
    send(client, there, 20_000)
    finish(client)
    expect_end(server, there, 20_000)
    send(server, back, 20_000)
    finish(server)
    expect_end(client, back, 20_000)


def reset_by_client(lane: Lane) -> None:
    client, server = lane.pair()
    send(client, Stream(), 500)
    reset(client)
    notices_reset(server)


def reset_by_server(lane: Lane) -> None:
    client, server = lane.pair()
    send(client, Stream(), 500)
    reset(server)
    notices_reset(client)


def reset_into_full_path(lane: Lane) -> None:
    """With bytes left in a pipe."""
    client, server = lane.pair()
    client.setblocking(False)
    stream, position = Stream(), 0
    with contextlib.suppress(BlockingIOError):
        while position < 64 << 20:
            position += client.send(stream.at(position, 1 << 18))
    reset(client)
    notices_reset(server, within=5)  # what counts here is that it ends; contract.py says how soon


def urgent(lane: Lane) -> None:
    client, server = lane.pair()
    client.send(b"!", socket.MSG_OOB)
    finish(client)
    with contextlib.suppress(ConnectionResetError):
        while server.recv(100):
            pass


def refused(lane: Lane) -> None:
    with contextlib.suppress(ConnectionResetError):  # so soon that connect() sees it
        notices_reset(lane.client())


WAYS_TO_END = (clean,) * 12 + (half_closed, reset_by_client, reset_by_server, urgent)


@dataclass(frozen=True)
class Footprint:
    """What an instance holds on to; descriptors only where root may count them."""

    processes: tuple[int, ...]
    descriptors: dict[int, int]
    pipes: dict[int, int]
    resident: dict[int, int]

    @classmethod
    def of(cls, instance: Instance) -> Footprint:
        processes = instance.processes()
        seen = processes if os.geteuid() == 0 else []
        open_now = {pid: list(procfs.descriptors(pid).values()) for pid in seen}
        return cls(
            tuple(processes),
            {pid: len(found) for pid, found in open_now.items()},
            {pid: "".join(found).count("pipe:") for pid, found in open_now.items()},
            {pid: procfs.resident(pid) for pid in processes},
        )


def _churn(lanes: list[Lane], missing: Lane, number: int) -> None:
    """Make so many connections through the lanes, a worker each."""

    def work(lane: Lane) -> None:
        kinds = itertools.cycle(WAYS_TO_END)
        for count in range(number // len(lanes)):
            if count % 97 == 96:
                reset_into_full_path(lane)
            elif count % 31 == 30 and lane is lanes[0]:
                refused(missing)
                missing.close()
            else:
                next(kinds)(lane)
            lane.close_connections()

    together(*(partial(work, lane) for lane in lanes), patience=900)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(5000, marks=pytest.mark.timeout(180)),
        pytest.param(50_000, marks=[pytest.mark.soak, pytest.mark.timeout(1200)]),
    ],
)
def test_nothing_grows(
    namespace: Namespace, identity: Identity, launch: Launch, number: int
) -> None:
    """Processes are the same, descriptors and pipes as many, memory as large as after a warm-up."""
    inward, outward = free_ports(WORKERS + 1), free_ports(WORKERS)
    last = WORKERS
    instance = launch(
        identity, "-f",
        "-t", f"127.0.0.1/{inward}-{inward + last}:30000-{30000 + last}",
        "-T", f"[::1]/20000-{20000 + WORKERS - 1}:{outward}-{outward + WORKERS - 1}",
        str(namespace.pid),
    ).wait_ready()  # fmt: skip
    four, six = socket.AF_INET, socket.AF_INET6
    with contextlib.ExitStack() as stack:
        lanes = [
            Lane(Ends(four, inward + n, 30_000 + n, server_side=namespace.socket), list)
            if n % 2
            else Lane(Ends(six, 20_000 + n, outward + n, client_side=namespace.socket), list)
            for n in range(WORKERS)
        ]
        missing = Lane(Ends(four, inward + last, 30_000 + last), list)
        for lane in (*lanes, missing):
            stack.callback(lane.close)
        for lane in lanes:
            lane.listen()
        _churn(lanes, missing, 1000)
        procfs.settle(instance.processes())
        before = Footprint.of(instance)
        _churn(lanes, missing, number)
        _compare(instance, before)


def _compare(instance: Instance, before: Footprint) -> None:
    def no_more() -> bool:
        now = Footprint.of(instance)
        return now.processes == before.processes and all(
            now.descriptors[pid] <= before.descriptors[pid] and now.pipes[pid] <= before.pipes[pid]
            for pid in before.descriptors
        )

    eventually(no_more, lambda: f"before: {before}; after: {Footprint.of(instance)}", within=5)
    after = Footprint.of(instance)
    grown = {
        pid: after.resident[pid] - size
        for pid, size in before.resident.items()
        if after.resident[pid] - size > GROWTH
    }
    if grown:
        raise Violation(f"resident memory grew by {grown} KiB: {before} {after}")
