# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract catches forwarders that are wrong, each by the case written for its fault.

A right forwarder passes the same cases: what they catch is the fault, not that it is a forwarder.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.relay import contract, contract_breaks, contract_urgent, faulty_proxy
from tests.support.paths import Ends, Lane
from tests.support.product import free_ports
from tests.support.stream import Violation

PARTS = (contract, contract_breaks, contract_urgent)  # each enters its cases when imported

CAUGHT_BY = {
    "end-at-hangup": "fin_behind_blocked_data-server",
    "end-at-fin": "half_close-client-100-fast",
    "fin-overtakes": "fin_behind_blocked_data-client",
    "urgent-lost": "urgent-client-middle-inline",
    "urgent-spins": "urgent_untaken-client-alone",
    "reset-as-fin": "reset_fresh-client",
    "reset-unseen": "reset_after_own_fin-client",
    "refusal-as-fin": "refused-0",
    "dirty-buffer": "reset_while_flooding-client",
    "spin-blocked": "idle-blocked",
    "spin-half-closed": "idle-half-closed",
    "ticks": "idle-fresh",
    "nagle": "request_response",
    "double": "echo-200000",
    "drop": "half_close-both-1048577-fast",
    "one-at-a-time": "stopped_peer-client-continued",
    "late-reset": "reset_after_exchange-server",
}


@contextlib.contextmanager
def _lane(fault: str) -> Iterator[Lane]:
    """A lane through the faulty forwarder, which is ended with it."""
    first = free_ports(2)
    with socket.create_server(("127.0.0.1", first), backlog=1024) as listener:
        proxy = subprocess.Popen(
            [sys.executable, "-I", "-S", faulty_proxy.__file__, fault, str(listener.fileno()),
             str(first + 1)],
            pass_fds=[listener.fileno()],
        )  # fmt: skip
    lane = Lane(Ends(socket.AF_INET, first, first + 1), lambda: [proxy.pid], patience=2.5)
    try:
        with contextlib.closing(lane):
            yield lane
    finally:
        proxy.kill()
        proxy.wait()


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
    assert set(CAUGHT_BY) == set(faulty_proxy.FAULTS) - {"none"}
