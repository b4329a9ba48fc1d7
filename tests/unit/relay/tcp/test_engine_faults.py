# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine when the kernel says no: errors at every call, and running out of everything.

What a real kernel can't be made to do on demand is played here (tests/unit/relay/fake_relay.py).
"""

from __future__ import annotations

import errno

import pytest

from hardsplice.ipc.messages import Note
from hardsplice.relay.tcp.connecting import SHORTAGE_SECONDS
from hardsplice.relay.tcp.rules import CLIENT, TARGET
from tests.unit.relay.fake_kernel import FakeKernel
from tests.unit.relay.fake_relay import FOUR, ONE, SIX, Relay
from tests.unit.relay.fake_tcp import Peer

TEXT = bytes(range(256)) * 4
MUCH = 600  # more bytes than window, send buffer and pipe take together


def still_serves(relay: Relay) -> None:
    """Somebody else, who was there all along or comes later, is served."""
    relay.check_idle()
    client, server = relay.connect(single=True)
    client.send(b"there")
    server.send(b"back")
    relay.settle()
    assert (server.got, client.got) == (b"there", b"back")
    client.finish()
    server.finish()
    relay.settle()
    assert (client.saw, server.saw) == ("fin", "fin")
    relay.check_idle()


def drain(relay: Relay, peers: list[Peer]) -> None:
    """Read all that comes."""
    while any(peer.inbox for peer in peers):
        for peer in peers:
            peer.read(50)
        relay.settle()


# --- errors in one flow ---

CALLS = ["splice in", "splice out", "shutdown", "epoll_ctl"]


@pytest.mark.parametrize("code", [errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT])
@pytest.mark.parametrize("call", ["splice in", "splice out"])
@pytest.mark.parametrize("blocked", [False, True])
def test_a_dead_peer_is_met_in_any_call(call: str, code: int, blocked: bool) -> None:
    relay = Relay()
    client, server = relay.connect()
    if blocked:
        client.send(TEXT[:MUCH])
        relay.settle()
        server.read(60)
    else:
        client.send(b"x")
    dead = client if call == "splice in" else server
    dead.has_gone = True
    dead.sock.state = "dead"
    dead.sock.unacknowledged.clear()
    relay.kernel.inject(call, code)
    relay.settle()
    while client.inbox or server.inbox:
        server.read(60)
        client.read(60)
        relay.wait(1)
    assert (client if dead is server else server).saw == "reset"
    relay.check_idle()
    assert relay.counted("errors") == 0
    still_serves(relay)


@pytest.mark.parametrize("fault", [errno.ENOMEM, errno.ENOBUFS, errno.EINVAL, RuntimeError("no")])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("blocked", [False, True])
def test_any_other_error_ends_that_flow_with_a_reset_both_ways(
    call: str, fault: int | Exception, blocked: bool
) -> None:
    """R8. Half a flow that goes on, or a clean end to either side, would be a lie."""
    if call == "shutdown" and isinstance(fault, int):
        fault = OSError(fault, "injected")
    relay = Relay()
    bystander, their_server = relay.connect()
    client, server = relay.connect()
    client.send(TEXT[:MUCH] if blocked else b"x")
    if blocked:
        relay.settle()
        server.read(60)
    if call == "shutdown":
        client.finish()
        relay.kernel.inject(call, RuntimeError("shutdown"))
    else:
        relay.kernel.inject(call, fault)
    if call == "epoll_ctl" and not blocked:
        client.send(TEXT[:40])  # more than a read of one byte a slot: watched by level from now on
    relay.settle()
    for _ in range(20):
        server.read(60)
        relay.settle()
    assert (client.saw, server.saw) == ("reset", "reset")
    assert relay.counted("errors") == 1
    kind, _, listener, where = relay.monitor.notes[-1]
    assert (kind, listener) == (Note.ERROR, 7)
    assert "line " in where
    bystander.send(b"unharmed")
    relay.settle()
    assert their_server.got == b"unharmed"
    bystander.finish()
    their_server.finish()
    relay.settle()
    still_serves(relay)


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.ECONNRESET, errno.EPIPE])
@pytest.mark.parametrize("call", ["send_byte", "receive_byte"])
def test_errors_about_the_urgent_byte_end_the_flow(call: str, code: int) -> None:
    relay = Relay()
    client, server = relay.connect()
    client.send_urgent(b"!")
    if code != errno.ENOBUFS:
        dead = server if call == "send_byte" else client
        dead.has_gone = True
        dead.sock.state = "dead"
    relay.kernel.inject(call, code)
    relay.settle()
    survivors = [peer for peer in (client, server) if not peer.has_gone]
    assert [peer.saw for peer in survivors] == ["reset"] * len(survivors)
    assert relay.counted("errors") == (code == errno.ENOBUFS)
    still_serves(relay)


@pytest.mark.parametrize("call", ["connect", "connected", "epoll_ctl"])
@pytest.mark.parametrize("how", ["at once", "pend"])
def test_an_exception_while_connecting_ends_that_flow_only(call: str, how: str) -> None:
    relay = Relay()
    relay.kernel.behaviour[SIX] = how
    client = relay.kernel.dial(relay.dual)
    relay.kernel.inject(call, RuntimeError("surprise"))
    relay.settle()
    assert client.saw == "reset"
    still_serves(relay)


def test_a_connect_that_fails_for_want_of_a_port_is_a_refusal() -> None:
    relay = Relay()
    client = relay.kernel.dial(relay.dual)
    relay.kernel.inject("connect", errno.EADDRNOTAVAIL, errno.EADDRNOTAVAIL)
    relay.settle()
    assert client.saw == "reset"
    assert relay.monitor.notes == [(Note.REFUSED, errno.EADDRNOTAVAIL, 7, "")]
    still_serves(relay)


def test_a_pipe_has_one_owner_when_its_successor_can_not_be_made() -> None:
    """A pipe closed twice would close a descriptor that is somebody else's by then."""
    relay = Relay(spare=0)
    client, server = relay.connect()
    client.send(TEXT[:MUCH])
    relay.kernel.inject("open_pipe", MemoryError())
    relay.settle()
    assert (client.saw, server.saw) == ("reset", "reset")
    still_serves(relay)


# --- accepting ---


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ECONNABORTED, errno.EPROTO])
def test_a_client_that_went_away_before_it_was_accepted_is_nothing(code: int) -> None:
    relay = Relay()
    relay.kernel.inject("accept", code)
    client = relay.kernel.dial(relay.dual)
    relay.settle()
    assert relay.counted("accepted") == 1, "the next turn takes who is there"
    assert relay.monitor.notes == []
    client.reset()
    relay.settle()
    relay.check_idle()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_system_short_of_files_is_asked_again_after_a_second(code: int) -> None:
    relay = Relay()
    relay.kernel.inject("accept", *[code] * 3)
    client = relay.kernel.dial(relay.dual)
    relay.settle()
    for _ in range(3):
        assert relay.epoll.timeout == pytest.approx(SHORTAGE_SECONDS)
        assert relay.settle() == 1, "until then it sleeps"
        relay.wait(SHORTAGE_SECONDS)
    assert [note[:2] for note in relay.monitor.notes] == [(Note.ACCEPT, code)] * 3
    assert relay.counted("accepted") == 1
    assert relay.epoll.timeout == -1
    client.reset()
    relay.settle()
    relay.check_idle()


@pytest.mark.parametrize("descriptors", [20, 24, 30, 40, 64])
def test_at_the_limit_clients_wait_their_turn_and_all_are_served(descriptors: int) -> None:
    """Many more clients than descriptors: none is refused, nothing dies, nothing spins."""
    relay = Relay(FakeKernel(descriptors=descriptors), pool=2, spare=1)
    clients = [relay.kernel.dial(relay.dual) for _ in range(60)]
    for client in clients:
        client.send(b"hello")
    relay.settle()
    assert 0 < relay.counted("accepted") < 60
    assert relay.settle() == 1
    done = 0
    while done < len(relay.pairs):
        pair = relay.pairs[done]
        assert pair.server.got == b"hello"
        pair.client.finish()
        pair.server.finish()
        relay.settle()
        done += 1
    assert done == 60
    assert all(client.saw == "fin" for client in clients)
    relay.check_idle()


def test_accepting_resumes_when_a_pipe_gives_descriptors_back() -> None:
    """No flow ends, blocked ones drain: whoever waits in the backlog must not wait for more."""
    relay = Relay(FakeKernel(descriptors=40), pool=2, spare=0)
    while relay.engine.accepting:
        relay.connect()
    ended, blocked = relay.pairs[:3], relay.pairs[3:7]
    for pair in blocked:
        pair.client.send(TEXT[:MUCH])
    relay.settle()
    for pair in ended:
        pair.client.reset()
    relay.settle()
    before = relay.counted("accepted")
    relay.kernel.dial(relay.dual)
    relay.settle()
    assert relay.counted("accepted") == before
    drain(relay, [pair.server for pair in blocked])
    assert relay.counted("accepted") == before + 1


# --- pools of sockets ---


def test_an_empty_pool_leaves_clients_in_the_backlog_until_it_is_filled() -> None:
    relay = Relay(generous=False)
    assert relay.monitor.asked == [(0, 4), (1, 4)]
    client = relay.kernel.dial(relay.dual)
    assert relay.settle() == 1
    assert relay.counted("accepted") == 0
    relay.serve()
    relay.settle()
    assert relay.counted("accepted") == 1
    client.reset()
    relay.settle()
    relay.check_idle()


def test_half_a_pool_used_is_asked_for_once() -> None:
    relay = Relay(generous=False, pool=8)
    relay.serve()
    for used in range(1, 8):
        relay.connect()
        assert relay.monitor.asked == ([(1, 4)] if used >= 4 else [])


def test_a_second_attempt_waits_for_a_socket() -> None:
    relay = Relay(generous=False, pool=1)
    relay.serve()
    relay.settle()
    relay.kernel.behaviour.update({SIX: "pend", FOUR: "at once"})
    first = relay.kernel.dial(relay.dual)
    relay.settle()
    engine = relay.engine
    relay.monitor.asked.clear()
    engine.add_sockets(1, relay.kernel.sockets(1))
    relay.settle()
    second = relay.kernel.dial(relay.dual, ipv4=True)
    relay.settle()
    assert relay.pairs[0].client is second
    relay.monitor.asked.clear()
    relay.kernel.answer(relay.kernel.pending[0], refuse=True)
    relay.settle()
    assert first.saw == "open"
    engine.add_sockets(0, relay.kernel.sockets(1))
    relay.settle()
    assert relay.pairs[1].client is first


def test_a_client_that_leaves_while_its_flow_waits_for_a_socket_is_forgotten() -> None:
    relay = Relay(generous=False, pool=1)
    relay.serve()
    relay.kernel.behaviour.update({SIX: "pend", FOUR: "pend"})
    clients = [relay.kernel.dial(relay.dual)]
    relay.settle()
    relay.engine.add_sockets(1, relay.kernel.sockets(1))
    clients.append(relay.kernel.dial(relay.dual, ipv4=True))
    relay.settle()
    relay.kernel.answer(relay.kernel.pending[0], refuse=True)
    relay.settle()
    for client in clients:
        client.reset()
    relay.settle()
    relay.engine.add_sockets(0, relay.kernel.sockets(1))
    relay.settle()
    assert relay.pairs == []
    relay.check_idle()


def test_an_answer_without_sockets_is_not_asked_again_at_once() -> None:
    """The kernel drops descriptors that the receiver has no room for (MSG_CTRUNC)."""
    relay = Relay(generous=False)
    asked = list(relay.monitor.asked)
    relay.monitor.asked.clear()
    for family, _ in asked:
        relay.engine.add_sockets(family, ())
    relay.settle()
    assert relay.monitor.asked == []
    assert relay.epoll.timeout == pytest.approx(SHORTAGE_SECONDS)
    relay.wait(2 * SHORTAGE_SECONDS)
    assert relay.monitor.asked == asked
    relay.serve()
    still_serves(relay)


def test_sockets_are_not_asked_for_where_there_is_no_descriptor_for_them() -> None:
    relay = Relay(FakeKernel(descriptors=40), pool=2, spare=0)
    while relay.engine.accepting:
        relay.connect()
    for pair in relay.pairs:
        pair.client.send(TEXT[:MUCH])
    relay.settle()
    assert relay.monitor.asked == []
    assert relay.settle() == 1
    for pair in relay.pairs:
        pair.client.reset()
        pair.server.reset()
    relay.settle()
    still_serves(relay)


# --- pipes ---


@pytest.mark.parametrize("side", [CLIENT, TARGET])
def test_without_a_pipe_a_direction_sleeps_until_another_gives_one_back(side: int) -> None:
    relay = Relay(spare=0)
    relay.kernel.pipes_most = 1
    ends = [relay.connect() for _ in range(3)]
    senders = [pair[side] for pair in ends]
    readers = [pair[1 - side] for pair in ends]
    for sender in senders:
        sender.send(TEXT[:MUCH])
        sender.finish()
    relay.settle()
    assert relay.counted("starved") == 2
    assert relay.settle() == 1
    drain(relay, readers)
    for reader in readers:
        assert (bytes(reader.received), reader.saw) == (TEXT[:MUCH], "fin")
        reader.finish()
    relay.settle()
    relay.check_idle()


def test_without_a_pipe_from_the_system_a_direction_looks_again_each_second() -> None:
    """Pipes that others close make no event here."""
    relay = Relay(spare=0)
    client, server = relay.connect()
    holder, reader = relay.connect()
    holder.send(TEXT[:MUCH])
    relay.kernel.pipes_most = 1
    relay.settle()
    client.send(b"patience")
    relay.settle()
    assert server.got == b""
    assert relay.epoll.timeout == pytest.approx(SHORTAGE_SECONDS)
    assert relay.settle() == 1
    relay.wait(3 * SHORTAGE_SECONDS)
    relay.kernel.pipes_most = 2
    relay.wait(SHORTAGE_SECONDS)
    assert server.got == b"patience"
    assert reader.saw == "open"
    assert relay.epoll.timeout == -1


@pytest.mark.parametrize("who", [CLIENT, TARGET])
def test_a_reset_reaches_a_flow_that_waits_for_a_pipe(who: int) -> None:
    relay = Relay(spare=0)
    relay.kernel.pipes_most = 1
    holder, reader = relay.connect()
    holder.send(TEXT[:MUCH])
    relay.settle()
    ends = relay.connect()
    ends[CLIENT].send(b"waits")
    relay.settle()
    ends[who].reset()
    relay.settle()
    drain(relay, [reader])
    assert ends[1 - who].saw == "reset"
    assert ends[TARGET].got == (b"waits" if who == CLIENT else b"")
    holder.finish()
    reader.finish()
    relay.settle()
    relay.check_idle()


def test_clean_pipes_are_closed_under_pressure_and_kept_otherwise() -> None:
    for descriptors, kept in ((400, 3), (40, 1)):
        relay = Relay(FakeKernel(descriptors=descriptors), pool=2, spare=3)
        pairs = [relay.connect() for _ in range(3)]
        for client, _ in pairs:
            client.send(TEXT[:MUCH])
        relay.settle()
        drain(relay, [server for _, server in pairs])
        assert (relay.pipes.open > 3) == (kept == 3)


def test_one_reset_flow_of_many_leaves_the_others_blocked_as_they_were() -> None:
    relay = Relay()
    pairs = [relay.connect(single=bool(number % 2)) for number in range(6)]
    for client, _ in pairs:
        client.send(TEXT[:MUCH])
    relay.settle()
    pairs[0][1].reset()
    pairs[1][0].reset()
    relay.settle()
    assert pairs[0][0].saw == "reset"
    drain(relay, [server for _, server in pairs[1:]])
    assert all(server.received == TEXT[:MUCH] for _, server in pairs[1:])
    assert relay.kernel.behaviour[ONE] == "at once"
