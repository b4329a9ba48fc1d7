# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine on a kernel to play with: each trap of splicing TCP, sprung on purpose.

Every `settle` also checks that the loop does not spin, that epoll is asked for what the rules say,
that no descriptor has leaked, and that a pipe in the pool holds no byte (unit/relay/fake_relay.py).
"""

from __future__ import annotations

import errno

import pytest

from hardsplice.ipc.messages import Note
from hardsplice.relay.tcp.flows import GRACE_PATIENCE, GRACE_WHOLE
from hardsplice.relay.tcp.moving import ROUNDS_A_TURN, unsent_limit
from hardsplice.relay.tcp.rules import CLIENT, TARGET
from tests.unit.relay.fake_kernel import FakeKernel
from tests.unit.relay.fake_relay import FOUR, ONE, SIX, Relay
from tests.unit.relay.fake_tcp import HUP, Peer

TEXT = bytes(range(256)) * 4
MUCH = 600  # more bytes than window, send buffer and pipe take together


def read_all(relay: Relay, peer: Peer) -> bytes:
    """Read until nothing more comes."""
    while peer.inbox:
        peer.read(50)
        relay.settle()
    return bytes(peer.received)


def finish_both(relay: Relay, client: Peer, server: Peer) -> None:
    client.finish()
    server.finish()
    relay.settle()
    assert (client.saw, server.saw) == ("fin", "fin")
    relay.check_idle()


def pick(peers: tuple[Peer, Peer], side: int) -> tuple[Peer, Peer]:
    return peers if side == CLIENT else (peers[1], peers[0])


sides = pytest.mark.parametrize("side", [CLIENT, TARGET], ids=["client", "target"])

# --- the common path ---


def test_a_request_and_its_response_take_the_calls_that_the_budget_has() -> None:
    relay = Relay(pool=8)
    relay.kernel.calls.clear()
    client = relay.kernel.dial(relay.dual)
    client.send(b"request")
    relay.turn()
    server = relay.pairs[0].server
    server.send(b"response")
    server.finish()
    relay.turn()
    client.finish()
    relay.turn()
    assert (server.got, server.saw) == (b"request", "fin")
    assert (client.got, client.saw) == (b"response", "fin")
    calls = relay.kernel.calls
    assert sorted(calls) == sorted(
        [
            "accept",
            *("connect", "connected"),
            *("epoll_ctl",) * 2,
            *("splice in", "splice out") * 2,
            *("splice in",) * 2,  # that found the ends
            "shutdown",
            *("close",) * 2,
        ]
    )
    relay.check_idle()


def test_a_client_that_waits_for_the_server_to_speak_is_soon_not_read_too_early() -> None:
    relay = Relay()
    for number in range(6):
        client = relay.kernel.dial(relay.dual)
        relay.kernel.calls.clear()
        relay.turn()
        assert ("splice in" in relay.kernel.calls) == (number < 2)
        server = relay.pairs[-1].server
        server.send(b"welcome")
        relay.settle()
        client.send(b"thanks")
        relay.settle()
        assert (client.got, server.got) == (b"welcome", b"thanks")


def test_connections_that_keep_coming_are_accepted_several_at_a_time() -> None:
    relay = Relay(pool=32)
    for _ in range(15):
        relay.kernel.dial(relay.dual)
    accepted = []
    for _ in range(4):
        relay.kernel.calls.clear()
        relay.turn()
        accepted.append(relay.kernel.calls.count("accept"))
    assert accepted == [1, 2, 4, 8]


@pytest.mark.parametrize("how", ["at once", "no delay", "pend"])
@pytest.mark.parametrize("ipv4", [False, True])
def test_bytes_pass_both_ways_however_the_connect_went(how: str, ipv4: bool) -> None:
    relay = Relay()
    client = relay.kernel.dial(relay.dual, ipv4=ipv4)
    relay.kernel.behaviour[FOUR if ipv4 else SIX] = how
    relay.settle()
    for sock in relay.kernel.pending[:]:
        relay.kernel.answer(sock)
        relay.settle()
    server = relay.pairs[0].server
    client.send(b"there")
    server.send(b"back")
    relay.settle()
    assert (server.got, client.got) == (b"there", b"back")
    assert relay.counted("bytes_to_target") == 5
    assert relay.counted("bytes_to_client") == 4
    finish_both(relay, client, server)


def test_an_idle_connection_costs_two_descriptors_and_no_pipe() -> None:
    relay = Relay(generous=False)
    relay.serve()
    relay.settle()
    before, pipes = len(relay.kernel.table), relay.kernel.pipes_open
    client, server = relay.connect()
    client.send(b"x")
    server.send(b"y")
    relay.settle()
    assert len(relay.kernel.table) == before + 1  # the server's was in the pool already
    assert relay.kernel.pipes_open == pipes
    assert relay.epoll.timeout == -1, "nothing ticks"


def test_a_flow_that_has_much_to_move_leaves_the_others_their_turn() -> None:
    relay = Relay(FakeKernel(send_buffer=1_000_000, window=1_000_000))
    greedy, _ = relay.connect()
    modest, server = relay.connect()
    greedy.send(TEXT * 100)
    modest.send(b"me too")
    relay.kernel.calls.clear()
    relay.turn()
    assert server.got == b"me too"
    assert relay.kernel.calls.count("splice in") <= ROUNDS_A_TURN + 1


# --- half-close ---


@sides
def test_bytes_in_a_pipe_outlive_hup_at_their_source(side: int) -> None:
    """Trap 1: shut both ways, the source says HUP for ever, with bytes still on their way."""
    relay = Relay()
    sender, reader = pick(relay.connect(), side)
    reader.finish()
    relay.settle()
    assert sender.saw == "fin"
    sender.send(TEXT[:MUCH])
    sender.finish()
    relay.settle()
    assert sender.sock.events() & HUP
    assert reader.saw == "open"
    assert read_all(relay, reader) == TEXT[:MUCH]
    assert (sender.saw, reader.saw) == ("fin", "fin")
    relay.check_idle()


@sides
@pytest.mark.parametrize("size", [0, 1, 64, MUCH])
def test_fin_never_comes_before_the_data(side: int, size: int) -> None:
    relay = Relay()
    sender, reader = pick(relay.connect(), side)
    sender.send(TEXT[:size])
    sender.finish()
    relay.settle()
    assert (reader.saw == "fin") == (size <= reader.window)
    assert read_all(relay, reader) == TEXT[:size]
    assert reader.saw == "fin"
    reader.send(b"still here")
    relay.settle()
    assert sender.got == b"still here"
    reader.finish()
    relay.settle()
    assert sender.saw == "fin"
    relay.check_idle()


@sides
def test_end_of_file_is_read_once_and_not_looked_at_again(side: int) -> None:
    """Trap 2."""
    relay = Relay()
    peer, other = pick(relay.connect(), side)
    peer.finish()
    relay.settle()
    assert other.saw == "fin"
    for _ in range(5):
        assert relay.settle() == 1, "RDHUP stays true, and must not wake anybody"


@sides
def test_what_may_wait_to_be_sent_is_limited_once_a_sink_has_blocked(side: int) -> None:
    relay = Relay()
    sender, reader = pick(relay.connect(), side)
    sender.send(TEXT[:20])
    relay.settle()
    assert "limit_unsent" not in relay.kernel.calls, "most connections never block"
    sender.send(TEXT * 2)
    relay.settle()
    for _ in range(5):
        sender.send(TEXT)
        relay.settle()
        read_all(relay, reader)
    assert relay.kernel.calls.count("limit_unsent") == 1
    finish_both(relay, *pick((sender, reader), side))


@pytest.mark.parametrize(
    ("blocked", "limit"), [(0, 512), (8, 512), (9, 256), (17, 128), (64, 64), (999, 64)]
)
def test_what_waits_to_be_sent_is_shared_out(blocked: int, limit: int) -> None:
    """In steps, since there are values for those in the pinned memory, and no others."""
    assert unsent_limit(blocked) // 1024 == limit


@sides
def test_a_blocked_sink_lets_the_loop_sleep(side: int) -> None:
    """Trap 3."""
    relay = Relay()
    sender, reader = pick(relay.connect(), side)
    sender.send(TEXT[:MUCH])
    relay.settle()
    assert len(reader.inbox) == reader.window
    assert relay.settle() == 1
    assert relay.counted("blocked") >= 1
    assert read_all(relay, reader) == TEXT[:MUCH]
    finish_both(relay, sender, reader)


def test_both_directions_may_block_at_once() -> None:
    relay = Relay()
    client, server = relay.connect()
    client.send(TEXT[:MUCH])
    server.send(TEXT[MUCH:])
    client.finish()
    server.finish()
    relay.settle()
    assert read_all(relay, client) == TEXT[MUCH:]
    assert client.saw == "fin"
    assert read_all(relay, server) == TEXT[:MUCH]
    assert server.saw == "fin"
    relay.check_idle()


@pytest.mark.parametrize("sizes", [[1] * 50, [1, 40, 1], [17] * 9, [16, 16, 16, 16], [64], [65]])
def test_a_pipe_that_is_full_by_slots_loses_nothing(sizes: list[int]) -> None:
    """Traps 5 and 6: how few bytes a pipe holds then depends on the segments."""
    relay = Relay(FakeKernel(send_buffer=1000, window=1000))
    client, server = relay.connect()
    at = 0
    for size in sizes:
        client.send(TEXT[at : at + size])
        at += size
    client.finish()
    relay.settle()
    assert (server.got, server.saw) == (TEXT[:at], "fin")
    finish_both(relay, client, server)


@pytest.mark.parametrize("buffer", [1, 2, 7, 63, 64, 65])
def test_a_sink_that_takes_a_little_at_a_time_gets_each_byte_once(buffer: int) -> None:
    """Trap 7."""
    relay = Relay(FakeKernel(send_buffer=buffer, window=buffer))
    client, server = relay.connect()
    client.send(TEXT[:MUCH])
    client.finish()
    relay.settle()
    while server.inbox:
        server.read(1 + buffer // 3)
        relay.settle()
    assert (bytes(server.received), server.saw) == (TEXT[:MUCH], "fin")
    assert relay.counted("bytes_to_target") == MUCH


# --- urgent data ---


@sides
@pytest.mark.parametrize("before", [0, 1, 16, 64, 200, MUCH])
@pytest.mark.parametrize("after", [0, 1, MUCH])
@pytest.mark.parametrize("fin", [False, True])
def test_urgent_data_stays_urgent_and_in_its_place(
    side: int, before: int, after: int, fin: bool
) -> None:
    """Trap 4, with FIN behind it too, where splice says 0 in front of the mark."""
    relay = Relay()
    sender, reader = pick(relay.connect(), side)
    if before:
        sender.send(TEXT[:before])
    sender.send_urgent(b"!")
    if after:
        sender.send(TEXT[:after])
    if fin:
        sender.finish()
    relay.settle()
    assert read_all(relay, reader) == TEXT[:before] + b"!" + TEXT[:after]
    assert reader.marks == [before]
    assert reader.saw == ("fin" if fin else "open")
    assert relay.counted("urgent") == 1
    sender.send(b"and on")
    sender.finish()
    reader.finish()
    relay.settle()
    read_all(relay, reader)
    relay.check_idle()


def test_each_urgent_byte_that_was_taken_in_time_is_urgent() -> None:
    relay = Relay()
    client, server = relay.connect()
    for place in range(5):
        client.send_urgent(b"!")
        client.send(b"...")
        relay.settle()
        assert server.marks[-1] == 4 * place
    assert server.got == b"!..." * 5
    finish_both(relay, client, server)


def test_an_urgent_byte_that_overtook_others_waits_for_them_asleep() -> None:
    """Announced with its own segment, while one before it is still missing: EPOLLPRI stays true."""
    relay = Relay()
    client, server = relay.connect()
    client.announce_urgent(ahead=10)
    relay.settle()
    assert server.got == b""
    client.send(TEXT[:4])
    relay.settle()
    assert server.got == TEXT[:4]
    client.send(TEXT[4:10])
    client.send(b"!")
    relay.settle()
    assert (server.got, server.marks) == (TEXT[:10] + b"!", [10])
    finish_both(relay, client, server)


@pytest.mark.parametrize("ahead", [0, 1, 5])
@pytest.mark.parametrize("end", ["fin", "reset"])
@pytest.mark.parametrize("first", [False, True], ids=["together", "announced first"])
def test_an_urgent_byte_that_never_comes_spins_nobody(ahead: int, end: str, first: bool) -> None:
    """Only a forger sends that, and must not get the processor for it."""
    relay = Relay()
    client, server = relay.connect()
    client.announce_urgent(ahead=ahead)
    if first:
        relay.settle()
    client.announce_urgent(ahead=ahead + 1, here=False)
    if end == "fin":
        client.finish()
    else:
        client.reset()
    relay.settle()
    assert server.saw == end
    server.finish()
    relay.settle()
    relay.check_idle()


def test_an_announcement_without_the_byte_waits_asleep() -> None:
    relay = Relay()
    client, server = relay.connect()
    client.announce_urgent(here=False)
    relay.settle()
    client.sock.urgent_here = True
    client.send(b"!")
    relay.settle()
    assert (server.got, server.marks) == (b"!", [0])


@sides
def test_a_reset_behind_urgent_data_is_passed_on(side: int) -> None:
    relay = Relay()
    sender, reader = pick(relay.connect(), side)
    sender.send(b"before")
    sender.send_urgent(b"!")
    sender.send(b"after")
    sender.reset()
    relay.settle()
    assert reader.saw == "reset"
    assert b"before!after".startswith(reader.got)
    relay.check_idle()


@pytest.mark.parametrize("first", [CLIENT, TARGET])
def test_a_hup_that_is_older_than_the_wish_for_urgent_data_ends_nothing(first: int) -> None:
    """Both have an event in one batch; that of the sink unblocks what the source's is about."""
    relay = Relay(FakeKernel(send_buffer=4, window=4))
    client, server = relay.connect()
    server.finish()
    relay.settle()
    client.send(TEXT[:12])
    client.send_urgent(b"!")
    relay.settle()
    assert server.got == TEXT[:4]
    server.read(4)
    relay.settle()
    client.finish()  # the client's socket is shut both ways
    server.read(4)
    fds = relay.pairs[0].flow.fd
    relay.epoll.masks = {fd: relay.epoll.masks[fd] for fd in (fds[first], fds[1 - first])}
    relay.epoll.masks.update(dict.fromkeys(relay.engine.listeners, 1))
    assert len(relay.epoll.ready()) == 2
    relay.settle()
    read_all(relay, server)
    assert (bytes(server.received), server.saw, server.marks) == (TEXT[:12] + b"!", "fin", [12])
    relay.check_idle()


# --- resets ---


@sides
@pytest.mark.parametrize("finished_before", [False, True])
def test_a_reset_is_passed_on_at_once_to_an_idle_side(side: int, finished_before: bool) -> None:
    """Trap 18: also where the side that resets had finished."""
    relay = Relay()
    one, other = pick(relay.connect(), side)
    if finished_before:
        one.finish()
        relay.settle()
        assert other.saw == "fin"
    one.reset()
    relay.settle()
    assert other.saw == "reset"
    assert relay.counted("reset") == 1
    relay.check_idle()


@sides
@pytest.mark.parametrize("size", [1, 64, 100])
def test_what_came_before_a_reset_is_delivered_before_it(side: int, size: int) -> None:
    relay = Relay()
    sender, reader = pick(relay.connect(), side)
    sender.send(TEXT[:size])
    sender.reset()
    relay.settle()
    while reader.inbox:
        reader.read(7)
        relay.wait(0.2)
    assert (bytes(reader.received), reader.saw) == (TEXT[:size], "reset")
    relay.check_idle()


@sides
def test_a_reset_waits_for_bytes_in_a_pipe(side: int) -> None:
    relay = Relay()
    sender, reader = pick(relay.connect(), side)
    sender.send(TEXT[:MUCH])
    relay.settle()
    sender.reset()
    relay.settle()
    assert reader.saw == "open"
    while reader.inbox:
        reader.read(60)
        relay.wait(0.2)
    assert (bytes(reader.received), reader.saw) == (TEXT[:MUCH], "reset")
    relay.check_idle()


@sides
def test_a_reset_does_not_wait_for_ever_for_a_peer_that_takes_nothing(side: int) -> None:
    relay = Relay()
    sender, reader = pick(relay.connect(), side)
    sender.send(TEXT[: reader.window + 10])
    sender.reset()
    relay.settle()
    assert reader.saw == "open"
    assert 0 < relay.epoll.timeout < 1
    relay.wait(2 * GRACE_PATIENCE)
    assert reader.saw == "reset"
    assert relay.epoll.timeout == -1
    relay.check_idle()


@sides
def test_a_peer_that_resets_in_the_grace_is_gone_at_once(side: int) -> None:
    relay = Relay()
    sender, reader = pick(relay.connect(), side)
    sender.send(TEXT[: reader.window + 10])
    sender.reset()
    relay.settle()
    reader.reset()
    relay.settle()
    relay.check_idle()


@sides
def test_a_peer_that_finishes_in_the_grace_spins_nobody(side: int) -> None:
    relay = Relay()
    sender, reader = pick(relay.connect(), side)
    sender.finish()
    relay.settle()
    sender, reader = reader, sender  # the sender is now shut one way
    sender.send(TEXT[: reader.window + 10])
    sender.reset()
    relay.settle()
    relay.wait(2 * GRACE_PATIENCE)
    relay.check_idle()


def test_both_sides_may_reset_in_one_turn() -> None:
    relay = Relay()
    for size in (0, 10, MUCH):
        client, server = relay.connect()
        client.send(TEXT[:size])
        relay.settle()
        client.reset()
        server.reset()
        relay.settle()
        relay.check_idle()


# --- connecting ---


@pytest.mark.parametrize("ipv4", [False, True])
@pytest.mark.parametrize("how", ["refuse", "refuse at once", "pend"])
def test_the_other_loopback_is_tried_when_the_first_refuses(how: str, ipv4: bool) -> None:
    relay = Relay()
    first, second = (FOUR, SIX) if ipv4 else (SIX, FOUR)
    relay.kernel.behaviour.update({first: how, second: "at once"})
    client = relay.kernel.dial(relay.dual, ipv4=ipv4)
    client.send(b"hello")
    relay.settle()
    for sock in relay.kernel.pending[:]:
        relay.kernel.answer(sock, refuse=True)
        relay.settle()
    server = relay.pairs[0].server
    assert server.got == b"hello"
    assert relay.counted("refused") == 0
    finish_both(relay, client, server)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("how", ["refuse", "refuse at once", "pend"])
def test_a_refusal_is_a_reset_to_the_client_and_leaks_nothing(how: str, single: bool) -> None:
    """R5 and trap 12: the accepted socket and each pooled one are closed; they are counted."""
    relay = Relay()
    relay.kernel.behaviour.update({FOUR: how, SIX: how, ONE: how})
    client = relay.kernel.dial(relay.single if single else relay.dual)
    client.send(b"early")
    relay.settle()
    while relay.kernel.pending:
        relay.kernel.answer(relay.kernel.pending[0], refuse=True)
        relay.settle()
    assert client.saw == "reset"
    assert client.sock.copied == 0
    assert relay.counted("refused") == 1
    assert relay.monitor.notes == [(Note.REFUSED, errno.ECONNREFUSED, 8 if single else 7, "")]
    relay.check_idle()


def test_a_target_that_resets_at_once_was_reached_all_the_same() -> None:
    """Its last words are delivered, and nobody else is tried in its place."""
    relay = Relay()
    relay.kernel.behaviour[SIX] = "reset"
    client = relay.kernel.dial(relay.dual)
    relay.settle()
    assert (client.got, client.saw) == (b"last words", "reset")
    assert len(relay.kernel.servers) == 1
    relay.check_idle()


def test_early_data_stays_with_the_kernel_until_it_can_be_delivered() -> None:
    """Trap 17."""
    relay = Relay()
    relay.kernel.behaviour[SIX] = "pend"
    client = relay.kernel.dial(relay.dual)
    client.send(TEXT[:MUCH])
    client.finish()
    assert relay.settle() <= 3, "input that nobody wants yet wakes nobody"
    assert client.sock.copied == 0
    relay.kernel.answer(relay.kernel.pending[0])
    relay.settle()
    server = relay.pairs[0].server
    assert read_all(relay, server) == TEXT[:MUCH]
    assert server.saw == "fin"
    finish_both(relay, client, server)


def test_a_client_that_resets_before_its_target_answers_is_noticed() -> None:
    relay = Relay()
    relay.kernel.behaviour[SIX] = "pend"
    client = relay.kernel.dial(relay.dual)
    client.send(b"never mind")
    relay.settle()
    client.reset()
    relay.settle()
    relay.check_idle()
    assert relay.epoll.timeout == -1


def test_a_target_that_does_not_answer_is_given_up_and_the_others_are_served() -> None:
    """Trap 19."""
    relay = Relay()
    relay.kernel.behaviour[SIX] = "pend"
    client = relay.kernel.dial(relay.dual)
    relay.settle()
    relay.wait(4)
    later = relay.kernel.dial(relay.dual)
    relay.settle()
    relay.kernel.behaviour[ONE] = "at once"
    other = relay.kernel.dial(relay.single)
    other.send(b"served")
    relay.settle()
    assert relay.pairs[0].server.got == b"served"
    relay.wait(6.5)
    assert (client.saw, later.saw) == ("reset", "open")
    assert relay.counted("timed_out") == 1
    assert relay.monitor.notes == [(Note.TIMED_OUT, errno.ETIMEDOUT, 7, "")]
    relay.wait(4)
    assert later.saw == "reset"
    finish_both(relay, other, relay.pairs[0].server)


# --- a shared pipe ---


@pytest.mark.parametrize("ends", ["sink reset", "both reset", "refused", "splice out", "timed out"])
def test_after_any_abnormal_end_the_next_flow_carries_only_its_own_bytes(ends: str) -> None:
    """Trap 16."""
    relay = Relay(spare=1)
    if ends in ("refused", "timed out"):
        for address in (FOUR, SIX):
            relay.kernel.behaviour[address] = "refuse" if ends == "refused" else "pend"
        client = relay.kernel.dial(relay.dual)
        client.send(b"secret")
        relay.settle()
        relay.wait(11)
    else:
        client, server = relay.connect()
        if ends == "splice out":
            relay.kernel.inject("splice out", errno.ENOMEM)
        client.send(b"secret" * 50)
        if ends != "splice out":
            server.reset()
        if ends == "both reset":
            relay.turn()
            client.reset()
        relay.settle()
    relay.check_idle()
    for _ in range(3):
        client, server = relay.connect()
        client.send(b"mine")
        server.send(b"yours")
        relay.settle()
        assert (server.got, client.got) == (b"mine", b"yours")
        finish_both(relay, client, server)


# --- a reset behind a sink that takes nothing ---


@sides
def test_a_reset_behind_a_full_path_is_passed_on_to_a_peer_that_reads_nothing(side: int) -> None:
    """Direct TCP tells at once; a blocked direction must not keep the other side in the dark."""
    relay = Relay(FakeKernel(send_buffer=4, window=4))
    sender, reader = pick(relay.connect(), side)
    sender.send(TEXT[:200])
    relay.settle()
    sender.reset()
    relay.settle()
    assert reader.saw == "open", "what came before the reset has its chance first"
    relay.wait(2 * GRACE_PATIENCE)
    assert reader.saw == "reset"
    relay.check_idle()


@sides
def test_a_reset_is_passed_on_where_the_path_fills_up_in_a_later_turn(side: int) -> None:
    """What came before the reset takes several turns, and the peer takes only a part of it."""
    kernel = FakeKernel()
    relay = Relay(kernel)
    sender, reader = pick(relay.connect(), side)
    path = kernel.window + kernel.send_buffer
    assert path > ROUNDS_A_TURN * kernel.pipe_slots, "the path takes more than one turn moves"
    for _ in range(path + MUCH):
        sender.send(b"x")  # a slot each
    sender.reset()
    relay.wait(2 * GRACE_PATIENCE)
    assert reader.saw == "reset"
    relay.check_idle()


@sides
def test_a_reset_waits_for_a_peer_that_goes_on_reading(side: int) -> None:
    relay = Relay(FakeKernel(send_buffer=4, window=4))
    sender, reader = pick(relay.connect(), side)
    sender.send(TEXT[:40])
    relay.settle()
    sender.reset()
    relay.settle()
    while reader.saw == "open":
        before = len(reader.got)
        reader.read(3)
        relay.wait(GRACE_PATIENCE / 2)
        assert len(reader.got) > before or reader.saw == "reset"
    assert bytes(reader.got) == TEXT[:40]
    relay.check_idle()


@sides
def test_a_reset_does_not_wait_for_ever_for_a_peer_that_takes_a_byte_now_and_then(
    side: int,
) -> None:
    relay = Relay()
    sender, receiver = pick(relay.connect(), side)
    sender.send(TEXT[:MUCH])
    relay.settle()
    sender.reset()
    took = 0.0
    while receiver.saw != "reset":
        receiver.read(1)
        relay.wait(GRACE_PATIENCE / 2)
        took += GRACE_PATIENCE / 2
        assert took <= GRACE_WHOLE + GRACE_PATIENCE, "it waits without an end"
    assert took >= GRACE_WHOLE, "it takes, so it is waited for"
    relay.check_idle()
