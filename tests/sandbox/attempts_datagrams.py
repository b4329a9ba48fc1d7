# SPDX-License-Identifier: GPL-2.0-or-later
"""What a datagram relay may not do, and what it can, and its monitor; attempts.py has the rest."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable

from hardsplice.ipc.descriptors import FIRST_LISTENER
from hardsplice.kernel import mmsghdr, packet_info
from hardsplice.sandbox.address_book import SLOT, USUAL
from tests.sandbox.attempts import (
    DATAGRAM_RELAYS,
    MONITORS,
    REACHES,
    WORKS,
    NotMadeError,
    Row,
    Scene,
    call,
    longs,
    place,
    sockaddr,
)

BOOK = USUAL.address
_SENT = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_MORE, _ZEROCOPY = 0x8000, 0x4000000  # linux/socket.h
_PAYLOAD = place(b"made-up payload")
_IOVEC = longs(_PAYLOAD, 8)
_ROOM = place(bytes(256))
_INTO = longs(_ROOM, 256)
_UNSPEC = place(bytes(32))
_INT = place(struct.pack("i", 1))
_LENGTH = place(struct.pack("i", 4))
_FILTER = place(
    struct.pack("@HP", 1, place(struct.pack("=HBBI", 6, 0, 0, 0xFFFF)))  # struct sock_fprog
)
_SOURCE = struct.pack("@Nii", 28, 0, packet_info.IP_PKTINFO) + struct.pack(
    "=i4s4s", 0, socket.inet_aton("127.0.0.9"), bytes(4)
)


def _to(scene: Scene, port: str = "other") -> int:
    """The address of a struct sockaddr_in."""
    return place(sockaddr(scene.job.ports[port]))


def _messages(name: int = 0, control: bytes = b"", vector: int = _IOVEC) -> int:
    """struct mmsghdr."""
    more = place(control + bytes(4)) if control else 0
    size = len(control) + 4 if control else 0
    return longs(name, 16 if name else 0, vector, 1, more, size, 0, 0)


def _listener(scene: Scene) -> int:
    return scene.listeners[0]


def _flow(scene: Scene) -> int:
    """A socket that is connected to the target."""
    fd = scene.pooled()
    if call("connect", fd, BOOK, 16) < 0:
        raise NotMadeError("connect to the target")
    return fd


def _send_many(
    fd: Callable[[Scene], int], flags: int = _SENT, control: bytes = b""
) -> Callable[[Scene], int]:
    port = "theirs" if fd is _listener else "other"  # of the namespace that the socket belongs to
    return lambda scene: call("sendmmsg", fd(scene), _messages(_to(scene, port), control), 1, flags)


def _send(flags: int = _SENT, *, named: bool = False) -> Callable[[Scene], int]:
    def attempt(scene: Scene) -> int:
        where = (_to(scene), 16) if named else (0, 0)
        return call("sendto", _flow(scene), _PAYLOAD, 8, flags, *where)

    return attempt


def _receive(
    fd: Callable[[Scene], int], flags: int = socket.MSG_DONTWAIT, timeout: int = 0
) -> Callable[[Scene], int]:
    """Nothing has arrived."""

    def attempt(scene: Scene) -> int:
        result = call("recvmmsg", fd(scene), _messages(vector=_INTO), 1, flags, timeout)
        return 0 if result == -errno.EAGAIN else result

    return attempt


def _option(
    fd: Callable[[Scene], int], level: int, name: int, value: int = _INT, size: int = 4
) -> Callable[[Scene], int]:
    return lambda scene: call("setsockopt", fd(scene), level, name, value, size)


def _foreign_place(scene: Scene) -> int:
    """The place of a listener that isn't this relay's."""
    return next(n for n in range(FIRST_LISTENER, FIRST_LISTENER + 4) if n not in scene.listeners)


def _leaving() -> list[tuple[str, Callable[[Scene], int]]]:
    return [
        ("connect to an address of one's own",
         lambda s: call("connect", s.pooled(), _to(s), 16)),
        ("connect a flow elsewhere", lambda s: call("connect", _flow(s), _to(s), 16)),
        ("AF_UNSPEC on a flow", lambda s: call("connect", _flow(s), _UNSPEC, 16)),
        ("AF_UNSPEC on a listener", lambda s: call("connect", _listener(s), _UNSPEC, 16)),
        ("a listener's connection", lambda s: call("connect", _listener(s), _to(s), 16)),
        ("connect to the middle of a slot",
         lambda s: call("connect", s.pooled(), BOOK + SLOT // 2, 16)),
        ("sendto with an address", _send(named=True)),
        ("sendmmsg from a flow", _send_many(_flow)),
        ("sendmmsg from the pool", _send_many(Scene.pooled)),
        ("sendmsg from a listener",
         lambda s: call("sendmsg", _listener(s), _messages(_to(s, "theirs")), _SENT)),
        ("sendmsg from a flow", lambda s: call("sendmsg", _flow(s), _messages(_to(s)), _SENT)),
        ("sendto from a listener",
         lambda s: call("sendto", _listener(s), _PAYLOAD, 8, _SENT, _to(s, "theirs"), 16)),
        ("a flow that is held back", _send(_SENT | _MORE)),
        ("a listener that is held back", _send_many(_listener, _SENT | _MORE)),
        ("a listener without a copy", _send_many(_listener, _SENT | _ZEROCOPY)),
    ]  # fmt: skip


def _others() -> list[tuple[str, Callable[[Scene], int]]]:
    return [
        ("bind", lambda s: call("bind", s.pooled(), place(sockaddr(0)), 16)),
        ("a UDP socket",
         lambda s: call("socket", socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)),
        ("a TCP socket",
         lambda s: call("socket", socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0)),
        ("the address of a listener",
         lambda s: call("getsockname", _listener(s), _ROOM, place(struct.pack("i", 16)))),
        ("an option's value",
         lambda s: call("getsockopt", _listener(s), 1, socket.SO_TYPE, _ROOM, _LENGTH)),
        ("close a listener", lambda s: call("close", _listener(s))),
        ("close the channel", lambda s: call("close", 3)),
        ("peek at a listener", _receive(_listener, socket.MSG_DONTWAIT | socket.MSG_PEEK)),
        ("wait at a listener", _receive(_listener, socket.MSG_DONTWAIT, place(bytes(16)))),
        ("receive at the channel's number", _receive(lambda _: 3)),
        ("write to the channel", lambda s: call("writev", 3, _IOVEC, 1)),
        ("a filter on a listener", _option(_listener, 1, 26, _FILTER, struct.calcsize("@HP"))),
        ("a filter on a flow", _option(_flow, 1, 26, _FILTER, struct.calcsize("@HP"))),
        ("options of IP on a listener",
         _option(_listener, 0, 4, place(bytes([148, 4, 0, 0])))),
        ("the TTL of a listener", _option(_listener, 0, 2)),
        ("no addresses from a listener", _option(_listener, 0, packet_info.IP_PKTINFO)),
        ("segments of a listener", _option(_listener, 17, mmsghdr.UDP_SEGMENT)),
        ("a flow's cork", _option(_flow, 17, 1)),
        ("encapsulation", _option(_flow, 17, 100, place(struct.pack("i", 2)))),
        ("errors with payload", _option(_flow, 0, 11)),
    ]  # fmt: skip


# A listener that is bound to a loopback address of the other namespace has no way to the port.
_REACHING = {"a listener's connection", "connect to the middle of a slot"}


# --- monitors -------------------------------------------------------------------------------------

_DATAGRAMS = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


def _own(_: Scene) -> int:
    """A UDP socket of the monitor's namespace."""
    return call("socket", socket.AF_INET, _DATAGRAMS, 0)


def _monitors_listener(_: Scene) -> int:
    """The place of its first UDP listener, which is behind that of TCP."""
    return FIRST_LISTENER + 1


def _of_monitors() -> list[Row]:
    def row(
        name: str, make: Callable[[Scene], int], *, conceded: bool = False, bare: str = WORKS
    ) -> Row:
        udp = dict.fromkeys(MONITORS, WORKS) if conceded else {}
        return Row(f"UDP in a monitor: {name}", make, MONITORS, bare=bare, udp=udp)

    def theirs(scene: Scene) -> int:
        """The address of a port of the namespace that its listeners belong to."""
        return _to(scene, "theirs")

    return [
        row("a socket", _own, conceded=True),
        row("to any port from a listener",
            lambda s: call("sendmmsg", _monitors_listener(s), _messages(theirs(s)), 1, _SENT),
            conceded=True),
        row("to any port from a socket of its own",
            lambda s: call("sendmsg", _own(s), _messages(_to(s)), _SENT), conceded=True),
        row("connect to the target", lambda s: call("connect", _own(s), BOOK, 16), conceded=True),
        row("receive from a listener", _receive(_monitors_listener), conceded=True),
        row("connect to an address of one's own", lambda s: call("connect", _own(s), _to(s), 16)),
        row("sendto with an address",
            lambda s: call("sendto", _own(s), _PAYLOAD, 8, _SENT, _to(s), 16)),
        row("sendmmsg from a socket of its own",
            lambda s: call("sendmmsg", _own(s), _messages(_to(s)), 1, _SENT)),
        row("bind", lambda s: call("bind", _own(s), place(sockaddr(0)), 16)),
        row("a socket of UDP-Lite",
            lambda _: call("socket", socket.AF_INET, _DATAGRAMS, 136), bare=REACHES),
        row("a socket of ICMP", lambda _: call("socket", socket.AF_INET, _DATAGRAMS, 1),
            bare=REACHES),
        row("peek at a listener",
            _receive(_monitors_listener, socket.MSG_DONTWAIT | socket.MSG_PEEK)),
        row("wait at a listener",
            _receive(_monitors_listener, socket.MSG_DONTWAIT, place(bytes(16)))),
        row("AF_UNSPEC on a listener",
            lambda s: call("connect", _monitors_listener(s), _UNSPEC, 16)),
        row("close a listener", lambda _: call("close", FIRST_LISTENER)),
        row("a filter on a listener",
            _option(_monitors_listener, 1, 26, _FILTER, struct.calcsize("@HP"))),
        row("a filter on a socket of its own",
            _option(_own, 1, 26, _FILTER, struct.calcsize("@HP"))),
        row("the TTL of a listener", _option(_monitors_listener, 0, 2)),
        row("a broadcast", _option(_own, 1, socket.SO_BROADCAST)),
        row("another program's port", _option(_own, 1, socket.SO_REUSEPORT)),
    ]  # fmt: skip


def all_of_them() -> list[Row]:
    """For attempts.ROWS."""
    where = DATAGRAM_RELAYS
    begun = dict.fromkeys(where, WORKS)
    rows = [
        Row(f"datagrams: {name}", make, where, bare=REACHES if name in _REACHING else WORKS)
        for name, make in (*_leaving(), *_others())
    ]
    # What SECURITY.md concedes; and that the listeners of TCP are out of reach.
    rows += [
        Row("datagrams: to any port from a listener", _send_many(_listener), where,
            elsewhere=begun),
        Row("datagrams: the same from another local address",
            _send_many(_listener, control=_SOURCE), where, elsewhere=begun),
        Row("datagrams: to the target", _send(), where, elsewhere=begun),
        Row("datagrams: receive from a listener", _receive(_listener), where, elsewhere=begun),
        Row("datagrams: receive from a listener of TCP", _receive(_foreign_place), where,
            elsewhere=dict.fromkeys(where, "ENOTSOCK"), bare="ENOTSOCK"),
        Row("datagrams: from a listener of TCP", _send_many(_foreign_place), where,
            elsewhere=dict.fromkeys(where, "ENOTSOCK"), bare="ENOTSOCK"),
    ]  # fmt: skip
    return rows + _of_monitors()
