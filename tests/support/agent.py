# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that makes a namespace and hands sockets out of it.

It is started as `unshare ... python3 -c <this text> FD` and needs nothing but the standard library,
so that any user may run it wherever the tests' own files are readable or not. A socket belongs for
good to the namespace in which it was created, so the test process can bind, listen, connect and
accept with it from outside. Protocol on the socket FD: one byte "4" or "6" asks for a TCP socket of
that family, "u" or "v" for a UDP socket of IPv4 or IPv6, "d" for one of sock_diag(7), "p" for one
of packet(7). It comes back over SCM_RIGHTS, and then a "c" once the agent has closed its own copy:
so a port is free as soon as the test process has closed what it got. End of file ends the agent and
so the namespace.
"""

import fcntl
import socket
import struct
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # linux/sockios.h, net/if.h


def loopback_up() -> None:
    """A new network namespace starts with its loopback interface down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("16sH", fcntl.ioctl(probe, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def serve(channel: socket.socket) -> None:
    """Make sockets until the test process hangs up."""
    channel.send(b"up")
    kinds = {
        b"4": (socket.AF_INET, socket.SOCK_STREAM, 0),
        b"6": (socket.AF_INET6, socket.SOCK_STREAM, 0),
        b"u": (socket.AF_INET, socket.SOCK_DGRAM, 0),
        b"v": (socket.AF_INET6, socket.SOCK_DGRAM, 0),
        b"p": (socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)),  # ETH_P_ALL
        b"d": (socket.AF_NETLINK, socket.SOCK_DGRAM, 4),  # NETLINK_SOCK_DIAG, linux/netlink.h
    }
    while request := channel.recv(1):
        with socket.socket(*kinds[request]) as made:
            socket.send_fds(channel, [b"s"], [made.fileno()])
        channel.send(b"c")


if __name__ == "__main__":
    loopback_up()
    serve(socket.socket(fileno=int(sys.argv[1])))
