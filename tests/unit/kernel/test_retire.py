# SPDX-License-Identifier: GPL-2.0-or-later
"""A listener that was ended is of no use to anybody who has it still: each way to use it is tried
after a plain shutdown too, where it works.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from ipaddress import ip_address

import pytest

from hardsplice.kernel import pinned, socketcalls

pytestmark = pytest.mark.usefixtures("nothing_left_open")

IN_TIME = 5.0  # for what must happen, in seconds
IN_VAIN = 0.05  # for what must not: over loopback what happens happens at once
_libc = ctypes.CDLL(None, use_errno=True)
# struct sockaddr with AF_UNSPEC: disconnects (connect(2))
_NOBODY = bytes(16)


KINDS = ("IPv4", "IPv6", "dual-stack")
kinds = pytest.mark.parametrize("kind", KINDS)
CLIENTS = [
    ("IPv4", "127.0.0.1"),
    ("IPv6", "::1"),
    ("dual-stack", "127.0.0.1"),
    ("dual-stack", "::1"),
]
clients = pytest.mark.parametrize(("kind", "client"), CLIENTS)
retired = pytest.mark.parametrize("retires", [False, True], ids=["shut down", "retired"])


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
        return port


def listener(kind: str) -> socket.socket:
    """One with a port that was chosen, as ours have: the kernel would take back one of its own."""
    made = socket.socket(socket.AF_INET if kind == "IPv4" else socket.AF_INET6)
    if kind != "IPv4":
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, kind == "IPv6")
    made.bind(({"IPv4": "127.0.0.1", "IPv6": "::1", "dual-stack": "::"}[kind], free_port()))
    made.listen()
    return made


def end(one: socket.socket, *, retires: bool) -> None:
    """By one descriptor of it; whoever has it has another one."""
    copy = os.dup(one.fileno())
    if retires:
        socketcalls.retire(copy)
    else:
        socketcalls.shutdown(copy, socket.SHUT_RDWR)
    os.close(copy)


def reaches(client: str, port: int, within: float) -> bool:
    """Whether a handshake comes to its end."""
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    with socket.socket(family) as one:
        one.settimeout(within)
        try:
            one.connect((client, port))
        except (TimeoutError, ConnectionRefusedError):
            return False
        return True


@kinds
@retired
def test_it_listens_no_longer(kind: str, retires: bool) -> None:
    with listener(kind) as one:
        port = one.getsockname()[1]
        end(one, retires=retires)
        assert not reaches("::1" if kind == "IPv6" else "127.0.0.1", port, IN_VAIN)


@clients
@retired
def test_it_can_not_serve_again(kind: str, client: str, retires: bool) -> None:
    with listener(kind) as one:
        port = one.getsockname()[1]
        end(one, retires=retires)
        one.listen()
        assert reaches(client, port, IN_VAIN if retires else IN_TIME) is not retires


@clients
@retired
def test_it_can_not_be_connected(kind: str, client: str, retires: bool) -> None:
    """In the namespace that it belongs to, which is not the relay's. A dual-stack one reaches IPv4,
    too.
    """
    far = socket.AF_INET6 if ":" in client else socket.AF_INET
    address = client if ":" in client or kind == "IPv4" else f"::ffff:{client}"
    with listener(kind) as one, socket.socket(far) as server:
        server.bind((client, 0))
        server.listen()
        port = server.getsockname()[1]
        end(one, retires=retires)
        _libc.connect(one.fileno(), _NOBODY, 16)
        one.settimeout(IN_VAIN)
        if retires:
            with pytest.raises(TimeoutError):
                one.connect((address, port))
        else:
            one.settimeout(IN_TIME)
            one.connect((address, port))


@clients
@pytest.mark.parametrize("kept", ["accepted", "in the backlog"])
def test_connections_that_there_are_go_on(kind: str, client: str, kept: str) -> None:
    """Those that were accepted; those that nobody had accepted yet are reset, as by a close."""
    with listener(kind) as one:
        far = socket.create_connection((client, one.getsockname()[1]), timeout=IN_TIME)
        if kept == "accepted":
            near = one.accept()[0]
            end(one, retires=True)
            with far, near:
                far.send(b"there")
                assert near.recv(10) == b"there"
                near.send(b"back")
                assert far.recv(10) == b"back"
        else:
            end(one, retires=True)
            with far, pytest.raises(ConnectionResetError):
                far.recv(1)


@kinds
def test_its_port_is_free_for_the_next_one(kind: str) -> None:
    with listener(kind) as one:
        name = one.getsockname()
        family, kept = one.family, os.dup(one.fileno())
        end(one, retires=True)
    os.close(kept)
    with socket.socket(family) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(name)
        other.listen()


@kinds
def test_the_number_of_hops_is_one_that_nobody_sends(kind: str) -> None:
    """Linux sends 64 unless it is told otherwise (ip_default_ttl), and none can be more than 255;
    over loopback a sender that chooses 255 is itself a process of that namespace.
    """
    with listener(kind) as one:
        socketcalls.retire(one.fileno())
        assert one.getsockopt(socket.IPPROTO_IP, 21) == 255  # IP_MINTTL
        if kind != "IPv4":
            assert one.getsockopt(socket.IPPROTO_IPV6, 73) == 255  # IPV6_MINHOPCOUNT


def test_what_is_no_listener_can_be_ended_too_or_is_an_error() -> None:
    with socket.socket() as idle:
        socketcalls.retire(idle.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        socketcalls.retire(-1)


# --- the place of the next listener ---------------------------------------------------------------


def test_what_was_written_down_is_bound_and_nothing_else() -> None:
    address = socketcalls.sockaddr(ip_address("127.0.0.1"), 0)
    pinned.write_bind_address(address, b"")
    fd = socketcalls.stream_socket(socket.AF_INET)
    with socket.socket(fileno=fd) as one:
        socketcalls.bind(fd, len(address))
        assert one.getsockname()[0] == "127.0.0.1"
        assert socketcalls.local_port(fd) == one.getsockname()[1]
    pinned.clear_bind_address()
    for family, length in ((socket.AF_INET, 16), (socket.AF_INET, 28), (socket.AF_INET6, 28)):
        fd = socketcalls.stream_socket(family)
        with socket.socket(fileno=fd), pytest.raises(OSError, match=r"not supported|assign|Inval"):
            socketcalls.bind(fd, length)


def test_what_is_no_tcp_socket_is_not_bound() -> None:
    """Whatever is written down: the family is no part of that."""
    pinned.write_bind_address(socketcalls.sockaddr(ip_address("127.0.0.1"), 0), b"")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        for length in (16, 28):
            with pytest.raises(OSError, match="Invalid"):
                socketcalls.bind(one.fileno(), length)
    pinned.clear_bind_address()


def test_an_interface_of_the_last_place_is_not_the_next_one_s() -> None:
    nowhere = socketcalls.sockaddr(ip_address("127.0.0.1"), 1)
    pinned.write_bind_address(nowhere, b"a-long-name-123" + b"\0")
    pinned.write_bind_address(nowhere, b"lo\0")
    fd = socketcalls.stream_socket(socket.AF_INET)
    with socket.socket(fileno=fd) as one:
        socketcalls.bind_to_device(fd)
        name = one.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
        assert name.rstrip(b"\0") == b"lo"
    pinned.clear_bind_address()


def test_values_are_as_the_kernel_reads_them() -> None:
    values = dict(pinned.initial_values())
    assert struct.unpack("ii", values[pinned.LINGER]) == (1, 0)
    for at, value in (
        (pinned.ONE, 1),
        (pinned.ZERO, 0),
        (pinned.MOST, 255),
        *((pinned.UNSENT + 32 * n, size) for n, size in enumerate(pinned.UNSENT_SIZES)),
    ):
        assert struct.unpack("i", values[at])[0] == value
