# SPDX-License-Identifier: GPL-2.0-or-later
"""Listening sockets, and the plan of where a listener's connections go.

An accepted socket inherits what its listener has: TCP_NODELAY and keepalive are set here once, and
cost nothing per connection. SO_SNDBUF and SO_RCVBUF are left alone, since setting them turns the
kernel's autotuning off.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

from hardsplice import linux
from hardsplice.channel import CROWDED_HINT, close_all
from hardsplice.errors import Failure, reason_of
from hardsplice.ports import Address, Forward
from hardsplice.relay.engine import Listener
from hardsplice.relay.sockets import FAMILIES, IPV4, IPV6

_SIOCGIFINDEX = 0x8933  # linux/sockios.h
_IFREQ = struct.Struct("16si20x")  # linux/if.h: a name, and here the index
BACKLOG = 65535  # the kernel cuts this to net.core.somaxconn
LOOPBACK_IPV4 = IPv4Address("127.0.0.1")
LOOPBACK_IPV6 = IPv6Address("::1")

Plan = tuple[tuple[int, bytes], ...]


def usable_families(versions: Sequence[int]) -> tuple[int, ...]:
    """Indexes into FAMILIES of those in ``versions`` (4, 6) of which this namespace's kernel makes
    sockets.
    """
    usable = []
    for index, family in enumerate(FAMILIES):
        if (4, 6)[index] not in versions:
            continue
        try:
            socket.socket(family, socket.SOCK_STREAM).close()
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise
            continue
        usable.append(index)
    return tuple(usable)


def describe(forward: Forward) -> str:
    """A listener as messages name it: "port 80", "127.0.0.1 port 80", "::1%eth0 port 80"."""
    where = str(forward.address or "")
    if forward.interface:
        where += f"%{forward.interface}"
    return f"{where} port {forward.port}".strip()


def open_listener(forward: Forward, families: Sequence[int]) -> int:
    """Bind and listen; the descriptor, or OSError."""
    address, dual = bound_address(forward, families)
    is_ipv6 = address.version == 6
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    with socket.socket(FAMILIES[IPV6 if is_ipv6 else IPV4], kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener_options(listener)
        if is_ipv6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        scope = 0
        if forward.interface:
            name = os.fsencode(forward.interface) + b"\0"
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
            scope = _interface_index(listener, name)
        if is_ipv6:
            listener.bind((str(address), forward.port, 0, scope if address.is_link_local else 0))
        else:
            listener.bind((str(address), forward.port))
        listener.listen(BACKLOG)
        return listener.detach()


def bound_address(forward: Forward, families: Sequence[int]) -> tuple[Address, bool]:
    """The address that a forward's listener is bound to, and whether it takes both families."""
    if forward.address is not None:
        return forward.address, False
    if IPV6 in families:
        return IPv6Address("::"), IPV4 in families
    return IPv4Address("0.0.0.0"), False


def listener_options(listener: socket.socket) -> None:
    """Set what accepted sockets inherit."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _interface_index(any_socket: socket.socket, name: bytes) -> int:
    """The index of an interface. if_nametoindex(3) would make a socket of its own for it."""
    answer = fcntl.ioctl(any_socket, _SIOCGIFINDEX, _IFREQ.pack(name, 0))
    index: int = _IFREQ.unpack(answer)[1]
    return index


def is_listener(fd: int, port: int) -> bool:
    """Whether ``fd`` is a TCP socket that listens on ``port``, as somebody says who may lie."""
    try:
        claimed = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=fd)
    except OSError:
        return False  # no socket at all
    try:
        return (
            claimed.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) in FAMILIES
            and claimed.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_TCP
            and claimed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            and claimed.getsockname()[1] == port
        )
    finally:
        claimed.detach()


def open_listeners(
    forwards: Sequence[Forward],
    families: Sequence[int],
    place: str,
    kept: Callable[[Forward], int | None] = lambda _: None,
) -> list[tuple[int, int]]:
    """Open all of ``forwards``, in ``place`` ("on the host" or so): (index, descriptor) of each
    that is open. ``kept`` has the descriptors of some that are open already.

    One that is required and can't be had closes all of them again and raises Failure.
    """
    opened: list[tuple[int, int]] = []
    for index, forward in enumerate(forwards):
        try:
            fd = kept(forward)
            opened.append((index, open_listener(forward, families) if fd is None else fd))
        except OSError as error:
            if not forward.required and error.errno in (errno.EADDRINUSE, errno.EACCES):
                continue
            close_all([fd for _, fd in opened])
            raise cannot_listen(forward, place, error) from error
    return opened


def cannot_listen(forward: Forward, place: str, error: OSError) -> Failure:
    """The Failure for an error of ``open_listener``, with a next step where there is one."""
    hint = None
    if error.errno == errno.EACCES and forward.port < 1024:
        hint = (
            "ports below 1024 are root's unless net.ipv4.ip_unprivileged_port_start says otherwise:"
            " use a higher port, or, as root,"
            f" sysctl net.ipv4.ip_unprivileged_port_start={forward.port}"
        )
    elif error.errno == errno.EADDRINUSE:
        hint = f"find who listens there with: ss -ltnp 'sport = :{forward.port}'"
    elif error.errno == errno.EADDRNOTAVAIL:
        hint = f"no interface {place} has that address: see ip address"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        hint = (
            "each port takes a descriptor: raise the limit with ulimit -n, or forward fewer ports"
        )
    elif error.errno == errno.ETOOMANYREFS:
        hint = CROWDED_HINT
    elif error.errno == errno.ENODEV:
        hint = f"no interface {place} has that name: see ip link"
    return Failure("listen on", f"{describe(forward)} {place}", reason_of(error), hint)


def plans(forward: Forward, families: Sequence[int]) -> tuple[Plan, Plan]:
    """What to try, in order, for an IPv4 client and for an IPv6 client.

    Without a target address that is the loopback address of the client's family, then the other
    one. ``families`` are those that the targets' namespace has.
    """
    if forward.target is not None:
        family = IPV4 if forward.target.version == 4 else IPV6
        one: Plan = ((family, linux.sockaddr(forward.target, forward.target_port)),)
        return one, one
    by_family = {
        IPV4: (IPV4, linux.sockaddr(LOOPBACK_IPV4, forward.target_port)),
        IPV6: (IPV6, linux.sockaddr(LOOPBACK_IPV6, forward.target_port)),
    }
    first4 = tuple(by_family[family] for family in (IPV4, IPV6) if family in families)
    first6 = tuple(by_family[family] for family in (IPV6, IPV4) if family in families)
    if forward.address is None:
        return first4, first6
    same = first4 if forward.address.version == 4 else first6
    return same, same


def for_relay(
    opened: Sequence[tuple[int, int]],
    forwards: Sequence[Forward],
    families: Sequence[int],
    first: int = 0,
) -> tuple[Listener, ...]:
    """The open listeners with their plans, as the engine wants them. The engine knows the one at
    index 0 of ``forwards`` as ``first``.
    """
    return tuple(
        Listener(fd, *plans(forwards[index], families), first + index) for index, fd in opened
    )


def listener_for(index: int, fd: int, forward: Forward, families: Sequence[int]) -> Listener:
    """A listener with its plans; Failure when the target is of a family that is not among
    ``families``, for which there would be no sockets.
    """
    made = Listener(fd, *plans(forward, families), index)
    if any(family not in families for family, _ in (*made.plan_ipv4, *made.plan_ipv6)):
        raise no_family(forward, "there")
    return made


def no_family(forward: Forward, place: str) -> Failure:
    """The Failure for a target of a family that its namespace doesn't have."""
    version = forward.target.version if forward.target else 4
    return Failure("connect to", f"{forward.target}", f"there is no IPv{version} {place}")
