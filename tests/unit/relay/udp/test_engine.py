# SPDX-License-Identifier: GPL-2.0-or-later
"""The datagram relay's engine, rule by rule, on a kernel to play with."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

import pytest

from hardsplice.ipc.messages import Note
from hardsplice.kernel import socketcalls
from hardsplice.kernel.mmsghdr import LARGEST, SLOTS, Outbox, Parts
from hardsplice.net.listener import Listener
from hardsplice.relay.udp import opening
from hardsplice.relay.udp.table import TICK
from hardsplice.telemetry.flow_table import End, State
from tests.unit.relay.udp.fake_relay import FOUR, OTHER, PORT, SINGLE, SIX, Relay
from tests.unit.relay.udp.fake_udp import Datagram, Sock, client_ipv4, client_mapped, payloads

ONE, TWO, THREE = client_ipv4(1), client_ipv4(2), client_ipv4(3)


def test_a_request_reaches_the_target_and_the_answer_its_client() -> None:
    relay = Relay()
    relay.ask(ONE, b"question")
    assert relay.target().target == FOUR
    assert relay.target().got == [b"question"]
    relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    assert relay.kernel.answers == [Datagram(ONE, "127.0.0.1", b"answer")]
    assert relay.datagrams() == (1, 1)
    assert (relay.counted("bytes_to_target"), relay.counted("bytes_to_client")) == (8, 6)
    assert (relay.counted("accepted"), relay.counted("connected")) == (1, 1)


def test_an_answer_leaves_from_the_address_that_was_asked_each_of_which_is_a_flow() -> None:
    relay = Relay()
    for asked in ("127.0.0.1", "127.0.0.2"):
        relay.ask(ONE, b"question", asked=asked)
        relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    assert relay.kernel.answers == [
        Datagram(ONE, asked, b"answer") for asked in ("127.0.0.1", "127.0.0.2")
    ]
    assert len(relay.engine.flows.by_fd) == 2


def test_a_dual_stack_listener_answers_both_kinds_of_clients() -> None:
    relay = Relay()
    six = socketcalls.sockaddr(ip_address("2001:db8::7"), 1000)
    for client, asked in ((client_mapped(1), "192.0.2.1"), (six, "2001:db8::1")):
        relay.kernel.ask(relay.second, client, b"question", asked)
        relay.run()
        assert relay.target().target == OTHER
        relay.kernel.answer(relay.target(), b"answer")
        relay.run()
        assert relay.kernel.answers[-1] == Datagram(client, asked, b"answer")


def test_a_client_in_a_known_flow_costs_one_call_to_receive_and_one_to_send() -> None:
    relay = Relay()
    relay.ask(ONE, b"first")
    relay.kernel.calls.clear()
    relay.ask(ONE, b"second")
    relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    assert relay.kernel.calls == ["receive", "send", "receive_single", "send_all"]


def test_a_stream_of_equal_datagrams_goes_out_by_one_call_and_comes_back_by_one() -> None:
    relay = Relay()
    relay.ask(ONE, b"first")
    stream = [bytes([number]) * 100 for number in range(30)] + [b"short"]
    relay.kernel.calls.clear()
    relay.ask(ONE, *stream)
    assert relay.target().got == [b"first", *stream]
    assert relay.kernel.calls == ["receive", "segment", "write"]
    relay.begin_streams()
    for payload in stream:
        relay.kernel.answer(relay.target(), payload)
    relay.run()
    assert payloads(relay.kernel.answers) == stream
    assert relay.kernel.calls == ["receive", "send_all"]
    relay.kernel.calls.clear()
    relay.ask(ONE, *stream)
    assert relay.kernel.calls == ["take", "send", "receive", "write"], "the first one came alone"
    assert relay.datagrams() == (1 + 2 * len(stream), 3 + len(stream))


def lasting() -> Relay:
    """With a flow that has gone on after its first answer, so that its calls are prepared."""
    relay = Relay()
    relay.ask(ONE, b"first")
    relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    relay.ask(ONE, b"second")
    relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    relay.turn()  # so that what comes next isn't in the next turn
    relay.target().got.clear()
    relay.kernel.answers.clear()
    relay.kernel.calls.clear()
    return relay


def test_a_flow_that_goes_on_is_served_by_prepared_calls() -> None:
    relay = lasting()
    for payload in (b"question", b"q", bytes(LARGEST)):
        relay.ask(ONE, payload)
        relay.kernel.answer(relay.target(), payload)
        relay.run()
        assert relay.kernel.calls == ["take", "send", "hear", "answer"]
        relay.kernel.calls.clear()
        assert relay.target().got == payloads(relay.kernel.answers)
    relay.ask(ONE, b"")
    relay.kernel.answer(relay.target(), b"")
    relay.run()
    assert relay.target().got[-1] == relay.kernel.answers[-1].payload == b""
    assert relay.datagrams() == (2 + 4, 2 + 4)


def test_what_prepared_calls_can_not_send_is_counted_and_the_flow_goes_on() -> None:
    relay = lasting()
    relay.kernel.inject("answer", errno.EAGAIN)
    relay.kernel.answer(relay.target(), b"lost")
    relay.run()
    relay.kernel.inject("take", errno.ECONNREFUSED)  # of an answer
    relay.kernel.inject("send", errno.EHOSTUNREACH, 0)  # of an earlier one
    relay.ask(ONE, b"question")
    relay.kernel.inject("send", errno.ENOBUFS)
    relay.ask(client_ipv4(7), b"another's")
    relay.ask(ONE, b"again")
    relay.kernel.no_source.add("127.0.0.1")
    relay.kernel.answer(relay.kernel.sockets[0], b"from anywhere")
    relay.run()
    assert relay.kernel.answers == [Datagram(ONE, "0.0.0.0", b"from anywhere")]
    assert relay.kernel.sockets[0].got == [b"question", b"again"]
    assert relay.counted("dropped_send") == 2


def test_a_refusal_of_a_flow_that_goes_on_ends_it() -> None:
    relay = lasting()
    relay.kernel.refusing.add(OTHER if relay.target().target == OTHER else FOUR)
    relay.kernel.late = True
    relay.ask(ONE, b"question")
    relay.kernel.deliver_refusals()
    relay.run()
    assert relay.kernel.calls == ["take", "send", "hear", "receive"]
    assert relay.counted("refused") == 1
    relay.check()


def test_many_answers_at_once_of_a_flow_that_goes_on_are_heard_out() -> None:
    relay = lasting()
    stream = [b"%d" % number for number in range(9)]
    for payload in stream:
        relay.kernel.answer(relay.target(), payload)
    relay.run()
    assert payloads(relay.kernel.answers) == stream
    assert relay.kernel.calls == ["hear", "answer", "receive", "take_joined", "send_all"]


def test_a_target_that_begins_to_send_many_is_heard_out_in_the_second_turn() -> None:
    relay = Relay()
    relay.ask(ONE, b"question")
    stream = [b"%d" % number for number in range(9)]
    relay.kernel.calls.clear()
    for payload in stream:
        relay.kernel.answer(relay.target(), payload)
    relay.turn()
    assert relay.kernel.calls == ["receive_single", "send_all"]
    relay.turn()
    assert payloads(relay.kernel.answers) == stream
    assert relay.kernel.calls[2:] == ["receive", "take_joined", "send_all"]


def test_requests_and_answers_are_received_singly_however_fast_they_come() -> None:
    relay = Relay()
    relay.ask(ONE, b"first")
    relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    for _ in range(10):
        relay.kernel.calls.clear()
        relay.ask(ONE, b"question")
        relay.kernel.answer(relay.target(), b"answer")
        relay.run()
        assert relay.kernel.calls == ["take", "send", "hear", "answer"]
    relay.kernel.answer(relay.target(), b"unasked")
    relay.turn()
    assert relay.kernel.calls[-2:] == ["receive", "send_all"], "in the next turn there may be more"
    assert not relay.target().takes_joined, "but there was one only"


def test_what_came_joined_goes_on_joined() -> None:
    relay = Relay()
    relay.ask(ONE, b"first")
    relay.kernel.ask(relay.first, ONE, b"aaaabbbbcc", segment=4)
    relay.run()
    assert relay.target().got == [b"first", b"aaaa", b"bbbb", b"cc"]
    relay.begin_streams()
    relay.kernel.answer(relay.target(), b"ddddeeeef", segment=4)
    relay.run()
    assert payloads(relay.kernel.answers) == [b"dddd", b"eeee", b"f"]
    assert relay.datagrams() == (4, 3 + 3)


def test_what_came_joined_as_a_client_s_first_is_as_good() -> None:
    relay = Relay()
    relay.kernel.ask(relay.first, ONE, b"aaaabbbbcc", segment=4)
    relay.kernel.ask(relay.second, client_mapped(1), b"aaaabbbbcc", segment=4)
    relay.run()
    assert [sock.got for sock in relay.kernel.sockets] == 2 * [[b"aaaa", b"bbbb", b"cc"]]


def test_sizes_that_alternate_keep_their_order_and_their_sizes() -> None:
    relay = Relay()
    sent = [b"", b"aa", b"bb", b"cccc", b"", b"d", b"eeee", b"ffff", b"ggggg", bytes(65507), b"h"]
    for _ in range(2):
        relay.ask(ONE, *sent)
        for payload in sent:
            relay.kernel.answer(relay.target(), payload)
        relay.run()
    assert relay.target().got == 2 * sent
    assert payloads(relay.kernel.answers) == 2 * sent


def test_clients_that_come_mixed_are_told_apart() -> None:
    relay = Relay()
    for number in range(20):
        for client in (ONE, TWO, THREE):
            relay.kernel.ask(relay.first, client, b"%d of %d" % (number % 10, client[3]))
    relay.run()
    assert len(relay.kernel.sockets) == 3
    for client, sock in zip((ONE, TWO, THREE), relay.kernel.sockets, strict=True):
        assert sock.got == [b"%d of %d" % (number % 10, client[3]) for number in range(20)]


def messages_a_call(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each call to send answers is given, from now on."""
    numbers: list[int] = []
    send_all = relay.kernel.send_all

    def counting(fd: int, outbox: Outbox, first: int, number: int) -> int:
        numbers.append(number)
        return send_all(fd, outbox, first, number)

    monkeypatch.setattr(relay.kernel, "send_all", counting)
    return numbers


def test_different_clients_datagrams_that_come_together_cost_a_call_each() -> None:
    relay = Relay()
    relay.ask(ONE, b"first")
    relay.ask(TWO, b"first")
    relay.kernel.calls.clear()
    for client in (ONE, TWO, THREE):
        relay.kernel.ask(relay.first, client, b"question")
    relay.kernel.ask(relay.second, client_mapped(1), b"aaaabb", segment=4)
    relay.kernel.ask(relay.second, client_mapped(2), b"question")
    relay.run()
    assert [sock.got[-1] for sock in relay.kernel.sockets] == [
        *3 * [b"question"],
        b"bb",
        b"question",
    ]
    assert relay.kernel.calls[:4] == ["receive", "send", "send", "connect"]


def test_answers_of_all_targets_that_are_ready_leave_with_one_call_a_listener(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relay = Relay()
    for number in range(3):
        relay.kernel.ask(relay.first, client_ipv4(number), b"question")
    relay.run()
    for number in range(2):
        relay.kernel.ask(relay.second, client_mapped(number), b"question")
    relay.run()
    relay.begin_streams()
    sent = messages_a_call(relay, monkeypatch)
    for number, sock in enumerate(relay.kernel.sockets):
        relay.kernel.answer(sock, b"%d" % number)
    relay.kernel.answer(relay.kernel.sockets[1], b"joined")
    relay.kernel.answer(relay.kernel.sockets[1], b"joined")
    relay.run()
    assert sent == [4, 2]
    assert relay.kernel.answers == [
        Datagram(client_ipv4(0), "127.0.0.1", b"0"),
        Datagram(client_ipv4(1), "127.0.0.1", b"1"),
        *2 * [Datagram(client_ipv4(1), "127.0.0.1", b"joined")],
        Datagram(client_ipv4(2), "127.0.0.1", b"2"),
        Datagram(client_mapped(0), "127.0.0.1", b"3"),
        Datagram(client_mapped(1), "127.0.0.1", b"4"),
    ]
    assert (relay.counted("connected"), relay.datagrams()) == (5, (5, 15 + 7))


def test_more_answers_than_slots_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Relay()
    clients = [client_ipv4(number) for number in range(6)]
    for client in clients:
        relay.kernel.ask(relay.first, client, b"question")
    relay.run()
    relay.begin_streams()
    sent = messages_a_call(relay, monkeypatch)
    for sock in relay.kernel.sockets:
        for number in range(35):  # of growing sizes, so that none can be joined
            relay.kernel.answer(sock, bytes(number + 1))
    relay.run()
    assert sent == [*3 * [SLOTS], 3 * (2 * 35 - SLOTS)]
    for client in clients:
        got = [one.payload for one in relay.kernel.answers if one.client == client]
        assert got == [bytes(number + 1) for number in range(35)]


def test_a_message_that_the_kernel_refuses_stops_none_of_the_others() -> None:
    relay = Relay()
    relay.kernel.no_source.add("192.0.2.255")
    asked = ["192.0.2.1", "192.0.2.255", "192.0.2.2", "192.0.2.3", "192.0.2.4"]
    for number, address in enumerate(asked):
        relay.kernel.ask(relay.second, client_mapped(number), b"question", address)
    relay.run()
    relay.begin_streams()
    for sock in relay.kernel.sockets[:3]:
        relay.kernel.answer(sock, b"answer")
    relay.kernel.answer(relay.kernel.sockets[3], b"aaaabb", segment=4)
    relay.kernel.answer(relay.kernel.sockets[4], b"last")
    # Fine, refused and sent from anywhere, out of room; joined: refused, then each; fine.
    relay.kernel.inject("send_all", *5 * [0], errno.ENOBUFS, errno.EIO)
    relay.run()
    assert [(one.client, one.source, one.payload) for one in relay.kernel.answers] == [
        (client_mapped(0), "192.0.2.1", b"answer"),
        (client_mapped(1), "0.0.0.0", b"answer"),
        (client_mapped(3), "192.0.2.3", b"aaaa"),
        (client_mapped(3), "192.0.2.3", b"bb"),
        (client_mapped(4), "192.0.2.4", b"last"),
    ]
    assert relay.counted("dropped_send") == 1
    assert relay.datagrams() == (5, 15 + 5)


def test_a_refusal_among_answers_costs_none_of_them() -> None:
    relay = Relay(rows=6)
    for number in range(3):
        relay.kernel.ask(relay.second, client_mapped(number), b"question")
    relay.run()
    for sock in relay.kernel.sockets:
        relay.kernel.answer(sock, b"answer")
    relay.kernel.sockets[1].error = errno.ECONNREFUSED
    relay.run()
    assert payloads(relay.kernel.answers) == 3 * [b"answer"]
    assert [sock.closed for sock in relay.kernel.sockets] == [False, True, False]
    assert [(one.end, one.flow.bytes_to_client) for one in relay.ends] == [(End.REFUSED, 6)]
    assert (relay.counted("refused"), relay.counted("connected")) == (1, 3)


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP])
def test_where_joining_is_impossible_each_goes_singly_and_none_twice(code: int) -> None:
    relay = Relay()
    relay.ask(ONE, b"first")
    tries = 2 if code == errno.EMSGSIZE else 1  # the first may be about an earlier datagram
    relay.kernel.inject("write", *tries * [code])
    stream = 3 * [b"aaaa"] + [b"bb"]
    relay.ask(ONE, *stream)
    relay.ask(ONE, *stream)
    assert relay.target().got == [b"first", *stream, *stream]
    assert relay.kernel.calls.count("write") == tries
    relay.begin_streams()
    relay.kernel.inject("send_all", code)
    for _ in range(2):
        for payload in stream:
            relay.kernel.answer(relay.target(), payload)
        relay.run()
    assert payloads(relay.kernel.answers) == 2 * stream


def test_datagrams_larger_than_a_packet_go_singly_and_smaller_ones_joined() -> None:
    relay = Relay()
    relay.kernel.largest_joined = 50
    relay.ask(ONE, b"first")
    large, small = 3 * [bytes(60)], 3 * [bytes(40)]
    relay.ask(ONE, *large, *small)
    relay.kernel.calls.clear()
    relay.ask(ONE, *large, *small)
    assert relay.kernel.calls.count("send") == 3
    assert relay.kernel.calls.count("write") == 1
    for payload in large + small:
        relay.kernel.answer(relay.target(), payload)
    relay.kernel.answer(relay.target(), bytes(180), segment=60)
    relay.run()
    assert relay.target().got == [b"first", *large, *small, *large, *small]
    assert payloads(relay.kernel.answers) == [*large, *small, *large]


def test_the_other_loopback_gets_the_datagram_that_the_first_refuses_and_then_is_first() -> None:
    relay = Relay()
    relay.kernel.refusing.add(FOUR)
    relay.ask(ONE, b"question", b"another")
    assert relay.target().target == SIX
    assert relay.target().got == [b"question", b"another"]
    relay.ask(TWO, b"question")
    assert [sock.target for sock in relay.kernel.sockets] == [FOUR, SIX, SIX]
    assert relay.counted("refused") == 0
    assert relay.datagrams() == (3, 0)


def test_a_target_that_refuses_at_both_loopbacks_is_counted_once_and_noted() -> None:
    relay = Relay()
    relay.kernel.refusing |= {FOUR, SIX}
    relay.ask(ONE, b"question")
    relay.run()
    assert relay.counted("refused") == 1
    assert relay.monitor.notes == [(Note.REFUSED, errno.ECONNREFUSED, 7)]
    assert not relay.engine.flows.by_fd


def test_a_refusal_ends_the_flow_once_the_answers_before_it_are_passed_on() -> None:
    relay = Relay()
    relay.kernel.late = True
    relay.kernel.ask(relay.second, client_mapped(1), b"question")
    relay.run()
    relay.kernel.refusing.add(OTHER)
    relay.kernel.ask(relay.second, client_mapped(1), b"another")
    relay.run()
    relay.kernel.answer(relay.target(), b"answer")
    relay.kernel.deliver_refusals()
    relay.run()
    assert payloads(relay.kernel.answers) == [b"answer"]
    assert relay.target().closed
    assert (relay.counted("refused"), relay.counted("connected")) == (1, 1)
    relay.kernel.refusing.clear()
    relay.kernel.ask(relay.second, client_mapped(1), b"again")
    relay.run()
    assert relay.target().got == [b"again"]


def test_a_refusal_costs_none_of_the_many_answers_before_it() -> None:
    relay = lasting()
    stream = [b"%d" % number for number in range(4 * SLOTS)]
    for payload in stream:
        relay.kernel.answer(relay.target(), payload)
    relay.target().error = errno.ECONNREFUSED
    relay.run()
    assert payloads(relay.kernel.answers) == stream
    assert relay.counted("refused") == 1


def test_a_refusal_that_sending_returns_costs_none_of_the_answers_before_it() -> None:
    relay = lasting()
    stream = [b"%d" % number for number in range(9)]
    relay.kernel.ask(relay.first, ONE, b"question")
    relay.turn()
    relay.kernel.refusing |= {FOUR, SIX}
    for payload in stream:
        relay.kernel.answer(relay.target(), payload)
    for payload in (b"is", b"anybody", b"still there?", b"hello?"):
        relay.kernel.ask(relay.first, ONE, payload)
    relay.turn()
    relay.check()
    assert payloads(relay.kernel.answers) == stream
    assert relay.counted("refused") == 1
    assert relay.counted("dropped_send") == 3
    assert relay.target().closed


def test_other_errors_of_a_flow_s_socket_are_read_once_and_do_not_end_it() -> None:
    relay = Relay()
    relay.ask(ONE, b"question")
    relay.target().error = errno.EHOSTUNREACH
    relay.run()
    relay.target().error = errno.ENETUNREACH
    relay.ask(ONE, b"another")
    assert relay.target().got == [b"question", b"another"]
    assert len(relay.engine.flows.by_fd) == 1


def test_a_receiver_that_takes_no_more_costs_datagrams_which_are_counted() -> None:
    relay = Relay()
    relay.ask(ONE, b"first")
    relay.kernel.inject("send", errno.ENOBUFS)
    relay.kernel.inject("write", errno.EAGAIN)
    relay.ask(ONE, b"a", b"bb", b"bb")
    assert relay.counted("dropped_send") == 3
    relay.kernel.inject("send_all", errno.EAGAIN)
    relay.kernel.answer(relay.target(), b"lost")
    relay.kernel.answer(relay.target(), b"kept, as it is larger")
    relay.run()
    assert payloads(relay.kernel.answers) == [b"kept, as it is larger"]
    assert relay.counted("dropped_send") == 4


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENETUNREACH])
def test_an_address_that_can_not_be_answered_from_is_answered_from_another_one(code: int) -> None:
    relay = Relay()
    relay.kernel.no_source.add("192.0.2.255")
    relay.kernel.says_no_source = code
    relay.kernel.ask(relay.second, client_mapped(1), b"question", "192.0.2.255")
    relay.run()
    relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    assert relay.kernel.answers == [Datagram(client_mapped(1), "0.0.0.0", b"answer")]
    relay.kernel.answer(relay.target(), b"aaaabb", segment=4)
    relay.run()
    assert payloads(relay.kernel.answers) == [b"answer", b"aaaa", b"bb"]


@pytest.mark.parametrize("sent", [[b"another"], [b"aaaa", b"bbbb"]])
def test_an_error_about_an_earlier_datagram_costs_no_later_one(sent: list[bytes]) -> None:
    relay = Relay()
    for code in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMSGSIZE):
        relay.ask(ONE, b"first")
        relay.kernel.inject("send" if len(sent) == 1 else "write", code)
        relay.ask(ONE, *sent)
    assert relay.target().got == 3 * [b"first", *sent]
    assert relay.counted("dropped_send") == 0
    assert next(iter(relay.engine.flows.by_fd.values())).joinable == LARGEST


@pytest.mark.parametrize("code", [errno.EDESTADDRREQ, errno.EINVAL, errno.ENETUNREACH])
def test_a_flow_whose_socket_is_of_no_use_any_more_gives_way_to_another_one(code: int) -> None:
    """Its own address has gone, or it has no peer any more."""
    relay = Relay()
    relay.ask(ONE, b"first")
    relay.wait(1)
    relay.kernel.inject("send", code, code)
    relay.ask(ONE, b"lost")
    assert not relay.engine.flows.by_fd
    relay.kernel.faults.clear()
    relay.ask(ONE, b"second")
    assert [sock.got for sock in relay.kernel.sockets] == [[b"first"], [], [b"second"]]
    assert (relay.counted("refused"), relay.counted("dropped_send")) == (1, 1)


def test_where_there_is_no_way_at_the_moment_a_flow_stays_and_a_socket_is_tried_now_and_then() -> (
    None
):
    relay = Relay()
    relay.ask(ONE, b"first")
    relay.kernel.calls.clear()
    for _ in range(10):
        relay.kernel.inject("send", errno.ENETUNREACH, errno.ENETUNREACH)
        relay.kernel.inject("connect", errno.ENETUNREACH)
        relay.wait(0.3)
        relay.ask(ONE, b"lost")
    assert relay.kernel.calls.count("connect") == 3
    relay.kernel.faults.clear()
    relay.ask(ONE, b"second")
    assert relay.target().got == [b"first", b"second"]
    assert relay.counted("dropped_send") == 10


def test_what_passes_after_an_error_prolongs_a_flow_as_ever() -> None:
    relay = Relay()
    relay.ask(ONE, b"question")
    relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    relay.wait(119)
    relay.kernel.inject("send", errno.ENETUNREACH, errno.ENETUNREACH)
    relay.kernel.inject("connect", errno.ENETUNREACH)
    relay.ask(ONE, b"lost")
    relay.wait(0.5)
    relay.ask(ONE, b"second")
    relay.wait(30)
    relay.kernel.answer(relay.target(), b"late")
    relay.run()
    assert payloads(relay.kernel.answers) == [b"answer", b"late"]
    assert relay.counted("expired") == 0


def test_where_no_port_is_left_a_new_client_gets_that_of_an_unanswered_flow() -> None:
    relay = Relay()
    relay.kernel.ports = 4
    for number in range(10):
        relay.ask(client_ipv4(number), b"question")
    assert [sock.got for sock in relay.kernel.sockets] == 10 * [[b"question"]]
    assert relay.counted("evicted") == 6
    assert relay.counted("refused") == 0


def test_a_flow_lives_as_long_as_it_is_used_and_longer_once_it_was_answered() -> None:
    relay = Relay()
    relay.ask(ONE, b"question")
    relay.ask(TWO, b"question")
    relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    relay.wait(29.9)
    assert len(relay.engine.flows.by_fd) == 2
    relay.wait(0.2 + TICK)
    assert relay.counted("unanswered") == 1
    assert [flow.key[:16] for flow in relay.engine.flows.by_fd.values()] == [TWO]
    relay.wait(85)
    relay.ask(TWO, b"question")
    relay.wait(119.9)
    assert relay.counted("expired") == 0
    relay.wait(0.2 + TICK)
    assert relay.counted("expired") == 1
    assert not relay.engine.flows.by_fd


def test_epoll_sleeps_until_the_first_flow_may_be_over_and_for_ever_without_any() -> None:
    relay = Relay()
    relay.engine.turn({})
    assert relay.kernel.epoll_.timeout is None
    relay.ask(ONE, b"question")
    relay.engine.turn({})
    assert relay.kernel.epoll_.timeout == pytest.approx(30 + TICK)
    relay.wait(31)
    relay.engine.turn({})
    assert relay.kernel.epoll_.timeout is None


def test_flows_that_are_over_soon_after_each_other_are_ended_together() -> None:
    relay = Relay()
    for number in range(10, 50):
        relay.ask(client_ipv4(number), b"question")
        relay.wait(0.04)
    woken = 0
    while relay.engine.flows.by_fd:
        relay.engine.turn({})
        relay.wait(relay.kernel.epoll_.timeout or 0)
        woken += 1
    assert woken <= 4
    assert relay.counted("unanswered") == 40


def test_a_flood_evicts_what_was_never_answered_and_nothing_else() -> None:
    relay = Relay(flows=8)
    relay.engine.remove_listener(8, relay.second, reset_flows=True)
    relay.ask(ONE, b"question")
    relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    answered = relay.target()
    for number in range(10, 50):
        relay.ask(client_ipv4(number), b"made up")
    assert not answered.closed
    assert relay.counted("evicted") == 40 - 7
    relay.ask(ONE, b"another")
    assert answered.got == [b"question", b"another"]


def test_the_unanswered_flow_that_was_used_last_stays_longest() -> None:
    relay = Relay(flows=2)
    relay.engine.remove_listener(8, relay.second, reset_flows=True)
    for client in (ONE, TWO):
        relay.ask(client, b"question")
        relay.wait(1)
    relay.ask(ONE, b"another")
    relay.ask(THREE, b"question")
    assert {flow.key[:16] for flow in relay.engine.flows.by_fd.values()} == {ONE, THREE}


def test_a_flood_that_is_answered_evicts_what_was_brief_and_nothing_else() -> None:
    relay = Relay(flows=8)
    relay.engine.remove_listener(8, relay.second, reset_flows=True)
    for _ in range(2):
        relay.ask(ONE, b"question")
        relay.kernel.answer(relay.target(), b"answer")
        relay.run()
        relay.wait(2.1)
    kept = relay.target()
    for number in range(10, 50):
        relay.ask(client_ipv4(number), b"question")
        relay.kernel.answer(relay.target(), b"answer")
        relay.run()
        assert payloads(relay.kernel.answers[-1:]) == [b"answer"]
        if number == 45:
            relay.wait(1.9)
            relay.ask(client_ipv4(40), b"another")  # it has been used last, and stays longest
    assert not kept.closed
    assert relay.counted("evicted") == 40 - 7
    assert relay.counted("dropped_limit") == 0
    here = {flow.key[:16] for flow in relay.engine.flows.by_fd.values()}
    assert client_ipv4(40) in here
    assert client_ipv4(39) not in here


@pytest.mark.parametrize(("late", "often", "at_once"), [(2.1, 1, 2), (0.1, 5, 1), (2.1, 3, 9)])
def test_what_is_answered_late_or_over_and_over_is_brief_all_the_same(
    late: float, often: int, at_once: int
) -> None:
    """As by a server that repeats what nobody confirms."""
    relay = Relay(flows=8)
    relay.engine.remove_listener(8, relay.second, reset_flows=True)
    for number in range(10, 18):
        relay.ask(client_ipv4(number), b"made up")
    relay.wait(late)
    for _ in range(often):
        for sock in relay.kernel.sockets:
            for _ in range(at_once):
                relay.kernel.answer(sock, b"answer")
        relay.run()
        relay.wait(1)
    relay.ask(ONE, b"question")
    assert relay.target().got == [b"question"]
    assert (relay.counted("evicted"), relay.counted("dropped_limit")) == (1, 0)


def test_a_client_that_goes_on_is_noted_however_much_its_target_sends() -> None:
    relay = Relay(flows=8)
    relay.engine.remove_listener(8, relay.second, reset_flows=True)
    relay.ask(ONE, b"question")
    kept = relay.target()
    for number in range(300):
        relay.kernel.answer(kept, b"stream")
        relay.run()
        relay.wait(0.01)
        if number == 250:
            relay.ask(ONE, b"go on")
    for number in range(10, 30):
        relay.ask(client_ipv4(number), b"made up")
        relay.kernel.answer(relay.target(), b"answer")
        relay.run()
    assert not kept.closed
    assert relay.counted("evicted") == 20 - 7


def test_where_every_flow_goes_on_a_new_client_waits_in_vain() -> None:
    relay = Relay(flows=2)
    relay.engine.remove_listener(8, relay.second, reset_flows=True)
    for client in (ONE, TWO):
        relay.ask(client, b"question")
        relay.kernel.answer(relay.target(), b"answer")
        relay.run()
    relay.wait(2.1)
    for client in (ONE, TWO):
        relay.ask(client, b"question")
    relay.ask(THREE, b"question")
    assert relay.counted("dropped_limit") == 1
    assert relay.counted("evicted") == 0


def test_one_listener_leaves_a_quarter_of_all_flows_to_the_others() -> None:
    relay = Relay(flows=8)
    for number in range(8):
        relay.ask(client_ipv4(number), b"question")
        relay.kernel.answer(relay.target(), b"answer")
        relay.run()
        relay.wait(2.1)
        relay.ask(client_ipv4(number), b"question")
    assert len(relay.engine.flows.by_fd) == 6
    for number in range(2):
        relay.kernel.ask(relay.second, client_mapped(number), b"question")
        relay.run()
    assert len(relay.engine.flows.by_fd) == 8
    assert relay.counted("evicted") == 0


def test_without_a_socket_clients_wait_and_keep_their_order() -> None:
    relay = Relay(pool=2)
    relay.generous = False
    for number in range(4):
        for payload in (b"1", b"22", b"22", b"3"):
            relay.kernel.ask(relay.first, client_ipv4(number), payload)
    relay.turn()
    relay.turn()
    assert not relay.engine.watching
    relay.generous = True
    while relay.monitor.asked or relay.kernel.epoll_.ready():
        relay.supply()
        relay.turn()
    assert [sock.got for sock in relay.kernel.sockets] == 4 * [[b"1", b"22", b"22", b"3"]]
    relay.check()


def test_where_the_monitor_has_no_socket_new_clients_are_dropped_and_flows_go_on() -> None:
    relay = Relay(pool=2)
    relay.generous = False
    for number in range(4):
        relay.kernel.ask(relay.first, client_ipv4(number), b"question")
    relay.turn()
    relay.turn()
    for family, _ in relay.monitor.asked:
        relay.engine.add_sockets(family, [])
    relay.monitor.asked.clear()
    assert relay.counted("dropped_limit") == 2
    relay.ask(client_ipv4(0), b"another")
    relay.ask(client_ipv4(5), b"new")
    assert relay.kernel.sockets[0].got == [b"question", b"another"]
    assert relay.counted("dropped_limit") == 3
    assert not relay.monitor.asked
    relay.wait(1.1)
    assert relay.monitor.asked
    relay.generous = True
    relay.supply()
    relay.ask(client_ipv4(5), b"new")
    assert relay.target().got == [b"new"]


def test_flows_go_on_where_the_monitor_says_nothing() -> None:
    """Once all have waited for a second; and new clients are served once it speaks again."""
    relay = Relay(pool=2)
    relay.generous = False
    for number in range(4):
        relay.kernel.ask(relay.first, client_ipv4(number), b"question")
    relay.turn()
    relay.turn()
    relay.kernel.ask(relay.first, client_ipv4(0), b"another")
    relay.engine.turn({})
    assert relay.kernel.epoll_.timeout == pytest.approx(1)
    relay.wait(0.9)
    assert relay.kernel.sockets[0].got == [b"question"]
    relay.wait(0.2)
    for _ in range(5):
        relay.run()
        assert relay.engine.watching
        relay.wait(1.1)
        relay.ask(client_ipv4(0), b"more")
        relay.ask(client_ipv4(5), b"new")
    assert relay.kernel.sockets[0].got == [b"question", b"another", *5 * [b"more"]]
    assert relay.counted("dropped_limit") == 2 + 5
    assert relay.monitor.asked == [(0, 1)], "it was asked once"
    relay.generous = True
    relay.supply()
    relay.ask(client_ipv4(5), b"new")
    assert relay.target().got == [b"new"]
    relay.wait(1.1)
    assert not relay.engine.shortage_until
    relay.check()


def test_what_queues_dropped_is_counted_but_not_what_an_earlier_relay_has() -> None:
    relay = Relay()
    relay.kernel.ask(relay.first, ONE, b"question", drops=5)
    relay.run()
    assert relay.counted("dropped_queue") == 0
    relay.kernel.ask(relay.first, ONE, b"question", drops=7)
    relay.run()
    assert relay.counted("dropped_queue") == 2
    relay.kernel.ask(relay.second, client_mapped(1), b"question")
    relay.run()
    relay.kernel.ask(relay.second, client_mapped(1), b"question", drops=3)
    relay.run()
    assert relay.counted("dropped_queue") == 5
    relay.begin_streams()
    relay.target().drops = 4
    relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    assert relay.counted("dropped_queue") == 9
    assert payloads(relay.kernel.answers) == [b"answer"]


def test_what_a_queue_dropped_after_datagrams_that_began_no_flow_is_counted() -> None:
    relay = Relay()
    relay.ask(client_ipv4(-1000), b"without a port")
    relay.kernel.ask(relay.first, ONE, b"question", drops=5)
    relay.run()
    assert relay.counted("dropped_source") == 1
    assert relay.counted("dropped_queue") == 5


def test_what_a_listener_s_error_queue_holds_is_thrown_away_and_clients_are_served() -> None:
    relay = Relay()
    relay.kernel.get(relay.first).errors = 3 * SLOTS + 1
    relay.ask(ONE, b"question")
    assert relay.kernel.calls.count("discard_errors") == 4
    assert relay.target().got == [b"question"]
    relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    assert relay.kernel.answers == [Datagram(ONE, "127.0.0.1", b"answer")]


@pytest.mark.parametrize("port", [0, 1000])
def test_who_has_no_address_is_no_client(port: int) -> None:
    """Else the kernel would send the answer to this machine itself, be it to the listener."""
    relay = Relay()
    pairs = [
        (relay.first, "0.0.0.0", "192.0.2.1"),
        (relay.first, "192.0.2.7", "192.0.2.1"),
        (relay.second, "::", "2001:db8::1"),
        (relay.second, "::ffff:0.0.0.0", "192.0.2.1"),
        (relay.second, "::ffff:192.0.2.7", "192.0.2.1"),
        (relay.second, "2001:db8::7", "2001:db8::1"),
        # What is of IPv4 in a packet of IPv6 is made up.
        (relay.second, "::ffff:127.0.0.1", "2001:db8::1"),
    ]
    for listener, source, asked in pairs:
        client = socketcalls.sockaddr(ip_address(source), port)
        relay.kernel.ask(listener, client, b"aaaabb", asked, segment=4)
        relay.run()
    wrong = 7 if port == 0 else 4
    assert relay.counted("dropped_source") == 2 * wrong
    assert relay.counted("accepted") == 7 - wrong


def test_a_listener_is_no_client_of_its_own_whichever_of_its_addresses_it_asks() -> None:
    """A forged source would have it answer itself, and be answered, for ever."""
    relay = Relay()
    one, two, elsewhere = "2001:db8::1", "2001:db8::2", "2001:db8::3"
    for source, port, asked, is_client in (
        (two, PORT + 1, one, True),  # nobody can know yet that this is an address of its own
        (one, PORT + 1, two, False),  # to whom the answer comes
        (two, PORT + 1, one, True),  # the flow that there is
        (one, PORT + 1, one, False),
        (one, PORT + 2, one, True),  # another program's port
        (elsewhere, PORT + 1, one, True),  # another machine's, which has the same number
    ):
        before = relay.datagrams()[0]
        client = socketcalls.sockaddr(ip_address(source), port)
        relay.kernel.ask(relay.second, client, b"question", asked)
        relay.run()
        assert (relay.datagrams()[0] > before) == is_client
    assert relay.counted("dropped_source") == 2


def test_listeners_are_no_clients_of_each_other_until_one_is_removed() -> None:
    relay = Relay()
    at = "192.0.2.1"
    second = socketcalls.sockaddr(ip_address(f"::ffff:{at}"), PORT)
    relay.ask(ONE, b"question", asked=at)
    relay.kernel.ask(relay.second, second, b"an answer of the first one", at)
    relay.run()
    relay.ask(socketcalls.sockaddr(ip_address(at), PORT + 1), b"of the second one", asked=at)
    assert relay.counted("dropped_source") == 2
    assert relay.counted("accepted") == 1
    relay.engine.remove_listener(7, relay.first, reset_flows=True)
    relay.kernel.ask(relay.second, second, b"of another program", at)
    relay.run()
    assert relay.target().got == [b"of another program"]


def test_a_bounded_number_of_addresses_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MOST_ENDPOINTS", 20)
    relay = Relay(flows=10)
    for number in range(30):
        relay.ask(ONE, b"question", asked=f"127.0.0.{number + 1}")
    assert len(relay.engine.endpoints) == 20


def test_a_listener_that_goes_takes_its_flows_with_it_and_one_that_comes_is_served() -> None:
    relay = Relay()
    relay.ask(ONE, b"question")
    relay.engine.remove_listener(7, relay.first, reset_flows=False)
    assert relay.target().closed
    assert not relay.engine.flows.by_fd
    relay.kernel.given[5] = Sock(socket.AF_INET, listens=True)
    relay.engine.add_listener(Listener(5, SINGLE, SINGLE, 9))
    relay.kernel.ask(5, ONE, b"question")
    relay.run()
    assert relay.target().got == [b"question"]
    relay.engine.add_listener(Listener(6, SINGLE, SINGLE, 10))  # removed meanwhile
    assert 6 not in relay.engine.listeners
    relay.engine.remove_listener(3, 5, reset_flows=True)  # another forward's record, which is late
    assert 5 in relay.engine.listeners


def test_draining_lets_flows_go_on_and_begins_none() -> None:
    relay = Relay()
    relay.ask(ONE, b"question")
    relay.engine.drain()
    relay.ask(ONE, b"another")
    relay.ask(TWO, b"question")
    assert relay.target().got == [b"question", b"another"]
    assert relay.counted("dropped_limit") == 1
    relay.kernel.clock += 31
    relay.engine.run({})
    relay.engine.finish()
    assert (relay.counted("drained"), relay.counted("stopped")) == (1, 0)


def test_at_the_end_what_is_ready_is_passed_on() -> None:
    relay = Relay()
    relay.ask(ONE, b"question")
    relay.kernel.answer(relay.target(), b"answer")
    relay.engine.finish()
    assert payloads(relay.kernel.answers) == [b"answer"]
    assert relay.counted("stopped") == 1


def test_rows_show_flows_and_how_they_ended() -> None:
    relay = Relay(rows=4)
    relay.ask(ONE, b"question")
    relay.ask(TWO, b"question")
    relay.kernel.answer(relay.target(), b"answer")
    relay.run()
    assert relay.stats.flows is not None
    rows = {row.client[1]: row for row in relay.stats.flows}
    assert rows[1001].state is State.CONNECTING
    assert rows[1002].state is State.ESTABLISHED
    assert (rows[1002].bytes_to_target, rows[1002].bytes_to_client) == (8, 6)
    assert rows[1002].protocol.number == 17
    relay.wait(31)
    relay.wait(121)
    assert [(one.end, one.flow.client[1]) for one in relay.ends] == [
        (End.UNANSWERED, 1001),
        (End.EXPIRED, 1002),
    ]
    assert (relay.counted("bytes_to_target"), relay.counted("bytes_to_client")) == (16, 6)
    assert relay.stats.in_use()["sockets_ipv4"] == len(relay.engine.pools[0].ready)


def test_an_error_that_no_rule_foresees_ends_that_flow_only() -> None:
    relay = Relay()
    relay.ask(ONE, b"question")
    relay.ask(TWO, b"question")
    relay.monitor.note = lambda *_: None  # type: ignore[method-assign]
    relay.engine.flows.by_fd[next(iter(relay.engine.flows.by_fd))].reply = b"too short"
    relay.kernel.answer(relay.kernel.sockets[0], b"answer")
    relay.kernel.answer(relay.kernel.sockets[1], b"answer")
    while relay.kernel.epoll_.ready():
        relay.turn()
    assert relay.counted("errors") == 1
    assert [sock.closed for sock in relay.kernel.sockets] == [True, False]
    assert payloads(relay.kernel.answers) == [b"answer"]


def test_a_flow_that_can_not_be_watched_ends_and_others_that_came_with_it_begin() -> None:
    """The kernel has a limit for that (fs.epoll.max_user_watches)."""
    relay = Relay(pool=2)
    relay.generous = False
    relay.monitor.note = lambda *_: None  # type: ignore[method-assign]
    for number in range(6):
        relay.kernel.ask(relay.first, client_ipv4(number), b"question")
    register, failures = relay.kernel.epoll_.register, [2, 5]

    def fails_sometimes(fd: int, mask: int) -> None:
        if fd not in relay.engine.listeners and len(relay.kernel.sockets) in failures:
            raise OSError(errno.ENOSPC, "")
        register(fd, mask)

    relay.kernel.epoll_.register = fails_sometimes  # type: ignore[method-assign]
    while relay.kernel.epoll_.ready():
        relay.turn()
    assert len(relay.engine.held) == 6 - 2
    relay.generous = True
    relay.supply()
    while relay.kernel.epoll_.ready():
        relay.turn()
    assert [sock.closed for sock in relay.kernel.sockets] == [at in failures for at in range(1, 7)]
    assert relay.counted("accepted") == 6
    assert relay.counted("errors") == relay.counted("dropped_send") == 2
    assert set(relay.engine.flows.by_fd) == relay.kernel.epoll_.watched - set(
        relay.engine.listeners
    )


def test_an_error_that_no_rule_foresees_leaves_others_datagrams_as_they_are() -> None:
    """Entries that were made pieces of other slots are their own slots' again."""
    relay = lasting()
    relay.monitor.note = lambda *_: None  # type: ignore[method-assign]
    target, write, send_all = relay.target(), relay.kernel.write, relay.kernel.send_all
    relay.kernel.ask(relay.first, THREE, b"beside")
    for _ in range(3):
        relay.kernel.ask(relay.first, TWO, b"mixed")
        relay.kernel.ask(relay.first, client_ipv4(7), b"mixed")
    relay.turn()
    relay.kernel.write = fails  # type: ignore[method-assign]
    relay.turn()
    assert relay.counted("errors") == 2
    relay.kernel.write = write  # type: ignore[method-assign]
    relay.turn()
    relay.kernel.calls.clear()
    relay.kernel.ask(relay.first, ONE, b"question")
    relay.turn()
    assert relay.kernel.calls == ["take", "send"]
    assert target.got == [b"question"]

    other = relay.kernel.sockets[1]
    other.takes_joined = relay.engine.flows.by_fd[_fd_of(relay, other)].many = True
    relay.kernel.answer(other, b"aaaabbbb", segment=4)
    relay.kernel.largest_joined = 3

    def fails_at_the_second(fd: int, outbox: Outbox, first: int, number: int) -> int:
        if relay.kernel.answers:
            raise OSError(errno.EIO, "")
        return send_all(fd, outbox, first, number)

    relay.kernel.send_all = fails_at_the_second  # type: ignore[method-assign]
    relay.turn()
    assert relay.counted("errors") == 3
    relay.kernel.answer(target, b"answer")
    relay.turn()
    assert payloads(relay.kernel.answers) == [b"aaaa", b"answer"]


def fails(fd: int, parts: Parts, first: int, number: int) -> int:
    raise OSError(errno.EIO, "")


def _fd_of(relay: Relay, sock: Sock) -> int:
    return next(fd for fd, one in relay.kernel.table.items() if one is sock)
