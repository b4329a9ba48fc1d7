# SPDX-License-Identifier: GPL-2.0-or-later
"""How a relay ends, and how it ends flows that would stay for ever."""

from __future__ import annotations

from hardsplice.relay.tcp.accepting import JAM_SECONDS
from hardsplice.relay.tcp.engine import JAM_FLOWS
from hardsplice.relay.tcp.flows import Limits
from hardsplice.telemetry.flow_table import End
from tests.unit.relay.fake_kernel import FakeKernel
from tests.unit.relay.fake_relay import ONE, Relay
from tests.unit.relay.fake_tcp import Peer, Sock

MUCH = bytes(600)


def end(relay: Relay) -> None:
    """The process finishes, and the kernel closes what it has open."""
    relay.engine.finish()
    for thing in list(relay.kernel.table.values()):
        if isinstance(thing, Sock):
            thing.close()


def test_who_is_not_over_sees_a_reset() -> None:
    relay = Relay()
    idle = relay.connect()
    half = relay.connect()
    half[0].finish()
    blocked = relay.connect()
    blocked[1].send(MUCH)
    relay.settle()
    end(relay)
    for client, server in (idle, half, blocked):
        assert (client.saw, server.saw) == ("reset", "reset")
    assert (relay.counted("stopped"), relay.counted("drained")) == (3, 0)


def test_who_is_over_saw_its_end() -> None:
    relay = Relay()
    client, server = relay.connect()
    client.finish()
    server.finish()
    relay.settle()
    end(relay)
    assert (client.saw, server.saw) == ("fin", "fin")
    assert relay.counted("stopped") == 0


def test_what_has_arrived_already_is_moved_on_first() -> None:
    """A server that ends together with us, as COMMAND's does."""
    relay = Relay()
    client, server = relay.connect()
    client.finish()
    server.send(b"the answer")
    server.finish()
    end(relay)
    assert (client.got, client.saw) == (b"the answer", "fin")
    assert relay.counted("stopped") == 0


def test_a_client_whose_target_is_not_reached_yet_sees_a_reset() -> None:
    relay = Relay()
    relay.kernel.behaviour[ONE] = "pend"
    client = relay.kernel.dial(relay.single)
    relay.turn()
    end(relay)
    assert client.saw == "reset"


def test_a_relay_that_drains_accepts_nobody_and_leaves_with_the_last() -> None:
    relay = Relay()
    client, server = relay.connect()
    other = relay.connect()
    relay.engine.drain()
    late = relay.kernel.dial(relay.dual)
    relay.settle()
    assert late.saw == "open"
    assert relay.counted("accepted") == 2
    client.send(b"more")
    relay.settle()
    assert server.got == b"more"
    for peer in (client, server, *other):
        peer.finish()
    relay.engine.run({})  # which returns
    relay.engine.finish()
    assert (relay.counted("stopped"), relay.counted("drained")) == (0, 2)


def test_what_is_left_after_draining_is_reset_and_counted() -> None:
    relay = Relay()
    client, server = relay.connect()
    left = relay.connect()
    relay.engine.drain()
    client.finish()
    server.finish()
    relay.settle()
    end(relay)
    assert (left[0].saw, left[1].saw) == ("reset", "reset")
    assert (relay.counted("stopped"), relay.counted("drained")) == (1, 1)


def killed(relay: Relay) -> None:
    """The process is gone, and the kernel closes what it has open."""
    for thing in list(relay.kernel.table.values()):
        if isinstance(thing, Sock):
            thing.close()


def test_who_has_been_slow_sees_a_reset_even_of_a_relay_that_is_killed() -> None:
    relay = Relay()
    client, server = relay.connect()
    server.send(MUCH)
    while client.got != MUCH:
        client.read(60)
        relay.settle()
    killed(relay)
    assert client.saw == "reset"


def test_who_has_been_slow_has_a_clean_end_at_the_end() -> None:
    relay = Relay()
    client, server = relay.connect()
    server.send(MUCH)
    server.finish()
    client.finish()
    while client.got != MUCH:
        client.read(60)
        relay.settle()
    assert (client.saw, server.saw) == ("fin", "fin")
    relay.check_idle()


# --- idle flows ---


def with_timeout(seconds: float, rows: int = 0) -> Relay:
    relay = Relay(rows=rows)
    relay.engine.limits = Limits(relay.kernel.limit, edge_slots=2, idle_seconds=seconds)
    relay.engine.restless = True
    return relay


def test_flows_in_which_nothing_moves_are_reset_in_time() -> None:
    relay = with_timeout(8.0, rows=4)
    idle = relay.connect()
    relay.wait(4)
    busy = relay.connect()
    waited = 4.0
    while idle[0].saw == "open":
        busy[0].send(b"x")
        relay.wait(1)
        waited += 1
        assert waited <= 8 * 1.25 + 1
    assert waited >= 8
    assert (idle[0].saw, idle[1].saw) == ("reset", "reset")
    assert busy[1].saw == "open"
    assert relay.counted("idle") == 1
    assert [ended.end for ended in relay.ends] == [End.IDLE]


def test_a_blocked_flow_is_idle_too() -> None:
    relay = with_timeout(8.0)
    client, server = relay.connect()
    client.send(MUCH)
    relay.wait(12)
    assert (client.saw, server.saw) == ("reset", "reset")
    relay.check_idle()


def test_no_flows_no_clock() -> None:
    relay = with_timeout(8.0)
    relay.settle()
    assert relay.epoll.timeout == -1


def test_without_it_flows_may_be_idle_for_ever() -> None:
    relay = Relay()
    client, _ = relay.connect()
    relay.wait(1e6)
    assert client.saw == "open"
    assert relay.epoll.timeout == -1


# --- loops ---


def full(*, half_closed: int, others: int = 0) -> tuple[Relay, list[Peer], Peer]:
    """A relay without a descriptor to spare, and a client who waits for one."""
    number = half_closed + others
    relay = Relay(FakeKernel(descriptors=2 * number + 30), pool=1, spare=1)
    clients: list[Peer] = []
    while relay.engine.accepting:
        clients.append(relay.connect()[0])
    for client in clients[:half_closed]:
        client.finish()
    relay.settle()
    waiting = relay.kernel.dial(relay.dual)
    relay.settle()
    return relay, clients, waiting


def test_half_closed_flows_make_room_where_descriptors_ran_out() -> None:
    relay, clients, _ = full(half_closed=JAM_FLOWS + 4)
    accepted = relay.counted("accepted")
    relay.wait(JAM_SECONDS - 1)
    assert relay.counted("accepted") == accepted
    relay.wait(2)
    assert relay.counted("accepted") == accepted + 1
    assert relay.counted("jammed") >= JAM_FLOWS
    assert {client.saw for client in clients[: JAM_FLOWS + 4]} == {"reset"}


def test_but_not_those_in_which_something_happens_nor_others() -> None:
    relay, clients, _ = full(half_closed=JAM_FLOWS + 4, others=4)
    busy = relay.pairs[0]
    for _ in range(int(JAM_SECONDS) + 2):
        busy.server.send(b"x")
        busy.client.read(100)
        relay.wait(1)
    assert clients[0].saw == "open"
    assert {client.saw for client in clients[JAM_FLOWS + 4 :]} <= {"open"}


def test_a_few_half_closed_flows_are_nobody_s_fault() -> None:
    relay, clients, _ = full(half_closed=JAM_FLOWS - 1, others=12)
    relay.wait(3 * JAM_SECONDS)
    assert {client.saw for client in clients} == {"open"}
    assert relay.counted("jammed") == 0


def test_with_descriptors_to_spare_half_closed_flows_stay() -> None:
    relay = Relay()
    clients = [relay.connect()[0] for _ in range(2 * JAM_FLOWS)]
    for client in clients:
        client.finish()
    relay.wait(10 * JAM_SECONDS)
    assert {client.saw for client in clients} == {"open"}


def test_after_a_reset_who_has_reset_as_well_is_not_connected_any_more() -> None:
    """In a loop each reset would find the next connection made already."""
    relay = Relay()
    first, _ = relay.connect()
    first.reset()
    relay.settle()
    servers = len(relay.kernel.servers)
    for _ in range(3):
        relay.kernel.dial(relay.dual).reset()
    relay.settle()
    assert len(relay.kernel.servers) == servers
    relay.connect()
    assert len(relay.kernel.servers) == servers + 1
