# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's calls that Python lacks, against what Python has, and against the running kernel."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.kernel import linux, socketcalls
from hardsplice.relay.tcp.seam import Kernel
from tests.support.stream import eventually

pytestmark = pytest.mark.usefixtures("nothing_left_open")

_IP_FREEBIND, _IPV6_FREEBIND = 15, 78  # linux/in.h, linux/in6.h: bind to addresses nobody has
_IN_TIME = 5.0  # seconds
_TCPI_NOTSENT_BYTES = 144  # where it is in struct tcp_info (linux/tcp.h)

Ends = tuple[socket.socket, socket.socket]


def listener(family: int = socket.AF_INET, *, dual: bool = False) -> socket.socket:
    made = socket.socket(family)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
    address = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::" if dual else "::1"}[
        socket.AddressFamily(family)
    ]
    made.bind((address, 0))
    made.listen()
    return made


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A connection: ours, which does not block, and theirs."""
    with listener() as listening:
        ours = socket.create_connection(listening.getsockname(), timeout=_IN_TIME)
        theirs = listening.accept()[0]
    ours.setblocking(False)
    theirs.settimeout(_IN_TIME)
    with ours, theirs:
        yield ours, theirs


def wait_for_events(sock: socket.socket, events: int) -> None:
    poller = select.poll()
    poller.register(sock, events)
    assert poller.poll(_IN_TIME * 1000)


# --- sockaddr ---


def kernels_own(address: IPv4Address | IPv6Address, port: int) -> bytes:
    """The sockaddr that the kernel makes of what Python's socket module binds."""
    is_ipv4 = address.version == 4
    with socket.socket(socket.AF_INET if is_ipv4 else socket.AF_INET6) as one:
        if is_ipv4:
            one.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        else:
            one.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Others may run this test at the same time, with the same examples.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind((str(address), port))
        raw, length = ctypes.create_string_buffer(128), ctypes.c_uint32(128)
        getsockname = ctypes.CDLL(None, use_errno=True).getsockname
        assert getsockname(one.fileno(), raw, ctypes.byref(length)) == 0
        return raw.raw[: length.value]


@given(
    st.integers(1 << 24, (224 << 24) - 1),  # the kernel binds neither 0.0.0.0/8 nor multicast here
    st.integers(1024, 65535),
)
def test_an_ipv4_address_is_laid_out_as_the_kernel_does(address: int, port: int) -> None:
    known = IPv4Address(address)
    assert socketcalls.sockaddr(known, port) == kernels_own(known, port)


@given(st.integers(0x2000 << 112, (0x4000 << 112) - 1), st.integers(1024, 65535))
def test_an_ipv6_address_is_laid_out_as_the_kernel_does(address: int, port: int) -> None:
    known = IPv6Address(address)
    assert socketcalls.sockaddr(known, port) == kernels_own(known, port)


# --- connect and accept ---


def connect(client: socket.socket, host: str, port: int) -> int:
    """socketcalls.connect() to an address that lies in memory of our own."""
    address = socketcalls.sockaddr(ip_address(host), port)
    memory = ctypes.create_string_buffer(address, len(address))
    where = ctypes.c_void_p(ctypes.addressof(memory))
    return socketcalls.connect(client.fileno(), where, len(address))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connection_is_made_and_accepted(family: int) -> None:
    with listener(family) as listening, socket.socket(family) as client:
        client.setblocking(False)
        host, port = listening.getsockname()[:2]
        assert connect(client, host, port) in (0, -errno.EINPROGRESS)
        assert socketcalls.connected(client.fileno()) == 0
        fd = socketcalls.accept4_from(listening.fileno())
        assert fd > 0
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        assert socketcalls.accepted_from_ipv4() == (family == socket.AF_INET)
        os.close(fd)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_dual_stack_listener_tells_its_clients_apart(host: str) -> None:
    with (
        listener(socket.AF_INET6, dual=True) as listening,
        socket.create_connection((host, listening.getsockname()[1]), _IN_TIME),
    ):
        fd = socketcalls.accept4_from(listening.fileno())
        assert socketcalls.accepted_from_ipv4() == (host == "127.0.0.1")
        os.close(fd)


def test_nobody_to_accept_is_an_answer_and_no_exception() -> None:
    with listener() as listening:
        listening.setblocking(False)
        for accept in (socketcalls.accept4, socketcalls.accept4_from):
            assert accept(listening.fileno()) == -errno.EAGAIN
            assert accept(-1) == -errno.EBADF


def test_a_refusal_is_told_apart() -> None:
    with socket.socket() as nobody, socket.socket() as client:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        client.setblocking(False)
        code = connect(client, *nobody.getsockname())
        if code == -errno.EINPROGRESS:
            code = socketcalls.connected(client.fileno())
        assert code == -errno.ECONNREFUSED


def test_a_connection_that_was_reset_at_once_is_told_apart() -> None:
    with listener() as listening, socket.socket() as client:
        client.setblocking(False)
        assert connect(client, *listening.getsockname()) == -errno.EINPROGRESS
        theirs = listening.accept()[0]
        theirs.send(b"last words")
        assert socketcalls.abort(theirs.fileno()) == 0
        theirs.close()
        wait_for_events(client, select.POLLERR)
        assert socketcalls.connected(client.fileno()) == -errno.ECONNRESET
        assert client.recv(100) == b"last words", "what came before it remains"


def test_a_connect_under_way_is_neither() -> None:
    """A listener whose backlog is full does not answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        clients = [socket.socket() for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            connect(client, *listening.getsockname())
        assert socketcalls.connected(clients[0].fileno()) == 0
        assert socketcalls.connected(clients[-1].fileno()) == -errno.EINPROGRESS
        for client in clients:
            client.close()


# --- ends ---


def test_a_half_is_shut_once(ends: Ends) -> None:
    ours, theirs = ends
    assert socketcalls.shutdown(ours.fileno(), socket.SHUT_WR) == 0
    assert theirs.recv(1) == b""
    with socket.socket() as unconnected:
        assert socketcalls.shutdown(unconnected.fileno(), socket.SHUT_WR) == -errno.ENOTCONN


def test_an_aborted_connection_is_reset(ends: Ends) -> None:
    ours, theirs = ends
    assert socketcalls.abort(ours.fileno()) == 0
    ours.close()
    with pytest.raises(ConnectionResetError):
        theirs.recv(1)
    assert socketcalls.abort(-1) == -errno.EBADF


# --- one byte ---


def test_one_byte_is_peeked_at_and_taken(ends: Ends) -> None:
    ours, theirs = ends
    assert socketcalls.receive_byte(ours.fileno(), 0) == -errno.EAGAIN
    theirs.send(b"ab")
    wait_for_events(ours, select.POLLIN)
    assert socketcalls.receive_byte(ours.fileno(), socket.MSG_PEEK) == b"a"
    assert socketcalls.receive_byte(ours.fileno(), 0) == b"a"
    assert socketcalls.receive_byte(ours.fileno(), 0) == b"b"
    theirs.close()
    wait_for_events(ours, select.POLLIN)
    assert socketcalls.receive_byte(ours.fileno(), 0) == b""


def test_what_waits_to_be_sent_can_be_limited(ends: Ends) -> None:
    ours, _ = ends
    ours.setblocking(False)
    assert socketcalls.limit_unsent(ours.fileno(), 65536) == 0
    with contextlib.suppress(BlockingIOError):
        for _ in range(1000):
            ours.send(bytes(10_000))
    status = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (unsent,) = struct.unpack_from("I", status, _TCPI_NOTSENT_BYTES)
    assert 0 < unsent <= 65536 + 10_000
    assert socketcalls.limit_unsent(-1, 65536) == -errno.EBADF


def test_one_byte_is_sent_as_urgent_data(ends: Ends) -> None:
    ours, theirs = ends
    assert socketcalls.keep_urgent_inline(theirs.fileno()) == 0
    ours.send(b"x")
    assert socketcalls.send_byte(ours.fileno(), b"!", socket.MSG_OOB) == 1
    wait_for_events(theirs, select.POLLPRI)
    assert not socketcalls.sockatmark(theirs.fileno())
    assert theirs.recv(100) == b"x"
    assert socketcalls.sockatmark(theirs.fileno())
    assert socketcalls.receive_byte(theirs.fileno(), socket.MSG_PEEK) == b"!"
    assert theirs.recv(100) == b"!"
    assert not socketcalls.sockatmark(theirs.fileno())


def test_what_the_peer_has_not_taken_is_counted(ends: Ends) -> None:
    ours, theirs = ends
    kernel = Kernel()
    assert kernel.unsent(ours.fileno()) == 0
    sent = 0
    while True:
        try:
            sent += ours.send(bytes(65536))
        except BlockingIOError:
            break
    assert 0 < kernel.unsent(ours.fileno()) <= sent
    while sent:
        sent -= len(theirs.recv(1 << 20))
    eventually(lambda: kernel.unsent(ours.fileno()) == 0, "it was taken, and never acknowledged")
    null = os.open(os.devnull, os.O_RDONLY)
    assert kernel.unsent(null) == 0, "unknown"
    os.close(null)


# --- signals ---


def test_a_signal_and_who_sent_it_are_read_from_a_record() -> None:
    wanted = {signal.SIGUSR1, signal.SIGRTMAX}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    fd = linux.signalfd(wanted)
    try:
        assert not os.get_inheritable(fd)
        with pytest.raises(BlockingIOError):
            os.read(fd, linux.SIGNALFD_SIGINFO)
        for number in sorted(wanted):
            os.kill(os.getpid(), number)
            record = os.read(fd, linux.SIGNALFD_SIGINFO)
            assert len(record) == linux.SIGNALFD_SIGINFO
            assert linux.siginfo(record) == (number, 0), "0 is SI_USER: by kill(2)"
    finally:
        os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


# --- errors, and constants ---


@pytest.mark.parametrize(
    "call",
    [
        lambda: linux.setns(-1, linux.CLONE_NEWNET),
        lambda: linux.prctl(-1),
        lambda: linux.umount2("/nonexistent", 0),
        lambda: linux.mount("none", "/nonexistent", "tmpfs", 0),
        lambda: linux.set_seccomp_filter(b""),
    ],
    ids=["setns", "prctl", "umount2", "mount", "seccomp"],
)
def test_set_up_calls_raise(call: object) -> None:
    assert callable(call)
    with pytest.raises(OSError, match=r"^\[Errno \d+\]") as caught:
        call()
    assert caught.value.errno
    assert caught.value.strerror == os.strerror(caught.value.errno)


@pytest.mark.parametrize("name", ["NEWNS", "NEWUTS", "NEWIPC", "NEWUSER", "NEWPID", "NEWNET"])
@pytest.mark.skipif(sys.version_info < (3, 12), reason="os has them from Python 3.12 on")
def test_namespace_flags_are_pythons(name: str) -> None:
    assert getattr(linux, f"CLONE_{name}") == getattr(os, f"CLONE_{name}")


def test_the_kernel_knows_the_namespace_requests() -> None:
    net = os.open("/proc/self/ns/net", os.O_RDONLY)
    assert fcntl.ioctl(net, linux.NS_GET_NSTYPE) == linux.CLONE_NEWNET
    os.close(net)
