# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages with descriptors beside them, against those of Python's socket module."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardsplice.ipc.messages import FDS_LIMIT
from hardsplice.kernel.scm import Messages
from tests.support.descriptors import open_descriptors

pytestmark = pytest.mark.usefixtures("nothing_left_open")

Pair = tuple[socket.socket, socket.socket]
NOW = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
TYPES = (socket.SOCK_SEQPACKET, socket.SOCK_DGRAM, socket.SOCK_STREAM)


@pytest.fixture(params=TYPES, ids=lambda kind: kind.name)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, request.param)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def packets() -> Iterator[Pair]:
    """As channels are."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def close_all(fds: tuple[int, ...] | list[int]) -> None:
    for fd in fds:
        os.close(fd)


def nulls(number: int) -> list[int]:
    return [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for _ in range(number)]


def are_null(fds: tuple[int, ...] | list[int]) -> bool:
    return all(os.readlink(f"/proc/self/fd/{fd}") == os.devnull for fd in fds)


counts = pytest.mark.parametrize("number", [0, 1, 2, 3, 16, 252, 253])


@counts
def test_what_is_sent_is_what_python_receives(pair: Pair, number: int) -> None:
    sent = nulls(number)
    Messages(64, FDS_LIMIT).sendmsg(pair[0].fileno(), b"a message", sent, 0)
    data, fds, flags, _ = socket.recv_fds(pair[1], 64, FDS_LIMIT)
    assert (data, len(fds)) == (b"a message", number)
    assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    assert are_null(fds)
    assert set(fds).isdisjoint(sent)
    close_all([*sent, *fds])


@counts
def test_what_python_sends_is_what_is_received(pair: Pair, number: int) -> None:
    sent = nulls(number)
    socket.send_fds(pair[0], [b"a message"], sent)
    data, fds, flags = Messages(64, FDS_LIMIT).recvmsg(pair[1].fileno(), NOW)
    assert (data, len(fds), flags & ~socket.MSG_CMSG_CLOEXEC & ~socket.MSG_EOR) == (
        b"a message",
        number,
        0,
    )
    assert are_null(fds)
    assert not any(os.get_inheritable(fd) for fd in fds)
    close_all([*sent, *fds])


def test_without_the_flag_they_would_be_inherited(packets: Pair) -> None:
    sent = nulls(1)
    messages = Messages(64, 1)
    messages.sendmsg(packets[0].fileno(), b"x", sent, 0)
    _, fds, _ = messages.recvmsg(packets[1].fileno(), socket.MSG_DONTWAIT)
    assert os.get_inheritable(fds[0])
    close_all([*sent, *fds])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=100), st.integers(0, 5))
def test_one_room_is_used_again_and_nothing_of_the_last_message_remains(
    packets: Pair, data: bytes, number: int
) -> None:
    messages = Messages(100, 8)
    before, sent = nulls(8), nulls(number)
    messages.sendmsg(packets[0].fileno(), b"\xff" * 100, before, 0)
    _, fds, _ = messages.recvmsg(packets[1].fileno(), NOW)
    close_all([*before, *fds])
    messages.sendmsg(packets[0].fileno(), data, sent, 0)
    got, fds, _ = messages.recvmsg(packets[1].fileno(), NOW)
    assert (got, len(fds)) == (data, number)
    close_all([*sent, *fds])


def test_what_was_sent_last_sets_no_limit_to_what_is_received(packets: Pair) -> None:
    messages = Messages(100, 1)
    messages.sendmsg(packets[0].fileno(), b"x", (), 0)
    packets[0].send(bytes(100))
    for size in (1, 100):
        data, _, flags = messages.recvmsg(packets[1].fileno(), NOW)
        assert (len(data), flags & socket.MSG_TRUNC) == (size, 0)


def test_what_is_too_long_is_cut_and_said_so(packets: Pair) -> None:
    packets[0].send(b"0123456789abcdef")
    packets[0].send(b"0123456789")
    messages = Messages(10, 1)
    data, _, flags = messages.recvmsg(packets[1].fileno(), NOW)
    assert (data, bool(flags & socket.MSG_TRUNC)) == (b"0123456789", True)
    data, _, flags = messages.recvmsg(packets[1].fileno(), NOW)
    assert (data, bool(flags & socket.MSG_TRUNC)) == (b"0123456789", False)


def test_more_descriptors_than_there_is_room_for_are_not_received_at_all(packets: Pair) -> None:
    before = open_descriptors()
    sent = nulls(9)
    socket.send_fds(packets[0], [b"x"], sent)
    _, fds, flags = Messages(10, 3).recvmsg(packets[1].fileno(), NOW)
    # The room is padded to a long.
    assert len(fds) in (3, 4)
    assert flags & socket.MSG_CTRUNC
    assert open_descriptors() == before | set(sent) | set(fds)
    close_all([*sent, *fds])


def test_descriptors_for_which_the_process_has_no_number_are_left_out(packets: Pair) -> None:
    """EMFILE on the way: those that came are here, and it is said that some didn't."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    sent = nulls(4)
    socket.send_fds(packets[0], [b"x"], sent)
    limit = max(open_descriptors()) + 3
    filler = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        while True:
            try:
                filler.append(os.open(os.devnull, os.O_RDWR))
            except OSError:
                break
        close_all([filler.pop(), filler.pop()])
        data, fds, flags = Messages(10, 8).recvmsg(packets[1].fileno(), NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (data, len(fds)) == (b"x", 2)
    assert flags & socket.MSG_CTRUNC
    close_all([*sent, *fds, *filler])


def test_what_comes_beside_and_is_no_descriptor_is_not_taken_for_one(packets: Pair) -> None:
    """SCM_CREDENTIALS, before and behind descriptors."""
    packets[1].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sent = nulls(2)
    messages = Messages(10, 32)
    messages.sendmsg(packets[0].fileno(), b"x", sent, 0)
    data, fds, flags = messages.recvmsg(packets[1].fileno(), NOW)
    assert (data, len(fds), flags & socket.MSG_CTRUNC) == (b"x", 2, 0)
    assert are_null(fds)
    close_all([*sent, *fds])


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 2**31 - 1), max_size=4))))
def test_several_pieces_are_read_one_after_the_other(pieces: list[tuple[int, list[int]]]) -> None:
    """As a kernel could put them there, each padded to a long (cmsg(3))."""
    messages = Messages(1, 200)
    raw, expected = b"", list[int]()
    for kind, numbers in pieces:
        level, what = ((1, 1), (1, 2), (41, 1))[kind]  # SCM_RIGHTS, SCM_CREDENTIALS, some other
        content = struct.pack(f"@{len(numbers)}i", *numbers)
        raw += struct.pack("@Nii", 16 + len(content), level, what) + content
        raw += bytes(-len(content) % struct.calcsize("@l"))
        expected += numbers if kind == 0 else []
    if struct.calcsize("@Nii") == 16 and len(raw) <= len(messages._control):
        ctypes.memmove(messages._control, raw, len(raw))
        assert list(messages._rights(len(raw))) == expected


@given(st.binary(max_size=100))
def test_any_bytes_beside_a_message_are_read_to_their_end_and_no_further(raw: bytes) -> None:
    """A kernel writes no nonsense there; but a length of nothing would be for ever."""
    messages = Messages(1, 30)
    ctypes.memmove(messages._control, raw, len(raw))
    assert len(messages._rights(len(raw))) <= len(raw) // 4


@pytest.mark.parametrize("fds", [(-1,), (10_000_000,), (0, -1)])
def test_what_is_no_descriptor_is_not_sent(packets: Pair, fds: tuple[int, ...]) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        Messages(10, 3).sendmsg(packets[0].fileno(), b"x", fds, 0)


def test_nothing_there_and_nobody_there_are_errors_of_their_own(packets: Pair) -> None:
    messages = Messages(10, 3)
    with pytest.raises(BlockingIOError):
        messages.recvmsg(packets[1].fileno(), NOW)
    packets[0].close()
    assert messages.recvmsg(packets[1].fileno(), NOW)[:2] == (b"", ())
    with pytest.raises(BrokenPipeError):
        messages.sendmsg(packets[1].fileno(), b"x", (), socket.MSG_NOSIGNAL)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        messages.recvmsg(-1, 0)
    assert caught.value.errno == errno.EBADF


def test_a_full_socket_is_said_so(packets: Pair) -> None:
    messages = Messages(1000, 1)

    def send_all() -> None:
        for _ in range(100_000):
            messages.sendmsg(packets[0].fileno(), bytes(1000), (), socket.MSG_DONTWAIT)

    with pytest.raises(BlockingIOError):
        send_all()


@pytest.mark.parametrize("sends", [True, False])
def test_a_signal_in_between_is_no_error(packets: Pair, sends: bool) -> None:
    """EINTR: the call is made again, as Python makes its own."""
    rang: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, _: rang.append(number))
    signal.siginterrupt(signal.SIGUSR1, True)
    messages, main = Messages(1000, 1), threading.main_thread().ident
    assert main is not None
    if sends:
        packets[0].setblocking(False)
        while True:
            try:
                packets[0].send(bytes(1000))
            except BlockingIOError:
                break
        packets[0].setblocking(True)

    def disturb() -> None:
        # Until the call has been interrupted: then let it go on.
        while not rang:
            signal.pthread_kill(main, signal.SIGUSR1)
            threading.Event().wait(0.01)
        if sends:  # who waits is woken when most of the room is free again (unix_writable)
            with contextlib.suppress(BlockingIOError):
                while packets[1].recv(1000, socket.MSG_DONTWAIT):
                    pass
        else:
            packets[0].send(b"at last")

    other = threading.Thread(target=disturb)
    other.start()
    try:
        if sends:
            messages.sendmsg(packets[0].fileno(), bytes(1000), (), 0)
        else:
            assert messages.recvmsg(packets[1].fileno(), 0)[0] == b"at last"
    finally:
        other.join()
        signal.signal(signal.SIGUSR1, old)
    assert rang
