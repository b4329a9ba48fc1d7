# SPDX-License-Identifier: GPL-2.0-or-later
"""Listening sockets, and the routes of their connections.

An accepted socket inherits what its listener has: TCP_NODELAY and keepalive are set here once, and
cost nothing per connection. SO_SNDBUF and SO_RCVBUF are left alone, since setting them turns the
kernel's autotuning off.

The address and the options of a listener are written to pinned memory first and used from there
(kernel/pinned.py): after lock-down only the host monitor can write them, and filters ensure that
nothing else is used.

What is different in UDP is in net/datagram_listener.py, which is imported only where there are UDP
ports, or may be (``prepare``).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

from hardsplice.ipc.channel import CROWDED_HINT, close_all
from hardsplice.kernel import pinned, socketcalls
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError, reason_of
from hardsplice.model.families import FAMILIES, IPV4, IPV6
from hardsplice.model.forward import LOOPBACKS, Forward, Source
from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import LAST_PORT, Address
from hardsplice.net.listener import Listener, Route
from hardsplice.sandbox.address_book import Area, Pointer

BACKLOG = 65535  # the kernel cuts this to net.core.somaxconn
LOOPBACK = {IPV4: LOOPBACKS[4], IPV6: LOOPBACKS[6]}


def prepare() -> None:
    """Import what UDP's listeners take: nothing can be imported after lock-down."""
    from hardsplice.net import datagram_listener  # noqa: F401


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


class Bound(NamedTuple):
    """A forward with its listener, which is open at ``fd`` in this process."""

    forward: Forward
    fd: int


def write_bind_address(
    forward: Forward, families: Sequence[int], written: pinned.Written | None = None
) -> None:
    """Write down where a forward's listener is to be, for ``open_listener``. ``families`` are those
    of the namespace that it will be made in; ``written`` as for pinned.write_bind_address.
    """
    address, _ = bound_address(forward, families)
    device = os.fsencode(forward.interface) + b"\0" if forward.interface else b""
    pinned.write_bind_address(socketcalls.sockaddr(address, forward.port), device, written)


def open_listener(forward: Forward, families: Sequence[int]) -> int:
    """Bind to the address that was written down, and listen; the descriptor, or OSError."""
    address, dual = bound_address(forward, families)
    if forward.protocol is Protocol.UDP:
        from hardsplice.net import datagram_listener

        return datagram_listener.open_listener(address, dual=dual, interface=forward.interface)
    is_ipv6 = address.version == 6
    fd = socketcalls.stream_socket(FAMILIES[IPV6 if is_ipv6 else IPV4])
    try:
        socketcalls.set_reuse_address(fd)
        socketcalls.set_keepalive(fd)
        socketcalls.set_nodelay(fd)
        if is_ipv6:
            socketcalls.set_ipv6_only(fd, value=not dual)
        if forward.interface:
            # A link-local address has its scope by this: the index needn't be in the address.
            socketcalls.bind_to_device(fd)
        socketcalls.bind(fd, len(socketcalls.sockaddr(address, 1)))
        socketcalls.listen(fd, BACKLOG)
    except OSError:
        os.close(fd)
        raise
    return fd


def bound_address(forward: Forward, families: Sequence[int]) -> tuple[Address, bool]:
    """The address that a forward's listener is bound to, and whether it takes both families."""
    if forward.address is not None:
        return forward.address, False
    if IPV6 in families:
        return IPv6Address("::"), IPV4 in families
    return IPv4Address("0.0.0.0"), False


def chosen(forward: Forward, fd: int) -> Forward:
    """A forward as it has become: with the number that the kernel chose where any would do."""
    return forward if forward.port else forward._replace(port=socketcalls.local_port(fd))


def is_listener(fd: int, forward: Forward) -> bool:
    """Whether ``fd`` is a socket of its protocol that takes clients on a forward's port (0: any),
    as a process claims that may be hostile.
    """
    port = forward.port
    domain = socketcalls.option(fd, socket.SOL_SOCKET, socket.SO_DOMAIN)
    return (
        domain in FAMILIES
        and socketcalls.option(fd, socket.SOL_SOCKET, socket.SO_PROTOCOL) == forward.protocol.number
        and _is_open(fd, forward.protocol)
        and socketcalls.local_port(fd) in ((port,) if port else range(1, LAST_PORT + 1))
    )


def is_bound_to(fd: int, address: Address | None) -> bool:
    """Whether a TCP or UDP socket is bound to an address, or where that is None to every one."""
    packed, _ = socketcalls.endpoint(socketcalls.local_address(fd))
    anywhere = (IPv6Address("::"), IPv4Address("0.0.0.0"))
    return packed in map(_as_ipv6, anywhere if address is None else (address,))


def _as_ipv6(address: Address) -> bytes:
    """An address packed as IPv6, where IPv4 is mapped."""
    return socketcalls.endpoint(socketcalls.sockaddr(address, 0))[0]


# The options of a listener from ``open_listener``, and those that would cut off or delay
# connections that are accepted from it. If they differ, a process has shut it down or changed its
# options.
UNSOUND = "somebody who has its listener ended or changed it"
_SOUND = (
    (socket.SOL_SOCKET, socket.SO_ACCEPTCONN, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.SOL_SOCKET, socket.SO_LINGER, 0),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 0),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


def namespace_here() -> int | None:
    """The number of this process's network namespace; None before Linux 5.14."""
    with socket.socket(socket.AF_UNIX) as ours:
        return socketcalls.namespace_cookie(ours.fileno())


def is_sound(fd: int, protocol: Protocol) -> bool:
    """Whether a listener still takes clients, and has the options that it was made with."""
    if protocol is Protocol.UDP:
        from hardsplice.net import datagram_listener

        return datagram_listener.is_sound(fd)
    return all(socketcalls.option(fd, level, name) == value for level, name, value in _SOUND)


def has_ended(fd: int, protocol: Protocol) -> bool:
    """Whether it listens no longer: of UDP that can't be seen."""
    is_tcp = protocol is Protocol.TCP
    return is_tcp and socketcalls.option(fd, socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0


def _is_open(fd: int, protocol: Protocol) -> bool:
    """Whether everybody can be its client."""
    if protocol is Protocol.UDP:
        from hardsplice.net import datagram_listener

        return datagram_listener.has_no_peer(fd)
    return socketcalls.option(fd, socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


# The TTL or hop limit that packets to an ended listener must have (socketcalls.retire).
_HOPS = {
    socket.AF_INET: ((socket.IPPROTO_IP, socketcalls.IP_MINTTL),),
    socket.AF_INET6: (
        (socket.IPPROTO_IP, socketcalls.IP_MINTTL),
        (socket.IPPROTO_IPV6, socketcalls.IPV6_MINHOPCOUNT),
    ),
}


def make_sound(listener: socket.socket) -> None:
    """Give a listener that another process created, or kept, the options that ours have."""
    if listener.type == socket.SOCK_DGRAM:
        from hardsplice.net import datagram_listener

        datagram_listener.make_sound(listener)
        return
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 0)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
    for level, name in _HOPS[listener.family]:
        listener.setsockopt(level, name, 0)
    listener.setblocking(False)


def open_listeners(
    forwards: Sequence[Forward],
    families: Sequence[int],
    kept: Callable[[Forward], int | None] = lambda _: None,
) -> list[Bound]:
    """Open all of ``forwards`` in this namespace: each that is open. ``kept`` has the descriptors
    of some that are open already. One that was added at run time, before a restart, is left out if
    it can't be had, whatever the reason.

    One that is required and can't be had closes all of them again and raises HardspliceError.
    """
    opened: list[Bound] = []
    for forward in forwards:
        try:
            fd = kept(forward)
            if fd is None:
                write_bind_address(forward, families)
                fd = open_listener(forward, families)
            opened.append(Bound(chosen(forward, fd), fd))
        except OSError as error:
            if forward.source is Source.CONTROL:
                continue
            if not forward.required and error.errno in (errno.EADDRINUSE, errno.EACCES):
                continue
            close_all([one.fd for one in opened])
            raise cannot_listen(forward, error) from error
    return opened


def cannot_listen(forward: Forward, error: OSError, *, late: bool = False) -> HardspliceError:
    """The HardspliceError for an error of ``open_listener``, with a next step where there is one;
    ``late`` after lock-down, when the client may be root although we no longer are.
    """
    hint = None
    if error.errno == errno.EACCES:
        hint = _privileged_hint(forward, late=late)
    elif error.errno == errno.EADDRINUSE:
        kind = "t" if forward.protocol is Protocol.TCP else "u"
        hint = f"find who listens there with: ss -l{kind}np 'sport = :{forward.port}'"
    elif error.errno == errno.EADDRNOTAVAIL:
        hint = f"no interface {forward.direction.listens} has that address: see ip address"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        hint = (
            "each port takes a descriptor: raise the limit with ulimit -n, or forward fewer ports"
        )
    elif error.errno == errno.ETOOMANYREFS:
        hint = CROWDED_HINT
    elif error.errno == errno.ENODEV:
        hint = f"no interface {forward.direction.listens} has that name: see ip link"
    return HardspliceError("listen on", forward.where, reason_of(error), hint)


def targets(forward: Forward, families: Sequence[int]) -> dict[int, bytes]:
    """The addresses to which connections of a forward may go, by index into FAMILIES; ``families``
    are those in use.
    """
    if forward.target is not None:
        family = IPV4 if forward.target.version == 4 else IPV6
        return {family: socketcalls.sockaddr(forward.target, forward.target_port)}
    return {
        family: socketcalls.sockaddr(LOOPBACK[family], forward.target_port) for family in families
    }


class Routing:
    """Makes the routes of connections, in the namespace of the targets."""

    def __init__(self, area: Area, families: Sequence[int]) -> None:
        """``area`` is the address book's; ``families`` are those that the namespace has."""
        self.area = area
        self.families = families

    def routes(self, forward: Forward, slots: Mapping[int, int]) -> tuple[Route, Route]:
        """What to try, in order, for an IPv4 client and for an IPv6 client. ``slots`` are those of
        the forward's targets, by index into FAMILIES.

        Without a target address that is the loopback address of the client's family, then the other
        one.
        """
        pointers = {
            family: Pointer(self.area, slots[family], family, sockaddr)
            for family, sockaddr in targets(forward, self.families).items()
            if family in slots
        }
        first4 = tuple(pointers[one] for one in (IPV4, IPV6) if one in pointers)
        first6 = tuple(pointers[one] for one in (IPV6, IPV4) if one in pointers)
        if forward.target is not None or forward.address is None:
            return first4, first4 if forward.target is not None else first6
        same = first4 if forward.address.version == 4 else first6
        return same, same

    def listener(self, bound: Bound, slots: Mapping[int, int]) -> Listener:
        """A listener with its routes; HardspliceError when the target is of a family that the
        namespace doesn't have, for which there would be no sockets.
        """
        forward = bound.forward
        if forward.target is not None:
            family = IPV4 if forward.target.version == 4 else IPV6
            if family not in self.families:
                raise no_family(forward, "there")
        return Listener(bound.fd, *self.routes(forward, slots), forward.id, forward.port)


def _privileged_hint(forward: Forward, *, late: bool) -> str:
    """What to do about a port that is root's. A capability of the program's file would not help: it
    is dropped at the start, as root's are.
    """
    inside = forward.direction is Direction.OUTBOUND
    who = "as root in there" if inside else "as root"
    way = f"{who}, sysctl net.ipv4.ip_unprivileged_port_start={forward.port}"
    if late:
        start = "start it with this port" if inside else "start it as root with this port"
        return (
            "once started, hardsplice has no right to ports below that of"
            f" net.ipv4.ip_unprivileged_port_start, whoever started it: {start}, or, {way},"
            " or use a higher port"
        )
    return (
        "ports below that of net.ipv4.ip_unprivileged_port_start are root's: use a higher port, or,"
        f" {way}"
    )


def no_family(forward: Forward, where: str) -> HardspliceError:
    """The HardspliceError for a target of a family that its namespace doesn't have."""
    version = forward.target.version if forward.target else 4
    return HardspliceError("connect to", f"{forward.target}", f"there is no IPv{version} {where}")
