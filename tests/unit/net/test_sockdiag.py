# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel says of listening sockets, and which of them the loopback reaches."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hardsplice.kernel import scm
from hardsplice.model.errors import HardspliceError
from hardsplice.model.protocol import Protocol
from hardsplice.net import sockdiag
from hardsplice.net.sockdiag import FoundListener


@pytest.fixture
def diag_socket() -> Iterator[socket.socket]:
    with sockdiag.open_socket() as made:
        yield made


def seen(diag_socket: socket.socket, port: int) -> list[FoundListener]:
    return [one for one in sockdiag.parse(sockdiag.request(diag_socket)) if one.port == port]


def bound(address: str, *, only: bool | None = None, device: str | None = None) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family)
    if only is not None:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    if device:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
    made.bind((address, 0))
    return made


@pytest.mark.parametrize(
    ("address", "only", "reached"),
    [
        ("127.0.0.1", None, {4}),
        ("0.0.0.0", None, {4}),
        ("127.0.0.2", None, set()),  # connections go to 127.0.0.1
        ("::1", None, {6}),
        ("::", True, {6}),
        ("::", False, {4, 6}),
        ("::ffff:127.0.0.1", False, {4}),
        ("::ffff:127.0.0.2", False, set()),
    ],
)
def test_who_listens_and_how_it_is_reached(
    diag_socket: socket.socket, address: str, only: bool | None, reached: set[int]
) -> None:
    with bound(address, only=only) as server:
        port = server.getsockname()[1]
        assert seen(diag_socket, port) == [], "it is bound only"
        server.listen()
        (one,) = seen(diag_socket, port)
        assert str(one.address) == str(one.address.__class__(address))
        assert one.reached_by == reached
    assert seen(diag_socket, port) == []


@pytest.mark.parametrize("device", ["lo", None])
def test_the_loopback_interface_is_near(diag_socket: socket.socket, device: str | None) -> None:
    with bound("0.0.0.0", device=device) as server:
        server.listen()
        (one,) = seen(diag_socket, server.getsockname()[1])
        assert one.reached_by == {4}


def message(interface: int) -> bytes:
    """A listener at 0.0.0.0, port 80, bound to an interface."""
    body = struct.pack("=BBBB2s2s16s16sI8s20x", 2, 10, 0, 0, b"\0P", b"", b"", b"", interface, b"")
    return struct.pack("=IHHII", 16 + len(body), 20, 2, 1, 0) + body


def test_another_interface_is_not() -> None:
    far, near = (sockdiag.parse(message(index))[0] for index in (2, 1))
    assert (far.port, far.reached_by) == (80, frozenset())
    assert near.reached_by == {4}


def test_connections_are_not_listeners(diag_socket: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address), server.accept()[0]:
            assert len(seen(diag_socket, address[1])) == 1


def test_the_answer_is_the_same_while_nothing_changes(diag_socket: socket.socket) -> None:
    """By which a look in vain is known without being read."""
    with socket.create_server(("127.0.0.1", 0)):
        answers = {sockdiag.request(diag_socket) for _ in range(20)}
    assert len(answers) <= 3, "others of this machine may listen and cease to"
    assert sockdiag.request(diag_socket) not in answers


def test_many_listeners_are_all_there(diag_socket: socket.socket) -> None:
    """More than one packet's worth."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(300)]
    ports = {server.getsockname()[1] for server in servers}
    found = {one.port for one in sockdiag.parse(sockdiag.request(diag_socket))}
    for server in servers:
        server.close()
    assert ports <= found


@given(st.binary(max_size=300))
@example(message(0)[:-1])
@example(struct.pack("=IHHII", 16 + 73, 20, 2, 1, 0) + b"\n" + bytes(72))
def test_any_bytes_give_sockets_or_none(answer: bytes) -> None:
    for one in sockdiag.parse(answer):
        assert 0 <= one.port < 65536
        assert one.reached_by <= {4, 6}


def test_a_kernel_that_does_not_tell_is_named_with_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(diag_socket: socket.socket, protocol: Protocol) -> bytes:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(sockdiag, "request", refuse)
    with pytest.raises(HardspliceError, match="which ports are listened on") as caught:
        sockdiag.open_socket()
    assert "CONFIG_INET_DIAG" in (caught.value.hint or "")


def test_an_error_in_the_place_of_an_answer_is_raised() -> None:
    error = struct.pack("=IHHIIi16x", 36, 2, 0, 1, 0, -errno.ENOENT)
    with pytest.raises(FileNotFoundError):
        sockdiag._is_last(error)


def test_what_others_send_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root in the namespace may send to the socket; the sender's address tells it from the kernel.

    A flood of it has an end, too.
    """
    done = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)
    theirs = (message(0), 4711)

    class Messages:
        def __init__(self, *packets: tuple[bytes, int]) -> None:
            self.packets = iter(packets)

        def sendmsg(self, *_: object) -> None:
            pass

        def recvmsg(self, *_: object) -> tuple[bytes, tuple[int, ...], int]:
            packet, self.port = next(self.packets, theirs)
            return packet, (), 0

        def sender(self) -> bytes:
            return struct.pack("=HHII", socket.AF_NETLINK, 0, self.port, 0)

    with sockdiag.open_socket() as diag_socket:
        some = Messages(theirs, (done, 0), (message(1), 0), theirs, (done, 0))
        monkeypatch.setattr(sockdiag, "_messages", some)
        assert len(sockdiag.parse(sockdiag.request(diag_socket))) == 1
        monkeypatch.setattr(sockdiag, "_messages", Messages())
        with pytest.raises(OSError, match="without an end"):
            sockdiag.request(diag_socket)


def test_the_sender_of_a_message_is_told() -> None:
    messages = scm.Messages(16, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as named:
        theirs.send(b"nobody")
        assert messages.recvmsg(ours.fileno(), 0)[0] == b"nobody"
        assert messages.sender() == b""
        named.bind(("127.0.0.1", 0))
        named.sendto(b"me", named.getsockname())
        assert messages.recvmsg(named.fileno(), 0)[0] == b"me"
        assert messages.sender()[2:4] == struct.pack("!H", named.getsockname()[1])
        messages.sendmsg(ours.fileno(), b"to its own other", (), 0)
        assert theirs.recv(64) == b"to its own other"


def test_a_message_that_is_too_long_is_refused() -> None:
    """Its room is memory that ctypes would write beyond."""
    messages = scm.Messages(16, 1)
    with pytest.raises(ValueError, match="different structures"):
        messages.sendmsg(-1, bytes(17), (), 0)
    with pytest.raises(ValueError, match="different structures"):
        messages.sendmsg(-1, b"", (0,) * 9, 0)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_one_number_is_told_of_for_each_protocol(diag_socket: socket.socket, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with bound(address) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
        tcp.listen()
        port = tcp.getsockname()[1]
        udp.bind((address, port))
        try:
            answers = {one: sockdiag.request(diag_socket, one) for one in Protocol}
        except OSError as error:
            pytest.skip(f"the kernel can't be asked for UDP: {error}")
        for protocol, answer in answers.items():
            (found,) = [one for one in sockdiag.parse(answer, protocol) if one.port == port]
            assert found.protocol is protocol
            assert found.reached_by == {6 if family == socket.AF_INET6 else 4}
        udp.close()
        left = sockdiag.parse(sockdiag.request(diag_socket, Protocol.UDP), Protocol.UDP)
        assert port not in {one.port for one in left}
