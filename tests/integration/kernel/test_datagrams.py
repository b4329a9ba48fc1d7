# SPDX-License-Identifier: GPL-2.0-or-later
"""The calls for datagrams and the memory that they use, on loopback: what comes out of the kernel
is what is read out of the structures, and what is put into them is what the kernel sends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

import pytest

from hardsplice.kernel import datagrams, prepared
from hardsplice.kernel.mmsghdr import (
    LARGEST,
    ROOM,
    SLOTS,
    Buffers,
    Inbox,
    Outbox,
    Parts,
)
from hardsplice.kernel.packet_info import reply_from_anywhere, reply_to
from hardsplice.kernel.pinned import IPV4_SIZE, IPV6_SIZE

EVERY_ADDRESS = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
NAME_SIZES = {socket.AF_INET: IPV4_SIZE, socket.AF_INET6: IPV6_SIZE}


class Server:
    """A listener as monitors make it, and memory to receive and answer."""

    def __init__(self, family: socket.AddressFamily) -> None:
        self.fd = datagrams.datagram_socket(family)
        datagrams.set_pktinfo(self.fd, family)
        assert datagrams.take_joined(self.fd) == 0
        self.socket = socket.socket(fileno=self.fd)
        if family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind((EVERY_ADDRESS[family], 0))
        self.port = self.socket.getsockname()[1]
        self.buffers = Buffers()
        self.inbox = Inbox(self.buffers, NAME_SIZES[family])
        self.parts = Parts(self.buffers)
        self.outbox = Outbox(self.parts, NAME_SIZES[family])

    def receive(self) -> list[bytes]:
        number = datagrams.receive(self.fd, self.inbox, 0, SLOTS)
        assert number > 0, os.strerror(-number)
        memory, sizes = self.buffers.memory, self.inbox.sizes(0, number)
        return [memory[at * ROOM : at * ROOM + size] for at, size in enumerate(sizes)]

    def control_size(self, slot: int = 0) -> int:
        (size,) = self.inbox.control_sizes(slot, 1)
        return size

    def key(self, slot: int = 0) -> bytes:
        used = self.control_size(slot)
        if used == self.inbox.plain:
            assert self.inbox.keys(slot + 1)[slot] == self.inbox.key_behind(slot, used)
        return self.inbox.key_behind(slot, used)


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "dual stack"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    made = Server(request.param)
    with contextlib.closing(made.socket):
        yield made


@contextlib.contextmanager
def client(address: tuple[str, int]) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.settimeout(5)
        made.connect(address)
        yield made


@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2"])
def test_an_answer_comes_from_the_address_that_was_asked(server: Server, asked: str) -> None:
    with client((asked, server.port)) as peer:  # connected: it hears nobody else
        peer.send(b"ping")
        assert server.receive() == [b"ping"]
        server.parts.resize(0, [4])
        server.outbox.put(0, reply_to(server.key()), 0, 1, 0)
        assert datagrams.send_all(server.fd, server.outbox, 0, 1) == 1
        assert peer.recv(100) == b"ping"


def test_an_answer_by_ipv6_comes_from_the_address_that_was_asked() -> None:
    server = Server(socket.AF_INET6)
    with contextlib.closing(server.socket), client(("::1", server.port)) as peer:
        peer.send(b"ping")
        assert server.receive() == [b"ping"]
        server.parts.resize(0, [4])
        for reply in (reply_to(server.key()), reply_from_anywhere(reply_to(server.key()))):
            server.outbox.put(0, reply, 0, 1, 0)
            assert datagrams.send_all(server.fd, server.outbox, 0, 1) == 1
            assert peer.recv(100) == b"ping"


def test_an_answer_from_anywhere_is_one_too(server: Server) -> None:
    with client(("127.0.0.1", server.port)) as peer:
        peer.send(b"ping")
        server.receive()
        server.parts.resize(0, [4])
        server.outbox.put(0, reply_from_anywhere(reply_to(server.key())), 0, 1, 0)
        assert datagrams.send_all(server.fd, server.outbox, 0, 1) == 1
        assert peer.recv(100) == b"ping"


def test_a_key_stands_for_one_client_and_the_address_that_it_asked(server: Server) -> None:
    keys = []
    for asked in ("127.0.0.1", "127.0.0.2"):
        with client((asked, server.port)) as first, client((asked, server.port)) as second:
            for peer in (first, second, first):
                peer.send(b"")
            assert server.receive() == [b"", b"", b""]
            assert server.inbox.control_sizes(0, 3) == 3 * [server.inbox.plain]
            assert server.key(0) == server.key(2)
            keys += [server.key(0), server.key(1)]
            server.inbox.renew(0, 3)
    assert len(set(keys)) == 4


def test_datagrams_keep_their_sizes_from_none_to_the_largest(server: Server) -> None:
    sent = [b"", b"x", bytes(1400), bytes(LARGEST)]
    with client(("127.0.0.1", server.port)) as peer:
        for payload in sent:
            peer.send(payload)
        assert server.receive() == sent


def test_what_is_sent_joined_comes_joined_and_goes_back_joined(server: Server) -> None:
    with client(("127.0.0.1", server.port)) as peer:
        assert datagrams.segment(peer.fileno(), 100) == 0
        peer.send(bytes(range(250)) + b"x" * 80)
        (payload,) = server.receive()
        assert len(payload) == 330
        control = server.inbox.control(0, server.control_size())
        assert (control.segment, control.drops) == (100, None)
        assert datagrams.segment(peer.fileno(), 0) == 0
        server.parts.resize(0, [330])
        server.outbox.put(0, reply_to(server.key()), 0, 1, control.segment)
        assert datagrams.send_all(server.fd, server.outbox, 0, 1) == 1
        assert [len(peer.recv(1000)) for _ in range(4)] == [100, 100, 100, 30]
        server.inbox.renew(0, 1)
        peer.send(b"one more")
        assert server.receive() == [b"one more"]
        assert server.control_size() == server.inbox.plain


def test_a_single_one_is_taken_with_its_slot_ready_and_one_that_is_special_is_not(
    server: Server,
) -> None:
    with client(("127.0.0.1", server.port)) as peer:
        for payload in (b"plain", b"again"):
            peer.send(payload)
            assert server.receive() == [payload]
            key = server.key()
            assert server.inbox.take_single() == key
        assert datagrams.segment(peer.fileno(), 100) == 0
        peer.send(bytes(330))
        server.receive()
        used = server.control_size()
        assert server.inbox.take_single() is None
        assert server.control_size() == used


def test_prepared_calls_take_and_answer_one_datagram_after_the_other(server: Server) -> None:
    take = prepared.take(server.fd, server.inbox)
    with client(("127.0.0.1", server.port)) as peer, client(("127.0.0.1", server.port)) as other:
        answers = {}
        for one in (peer, other):
            one.send(b"who")
            assert take() == 1
            key = server.inbox.take_single()
            assert key is not None
            answers[one] = prepared.answer(server.fd, server.parts, reply_to(key))
        for payload in (b"first", b"", b"s", bytes(LARGEST)):
            for one, answer in answers.items():
                one.send(payload)
                assert take() == 1
                assert server.inbox.take_single() is not None
                assert server.inbox.first_size[0] == len(payload)
                server.parts.resize(0, [len(payload)])
                assert answer() == 1
                assert one.recv(ROOM) == payload
        assert take() == -1
        assert prepared.error() == errno.EAGAIN


def test_prepared_calls_of_a_connected_socket() -> None:
    buffers = Buffers()
    parts = Parts(buffers)
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind(("127.0.0.1", 0))
    with contextlib.closing(peer), client(peer.getsockname()) as ours:
        ours.setblocking(False)
        peer.connect(ours.getsockname())
        send, hear = prepared.send(ours.fileno(), parts), prepared.hear(ours.fileno(), buffers)
        for payload in (b"first", b"s", bytes(LARGEST)):
            peer.send(payload)
            assert hear() == len(payload)
            parts.resize(0, [len(payload)])
            assert send() == len(payload)
            assert peer.recv(ROOM) == payload
        peer.send(b"")
        assert hear() == 0
        assert hear() == -1
        assert prepared.error() == errno.EAGAIN
        peer.close()
        assert send() == LARGEST
        assert send() == -1
        assert prepared.error() == errno.ECONNREFUSED


def test_several_of_one_size_are_one_message_and_the_last_may_be_shorter(server: Server) -> None:
    with client(("127.0.0.1", server.port)) as peer:
        for payload in (b"aaaa", b"bbbb", b"cc"):
            peer.send(payload)
        assert server.receive() == [b"aaaa", b"bbbb", b"cc"]
        server.parts.resize(0, [4, 4, 2])
        server.outbox.put(0, reply_to(server.key()), 0, 3, 4)
        server.outbox.put(1, reply_to(server.key()), 1, 1, 0)
        assert datagrams.send_all(server.fd, server.outbox, 0, 2) == 2
        assert [peer.recv(100) for _ in range(4)] == [b"aaaa", b"bbbb", b"cc", b"bbbb"]


def test_a_connected_socket_sends_one_or_several_to_its_target() -> None:
    buffers = Buffers()
    parts = Parts(buffers)
    buffers.memory[:4], buffers.memory[ROOM : ROOM + 4] = b"aaaa", b"bbbb"
    buffers.memory[2 * ROOM : 2 * ROOM + 2] = b"cc"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.settimeout(5)
        target.bind(("127.0.0.1", 0))
        with socket.socket(fileno=datagrams.datagram_socket(socket.AF_INET)) as flow:
            flow.connect(target.getsockname())
            assert datagrams.send(flow.fileno(), buffers.pointers[1], 4) == 4
            assert datagrams.send(flow.fileno(), buffers.pointers[0], 0) == 0
            parts.resize(0, [4, 4, 2])
            assert datagrams.segment(flow.fileno(), 4) == 0
            assert datagrams.write(flow.fileno(), parts, 0, 3) == 10
            parts.place([2, 0], [2, 2])
            assert datagrams.segment(flow.fileno(), 2) == 0
            assert datagrams.write(flow.fileno(), parts, 0, 2) == 4
            got = [target.recv(100) for _ in range(7)]
            assert got == [b"bbbb", b"", b"aaaa", b"bbbb", b"cc", b"cc", b"aa"]


def test_a_target_that_is_not_there_is_an_error_of_a_later_call() -> None:
    buffers = Buffers()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        address = closed.getsockname()
    with socket.socket(fileno=datagrams.datagram_socket(socket.AF_INET)) as flow:
        flow.connect(address)
        inbox = Inbox(buffers, 0)
        assert datagrams.receive(flow.fileno(), inbox, 0, SLOTS) == -errno.EAGAIN
        assert datagrams.send(flow.fileno(), buffers.pointers[0], 3) == 3
        assert datagrams.receive(flow.fileno(), inbox, 0, SLOTS) == -errno.ECONNREFUSED
        assert datagrams.receive(flow.fileno(), inbox, 0, SLOTS) == -errno.EAGAIN


def test_a_single_datagram_is_received_by_a_call_that_tells_nothing_of_it() -> None:
    buffers = Buffers()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target,
        socket.socket(fileno=datagrams.datagram_socket(socket.AF_INET)) as flow,
    ):
        target.bind(("127.0.0.1", 0))
        flow.connect(target.getsockname())
        assert datagrams.receive_single(flow.fileno(), buffers.pointers[3]) == -errno.EAGAIN
        sent = [bytes(LARGEST), b"", b"tail"]
        for payload in sent:
            target.sendto(payload, flow.getsockname())
        assert datagrams.segment(target.fileno(), 5) == 0
        target.sendto(b"cut to pieces", flow.getsockname())
        for payload in [*sent, b"cut t", b"o pie", b"ces"]:
            size = datagrams.receive_single(flow.fileno(), buffers.pointers[3])
            assert buffers.memory[3 * ROOM : 3 * ROOM + size] == payload
        target.close()
        assert datagrams.send(flow.fileno(), buffers.pointers[0], 3) == 3
        code = datagrams.receive_single(flow.fileno(), buffers.pointers[0])
        assert code == -errno.ECONNREFUSED


def test_what_a_full_queue_drops_is_reported_with_what_comes_later(server: Server) -> None:
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    with client(("127.0.0.1", server.port)) as peer:
        for _ in range(20):
            peer.send(bytes(1000))
        key, got = b"", 0
        while (number := datagrams.receive(server.fd, server.inbox, 0, SLOTS)) > 0:
            key, got = server.key(0), got + number
            server.inbox.renew(0, number)
        peer.send(b"later")
        server.receive()
        control = server.inbox.control(0, server.control_size())
        assert control.drops == 20 - got > 0
        assert server.key(0) == key


def test_a_datagram_larger_than_any_is_an_error() -> None:
    buffers = Buffers()
    with socket.socket(fileno=datagrams.datagram_socket(socket.AF_INET)) as flow:
        flow.connect(("127.0.0.1", 9))
        code = datagrams.send(flow.fileno(), buffers.pointers[0], LARGEST + 1)
        assert code == -errno.EMSGSIZE


def test_a_family_that_is_none_is_an_error() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EAFNOSUPPORT)):
        datagrams.plain_socket(45)
