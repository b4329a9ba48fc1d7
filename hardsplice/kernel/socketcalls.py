# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's socket calls, as relays and monitors make them.

*Hot* calls, made for every connection, return the kernel's own kind of answer: a result, or the
negated errno. EAGAIN is a common result there, and an exception for it would cost more than the
call (CPython formats the message of each OSError). The others raise OSError.

Values of options, and addresses to listen at, lie where a filter can check them
(kernel/pinned.py).

*socketcall.* On i386 and s390x the C library makes socket calls through socketcall(2), which hides
every argument behind a pointer, and which no policy has. Here they are made by numbers of their own
(Linux 4.3). So no process uses methods of socket objects after lock-down, nor creates such objects.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_long, c_size_t, c_void_p
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from hardsplice.kernel import pinned
from hardsplice.kernel.hints import Any
from hardsplice.kernel.linux import MACHINE, fail, libc
from hardsplice.kernel.syscalls import DIRECT

_errno = ctypes.get_errno
_FAMILY = struct.Struct("=H")

# --- which way a call goes ------------------------------------------------------------------------

_IS_I686 = MACHINE in ("x86_64", "i686", "i586", "i386") and sys.maxsize < 2**32
_NUMBERS = DIRECT["i686"] if _IS_I686 else DIRECT["s390x"] if MACHINE == "s390x" else {}
IS_DIRECT = bool(_NUMBERS)  # by numbers, not by the C library's functions


def way(name: str, library: Any = libc) -> Callable[..., Any]:
    """A socket call as a function. Where all arguments are C ints, bytes and objects made once,
    ctypes passes them on as they are; with argtypes it would call a converter for each, which takes
    longer than some of these calls.
    """
    if IS_DIRECT:
        return partial(library.syscall, c_long(_NUMBERS[name]))
    function: Callable[..., Any] = getattr(library, name)
    return function


_accept4 = way("accept4")
_connect = way("connect")
_getpeername = way("getpeername")
_getsockname = way("getsockname")
_getsockopt = way("getsockopt")
_shutdown = way("shutdown")
_setsockopt = way("setsockopt")
_bind = way("bind")
_listen = way("listen")
_sockatmark = libc.sockatmark
_socket = way("socket")

if IS_DIRECT:
    _sendto, _recvfrom = way("sendto"), way("recvfrom")

    def _send(fd: int, data: bytes, size: int, flags: int) -> int:
        sent: int = _sendto(fd, data, c_size_t(size), flags, None, 0)
        return sent

    def _recv(fd: int, room: Any, size: int, flags: int) -> int:
        received: int = _recvfrom(fd, room, c_size_t(size), flags, None, None)
        return received
else:
    _send = libc.send
    _send.argtypes = (c_int, c_char_p, c_size_t, c_int)
    _recv = libc.recv
    _recv.argtypes = (c_int, c_void_p, c_size_t, c_int)


# --- hot calls: a result or the negated errno -----------------------------------------------------

_ACCEPT_FLAGS = int(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
_peer = ctypes.create_string_buffer(28)  # sizeof(struct sockaddr_in6), the longest that TCP has
_peer_length = c_int(28)
_peer_ref, _peer_length_ref = byref(_peer), byref(_peer_length)
_nobody_ref, _nobody_length_ref = byref(c_int()), byref(c_int(0))  # the address is not wanted
_option = c_int()
_option_length = c_int(4)
_option_ref, _option_length_ref = byref(_option), byref(_option_length)
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, an IPv4 client on a dual-stack listener


def accept4(listener: int) -> int:
    """Accept a connection, non-blocking and close-on-exec: its descriptor, or the negated errno."""
    fd: int = _accept4(listener, None, None, _ACCEPT_FLAGS)
    return fd if fd >= 0 else -_errno()


def accept4_from(listener: int) -> int:
    """The same, and keep the client's address for ``accepted_from``."""
    _peer_length.value = 28
    fd: int = _accept4(listener, _peer_ref, _peer_length_ref, _ACCEPT_FLAGS)
    return fd if fd >= 0 else -_errno()


def accepted_from_ipv4() -> bool:
    """Whether the peer of the last ``accept4_from`` came by IPv4, be it mapped into IPv6."""
    raw = _peer.raw
    return _FAMILY.unpack_from(raw)[0] == socket.AF_INET or raw[8:20] == _MAPPED


def accepted_from() -> tuple[bytes, int]:
    """Address and port of the peer of the last ``accept4_from``, as ``endpoint`` has them."""
    return endpoint(_peer.raw)


def connect(fd: int, where: c_void_p, length: int) -> int:
    """Start a connection to the address of so many bytes that lies at ``where``: 0 when it is
    established, -EINPROGRESS while it is under way, or the negated errno.
    """
    if _connect(fd, where, length) == 0:
        return 0
    return -_errno()


def connected(fd: int) -> int:
    """The state of a connect(2) that was under way: 0 when the connection is established,
    -EINPROGRESS when that isn't known yet, -ECONNRESET when it was established and has been reset
    since, else the negated errno of the refusal.
    """
    if _getpeername(fd, _nobody_ref, _nobody_length_ref) == 0:
        return 0
    # ENOTCONN: in SYN_SENT, or closed again. The kernel's tcp_reset tells a refusal (ECONNREFUSED)
    # from a reset.
    code = option(fd, socket.SOL_SOCKET, socket.SO_ERROR)
    if code in (errno.ECONNRESET, errno.EPIPE):
        return -errno.ECONNRESET
    return -abs(code) or -errno.EINPROGRESS


def shutdown(fd: int, how: int) -> int:
    """Shut one half of a connection: 0, or the negated errno."""
    return 0 if _shutdown(fd, how) == 0 else -_errno()


def abort(fd: int) -> int:
    """Make the coming close of ``fd`` a reset (SO_LINGER, 0 seconds): 0, or the negated errno."""
    done = _setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, pinned.values.linger, 8)
    return 0 if done == 0 else -_errno()


def spare(fd: int) -> int:
    """Undo ``abort``: the coming close of ``fd`` is a clean one. 0, or the negated errno."""
    done = _setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, pinned.values.zero, 8)
    return 0 if done == 0 else -_errno()


def limit_unsent(fd: int, size: int) -> int:
    """Have ``fd`` take no more while ``size`` bytes, one of pinned.UNSENT_SIZES, wait in the kernel
    to be sent (TCP_NOTSENT_LOWAT): 0, or the negated errno.
    """
    value = pinned.values.unsent[size]
    done = _setsockopt(fd, socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, value, 4)
    return 0 if done == 0 else -_errno()


def keep_urgent_inline(fd: int) -> int:
    """Leave the urgent byte in the stream for an ordinary receive (SO_OOBINLINE): 0, or the negated
    errno.
    """
    done = _setsockopt(fd, socket.SOL_SOCKET, socket.SO_OOBINLINE, pinned.values.one, 4)
    return 0 if done == 0 else -_errno()


def sockatmark(fd: int) -> bool:
    """Whether the next byte to read from ``fd`` is the urgent one."""
    return bool(_sockatmark(fd) == 1)


_one_byte = ctypes.create_string_buffer(1)
_one_byte_ref = byref(_one_byte)


def receive_byte(fd: int, flags: int) -> bytes | int:
    """One byte; b"" at end of file; or the negated errno. One byte is all that the relay's filter
    lets it look at.
    """
    count: int = _recv(fd, _one_byte_ref, 1, flags)
    return _one_byte.raw[:count] if count >= 0 else -_errno()


def send_byte(fd: int, byte: bytes, flags: int) -> int:
    """Send one byte: 1, or the negated errno."""
    count: int = _send(fd, byte, 1, flags | socket.MSG_NOSIGNAL)
    return count if count >= 0 else -_errno()


def send(fd: int, data: bytes) -> int:
    """Send what the socket takes now: how many bytes that was, or the negated errno."""
    count: int = _send(fd, data, len(data), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    return count if count >= 0 else -_errno()


_room = ctypes.create_string_buffer(16384)
_room_ref = byref(_room)


def receive(fd: int) -> bytes | int:
    """What has arrived, up to 16 KiB; b"" at end of file; or the negated errno."""
    count: int = _recv(fd, _room_ref, len(_room), socket.MSG_DONTWAIT)
    return _room.raw[:count] if count >= 0 else -_errno()


def option(fd: int, level: int, name: int) -> int:
    """An option that is an int (of a longer one, the first int), or the negated errno."""
    _option_length.value = 4
    if _getsockopt(fd, level, name, _option_ref, _option_length_ref) != 0:
        return -_errno()
    return _option.value


_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_credentials = ctypes.create_string_buffer(_UCRED.size)
_cookie = ctypes.c_uint64()
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h


def peer_user(fd: int) -> int:
    """The effective user id with which the peer of a UNIX stream socket connected, as it is in our
    own user namespace; -1 when there is none.
    """
    _option_length.value = _UCRED.size
    where = byref(_credentials)
    if _getsockopt(fd, socket.SOL_SOCKET, socket.SO_PEERCRED, where, _option_length_ref) != 0:
        return -1
    uid: int = _UCRED.unpack(_credentials.raw)[1]
    return uid


def namespace_cookie(fd: int) -> int | None:
    """A number for the network namespace that a socket belongs to; None before Linux 5.14."""
    _option_length.value = ctypes.sizeof(_cookie)
    where = byref(_cookie)
    if _getsockopt(fd, socket.SOL_SOCKET, _SO_NETNS_COOKIE, where, _option_length_ref) != 0:
        return None
    return _cookie.value


# --- addresses ------------------------------------------------------------------------------------


def sockaddr(address: IPv4Address | IPv6Address, port: int) -> bytes:
    """struct sockaddr_in or sockaddr_in6 for ``address`` and ``port``."""
    if address.version == 4:
        return _FAMILY.pack(socket.AF_INET) + struct.pack("!H", port) + address.packed + bytes(8)
    return _FAMILY.pack(socket.AF_INET6) + struct.pack("!HI", port, 0) + address.packed + bytes(4)


def endpoint(sockaddr: bytes) -> tuple[bytes, int]:
    """Address and port in a struct sockaddr_in or sockaddr_in6: the address packed as IPv6, where
    IPv4 is mapped.
    """
    family, port = _FAMILY.unpack_from(sockaddr)[0], int.from_bytes(sockaddr[2:4], "big")
    return (_MAPPED + sockaddr[4:8] if family == socket.AF_INET else sockaddr[8:24]), port


# --- calls that raise OSError: making sockets -----------------------------------------------------

_SOCKET_TYPE = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
_IPPROTO_TCP, _TCP_NODELAY = int(socket.IPPROTO_TCP), int(socket.TCP_NODELAY)


_LOOPBACK_NET, _SOCKADDR_IN6 = 127, 28  # 127.0.0.0/8; bytes


def is_loopback(sockaddr: bytes) -> bool:
    """Whether a struct sockaddr_in or sockaddr_in6 is of the loopback interface."""
    if len(sockaddr) < _SOCKADDR_IN6:
        return sockaddr[4] == _LOOPBACK_NET
    packed = sockaddr[8:24]
    is_mapped = packed.startswith(_MAPPED) and packed[12] == _LOOPBACK_NET
    return is_mapped or packed == bytes(15) + b"\1"


def stream_socket(family: int) -> int:
    """A bare TCP socket, non-blocking and close-on-exec. One is made for every connection, and a
    socket object takes longer to make than the socket.
    """
    fd: int = _socket(int(family), _SOCKET_TYPE, 0)
    if fd < 0:
        fail()
    return fd


def pool_socket(family: int) -> int:
    """The same with TCP_NODELAY set."""
    fd: int = _socket(family, _SOCKET_TYPE, 0)
    if fd < 0 or _setsockopt(fd, _IPPROTO_TCP, _TCP_NODELAY, pinned.values.one, 4) != 0:
        try:
            fail()
        finally:
            if fd >= 0:
                os.close(fd)
    return fd


def _set(fd: int, level: int, name: int, value: c_void_p, size: int = 4) -> None:
    if _setsockopt(fd, level, name, value, size) != 0:
        fail()


def set_nodelay(fd: int) -> None:
    """Send small segments at once (TCP_NODELAY)."""
    _set(fd, socket.IPPROTO_TCP, socket.TCP_NODELAY, pinned.values.one)


def set_keepalive(fd: int) -> None:
    """Notice peers that vanished without a packet (SO_KEEPALIVE)."""
    _set(fd, socket.SOL_SOCKET, socket.SO_KEEPALIVE, pinned.values.one)


def set_reuse_address(fd: int) -> None:
    """Allow binding a port although connections of an earlier listener linger (SO_REUSEADDR)."""
    _set(fd, socket.SOL_SOCKET, socket.SO_REUSEADDR, pinned.values.one)


def set_ipv6_only(fd: int, *, value: bool) -> None:
    """Whether IPv4 is left out (IPV6_V6ONLY)."""
    chosen = pinned.values.one if value else pinned.values.zero
    _set(fd, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, chosen)


def bind_to_device(fd: int) -> None:
    """Use only the interface that was written down (SO_BINDTODEVICE)."""
    _set(fd, socket.SOL_SOCKET, socket.SO_BINDTODEVICE, pinned.values.device, 16)


def bind(fd: int, length: int) -> None:
    """Bind to the address, of so many bytes, that was written down."""
    if _bind(fd, pinned.values.bind[length], length) != 0:
        fail()


def listen(fd: int, backlog: int) -> None:
    """listen(2)."""
    if _listen(fd, backlog) != 0:
        fail()


IP_MINTTL, IPV6_MINHOPCOUNT = 21, 73  # linux/in.h, linux/in6.h


def retire(fd: int) -> None:
    """End a listener, in all processes that have it, and make it drop every packet that hasn't the
    largest TTL or hop limit, which few send. No filter lets a process undo that.
    """
    try:
        _set(fd, socket.IPPROTO_IP, IP_MINTTL, pinned.values.most)
        if option(fd, socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET6:
            _set(fd, socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT, pinned.values.most)
    finally:
        shutdown(fd, socket.SHUT_RDWR)


def be_impatient(fd: int) -> None:
    """Give a connection up that isn't answered within three seconds (TCP_SYNCNT)."""
    _set(fd, socket.IPPROTO_TCP, socket.TCP_SYNCNT, pinned.values.one)


def peer_address(fd: int) -> bytes:
    """The struct sockaddr_in or sockaddr_in6 at the other end; empty where there is none."""
    _peer_length.value = 28
    if _getpeername(fd, _peer_ref, _peer_length_ref) != 0:
        return b""
    return _peer.raw[: _peer_length.value]


def local_address(fd: int) -> bytes:
    """The struct sockaddr_in or sockaddr_in6 that a TCP socket is bound to."""
    _peer_length.value = 28
    if _getsockname(fd, _peer_ref, _peer_length_ref) != 0:
        fail()
    return _peer.raw[: _peer_length.value]


def local_port(fd: int) -> int:
    """The port that a TCP socket is bound to."""
    return int.from_bytes(local_address(fd)[2:4], "big")
