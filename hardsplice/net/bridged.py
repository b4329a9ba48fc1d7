# SPDX-License-Identifier: GPL-2.0-or-later
"""The network namespace that a container's interface leads to: where the bridge of its network is.
Rootless Podman keeps the bridges of a user's networks in one namespace, apart from those of the
containers; from there, one server reaches them all.

The kernel tells it, by rtnetlink(7): which namespaces are at the other ends of the container's
interfaces, as numbers, and the number that the container's namespace has for one of which we have a
descriptor. Those that are tried are the ones that are mounted. Whether a container's address is
reached from there is a question for that namespace's routes.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Mapping

from hardsplice.kernel import linux, mounts
from hardsplice.model.spec import Address

_LIKELY = "rootless-netns"  # what is in the name that Podman gives it

_RTM_NEWLINK, _RTM_GETLINK, _RTM_GETROUTE, _RTM_NEWROUTE = 16, 18, 26, 24  # linux/rtnetlink.h
_RTM_NEWNSID, _RTM_GETNSID = 88, 90
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _DUMP = 0x1, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_IFLA_LINK_NETNSID = 37  # linux/if_link.h
_NETNSA_NSID, _NETNSA_FD = 1, 3  # linux/net_namespace.h
_RTA_DST, _RTA_GATEWAY, _RTA_VIA = 1, 5, 18
_RTN_UNICAST = 1
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_GENERAL = struct.Struct("=B3x")  # struct rtgenmsg, padded
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_NUMBER = struct.Struct("=i")
_ROOM = 1 << 17  # bytes: more than the kernel puts into one packet
_SECONDS = 2.0  # that the kernel has; it answers at once


def shared_by(path: str, address: Address) -> str | None:
    """The path of the namespace from which a container's ``address`` is reached directly, by way of
    its interface; ``path`` is that of the container's own. None where there is none that is found.
    """
    with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
        own = _open(path, opened)
        container = _socket_in(own, opened)
        beyond = {
            _NUMBER.unpack(found[_IFLA_LINK_NETNSID])[0]
            for found in _ask(container, _RTM_GETLINK, _RTM_NEWLINK, _LINK.pack(0, 0, 0, 0, 0))
            if _IFLA_LINK_NETNSID in found
        }
        for candidate in _candidates() if beyond else ():
            with contextlib.ExitStack() as tried, contextlib.suppress(OSError):
                fd = _open(candidate, tried)
                is_beyond = _number_of(container, fd) in beyond
                if is_beyond and _reaches(_socket_in(fd, tried), address):
                    return candidate
    return None


def _candidates() -> list[str]:
    """The paths of namespaces that are mounted here, the likely ones first."""
    found = [path for path, mount in mounts.here().items() if mount.kind == "nsfs"]
    return sorted(found, key=lambda path: _LIKELY not in path)


def _open(path: str, opened: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    opened.callback(os.close, fd)
    return fd


def _socket_in(namespace: int, opened: contextlib.ExitStack) -> socket.socket:
    """A socket of a network namespace. A thread joins it, and no other one of this process; OSError
    where it can't.
    """
    made: list[socket.socket | OSError] = []
    done = _thread.allocate_lock()
    done.acquire()

    def make() -> None:
        try:
            linux.setns(namespace, linux.CLONE_NEWNET)
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            made.append(socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE))
        except OSError as error:
            made.append(error)
        finally:
            done.release()

    _thread.start_new_thread(make, ())
    done.acquire()
    (found,) = made
    if isinstance(found, OSError):
        raise found
    opened.callback(found.close)
    found.settimeout(_SECONDS)
    return found


def _number_of(asked: socket.socket, namespace: int) -> int | None:
    """The number that a socket's namespace has for another one, if any."""
    body = _GENERAL.pack(0) + _attribute(_NETNSA_FD, _NUMBER.pack(namespace))
    for found in _ask(asked, _RTM_GETNSID, _RTM_NEWNSID, body):
        return int(_NUMBER.unpack(found[_NETNSA_NSID])[0])
    return None


def _reaches(asked: socket.socket, address: Address) -> bool:
    """Whether an address is on a link of the socket's namespace: no gateway is in between."""
    family = int(socket.AF_INET if address.version == 4 else socket.AF_INET6)
    length = address.max_prefixlen
    body = _ROUTE.pack(family, length, 0, 0, 0, 0, 0, 0, 0) + _attribute(_RTA_DST, address.packed)
    for found in _ask(asked, _RTM_GETROUTE, _RTM_NEWROUTE, body):
        if _ROUTE.unpack_from(found[_FIXED])[7] == _RTN_UNICAST:
            return _RTA_GATEWAY not in found and _RTA_VIA not in found
    return False


_FIXED = -1  # the key of what stands before a message's attributes
_BODIES = {_RTM_NEWLINK: _LINK.size, _RTM_NEWNSID: _GENERAL.size, _RTM_NEWROUTE: _ROUTE.size}


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value


def _ask(
    asked: socket.socket, kind: int, answer: int, body: bytes
) -> Iterator[Mapping[int, bytes]]:
    """The answers of one kind, each as its attributes. OSError where there is none."""
    flags = _REQUEST | (_DUMP if kind == _RTM_GETLINK else 0)
    asked.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
    while True:
        packet, at = asked.recv(_ROOM), 0
        while at + _HEADER.size <= len(packet):
            size, found, *_ = _HEADER.unpack_from(packet, at)
            if found == _NLMSG_DONE:
                return
            message = packet[at + _HEADER.size : at + size]
            if found == _NLMSG_ERROR:
                raise OSError(-_NUMBER.unpack_from(message)[0], "rtnetlink")
            if found == answer:
                yield _attributes(message, _BODIES[answer])
            at += max(_padded(size), _HEADER.size)
        if not flags & _DUMP:
            return


def _attributes(message: bytes, first: int) -> dict[int, bytes]:
    found, at = {_FIXED: message[:first]}, first
    while at + _ATTRIBUTE.size <= len(message):
        size, kind = _ATTRIBUTE.unpack_from(message, at)
        found[kind] = message[at + _ATTRIBUTE.size : at + size]
        at += max(_padded(size), _ATTRIBUTE.size)
    return found


def _padded(size: int) -> int:
    return -(-size // 4) * 4
