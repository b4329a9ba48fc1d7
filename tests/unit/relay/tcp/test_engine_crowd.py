# SPDX-License-Identifier: GPL-2.0-or-later
"""More descriptors are ready than one wait reports: new clients have their share all the same.
Counted in connections and turns, so that no machine is too slow for it.
"""

from __future__ import annotations

import pytest

from hardsplice.relay.tcp.accepting import EVENTS_A_WAIT
from hardsplice.relay.tcp.heuristics import BURST_MAX
from tests.unit.relay.fake_kernel import FakeKernel
from tests.unit.relay.fake_relay import Relay
from tests.unit.relay.fake_tcp import Peer

NEW = 600


def busy(relay: Relay, number: int) -> list[Peer]:
    """Clients that have sent something whenever the relay looks."""
    clients = [relay.kernel.dial(relay.single) for _ in range(number)]
    relay.settle()
    assert len(relay.pairs) == number
    for pair in relay.pairs:
        pair.server.window = 1 << 30
    return clients


def turns_to_accept(relay: Relay, clients: list[Peer], number: int) -> int:
    """How many turns it takes until so many that came at once have all been accepted."""
    before = relay.counted("accepted")
    for _ in range(number):
        relay.kernel.dial(relay.single)
    turns = 0
    while relay.counted("accepted") - before < number:
        for client in clients:
            if not client.sock.queue:
                client.send(b"x")
        relay.turn()
        turns += 1
        assert turns < 10 * number, "new clients starve"
    return turns


@pytest.mark.parametrize("rounds", [1, 2, 4, 7])
def test_new_clients_have_their_share_however_busy_the_others_are(rounds: int) -> None:
    """Whatever a round takes, each of its turns has its connections."""
    relay = Relay(FakeKernel(descriptors=12_000, send_buffer=1 << 20, window=1 << 20), pool=64)
    clients = busy(relay, (rounds - 1) * EVENTS_A_WAIT + EVENTS_A_WAIT // 2)
    turns = turns_to_accept(relay, clients, NEW)
    # While the burst grows, and where a pool runs dry, it is fewer.
    assert NEW / turns >= BURST_MAX / 4
