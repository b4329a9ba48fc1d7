# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract catches forwarders that are wrong, each by the case written for its fault.

A right forwarder passes the same cases: what they catch is the fault, not that it is a forwarder.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from tests.relay_udp import (
    contract,
    contract_absence,
    contract_bound,
    contract_segments,
    faulty_forwarder,
)
from tests.support.datagram_paths import PORTS, Ends, Lane
from tests.support.product import free_ports
from tests.support.stream import Violation

PARTS = (contract, contract_absence, contract_bound, contract_segments)  # each enters its cases

CAUGHT_BY = {
    "one-socket": "crowd-reversed",
    "by-client": "two_listeners",
    "zero-ignored": "zero_length-1",
    "zero-ends": "zero_length-2",
    "merged": "singles-neither-alternating",
    "unsplit": "segmented-server-1200-40-0",
    "split-wrongly": "segmented-both-1200-40-0",
    "last-lost": "segmented-neither-1200-40-1199",
    "wrong-source": "asked_address-127.0.0.2",
    "small-buffer": "largest",
    "ethernet-buffer": "exchange-2048",
    "one-answer": "pushes",
    "reorders": "crowd_at_once",
    "doubles": "both_at_once",
    "keeps-one": "exchange-64",
    "foreign-answers": "crowd-twice",
    "refused-for-ever": "nobody_yet-1",
    "refused-spins": "nobody_at_all",
    "refused-dies": "server_restarts-3",
    "new-address": "one_flow",
    "ticks": "idle-answered",
    "uncounted": "burst-there-1400",
    "oldest-evicted": "flood-answered",
    "never-evicted": "flood-new",
}


@contextlib.contextmanager
def _lane(fault: str) -> Iterator[Lane]:
    """A lane through the faulty forwarder, which is ended with it."""
    entry, exit_ = free_ports(PORTS), free_ports(PORTS)
    with contextlib.ExitStack() as stack:
        counts = stack.enter_context(tempfile.TemporaryFile())
        counts.truncate(4096)
        listeners = []
        for port in range(PORTS):
            listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            listener.bind(("0.0.0.0", entry + port))
            listeners.append(listener.fileno())
        pairs = [f"{fd}:{exit_ + port}" for port, fd in enumerate(listeners)]
        words = [fault, str(counts.fileno()), str(contract_bound.BOUND), *pairs]
        forwarder = subprocess.Popen(
            [sys.executable, "-I", "-S", faulty_forwarder.__file__, *words],
            pass_fds=[*listeners, counts.fileno()],
            stderr=subprocess.DEVNULL if fault != "none" else None,
        )
        stack.callback(forwarder.wait)
        stack.callback(forwarder.kill)

        def dropped() -> int:
            return int(struct.unpack("=Q", os.pread(counts.fileno(), 8, 0))[0])

        ends = Ends(socket.AF_INET, entry, exit_, wildcard=True)
        lane = Lane(ends, lambda: [forwarder.pid], dropped=dropped, patience=2.5)
        yield stack.enter_context(contextlib.closing(lane))


def _run(lane: Lane, name: str) -> None:
    contract.CASES[name](lane)
    contract.successors(lane)


@pytest.mark.parametrize("fault", CAUGHT_BY)
def test_a_faulty_forwarder_is_caught(fault: str) -> None:
    with _lane(fault) as lane, pytest.raises(Violation):
        _run(lane, CAUGHT_BY[fault])


@pytest.mark.parametrize("name", sorted(set(CAUGHT_BY.values())))
def test_a_right_forwarder_is_not(name: str) -> None:
    with _lane("none") as lane:
        _run(lane, name)


def test_every_fault_is_tried() -> None:
    assert set(CAUGHT_BY.values()) <= set(contract.CASES), PARTS
    assert set(CAUGHT_BY) == set(faulty_forwarder.FAULTS) - {"none"}
