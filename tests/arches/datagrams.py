# SPDX-License-Identifier: GPL-2.0-or-later
"""The datagram relay's end-to-end check, as endtoend.py is that of TCP's: whatever system call an
architecture makes for datagrams and its policy doesn't name ends a process by SIGSYS.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import socket
import typing

from tests.arches.instance import PATIENCE, Instance, is_locked_down
from tests.arches.tap import Writer


class Inside(typing.Protocol):
    """The namespace that is served (endtoend.Namespace)."""

    pid: int

    def datagram_socket(self, family: socket.AddressFamily) -> socket.socket:
        """A UDP socket of it."""


_SIZES = (0, 1, 1400, 1400, 1400, 9000, 65507, 1200, 1200, 700)  # bytes; some of one size


def run(report: Writer, inside: Inside) -> None:
    """What UDP takes, by an instance of its own: datagrams both ways, alone and many at once."""
    instance = Instance("-u", "18082:8082", "-U", "15434:5434", str(inside.pid))
    if report.check("datagrams: ready", instance.wait_ready):
        names = {"hs-host", "hs-namespace", "hs-udp-in", "hs-udp-out"}
        report.check("datagrams: locked down", lambda: is_locked_down(instance, names))
        for family in (socket.AF_INET, socket.AF_INET6):
            if family == socket.AF_INET6 and not os.path.exists("/proc/net/if_inet6"):
                continue
            version = "IPv4" if family == socket.AF_INET else "IPv6"
            for way, relay, sides, ports in (
                ("inbound", "hs-udp-in", (_here, inside.datagram_socket), (18082, 8082)),
                ("outbound", "hs-udp-out", (inside.datagram_socket, _here),
                 (15434, 5434)),
            ):  # fmt: skip
                exchange = functools.partial(
                    _exchange, instance, relay, [side(family) for side in sides], ports
                )
                report.check(f"datagrams: {way} {version}", exchange)
        report.check("datagrams: still locked down", lambda: is_locked_down(instance, names))
    instance.process.terminate()
    report.check("datagrams: SIGTERM ends it", lambda: instance.end(0))


def _here(family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM)


def _exchange(
    instance: Instance, relay: str, sides: list[socket.socket], ports: tuple[int, int]
) -> None:
    """One datagram and its answer, then many that the relay finds waiting, each way."""
    client, server = sides
    address = "127.0.0.1" if client.family == socket.AF_INET else "::1"
    with client, server:
        for one in sides:
            one.settimeout(PATIENCE)
        server.bind((address, ports[1]))
        client.connect((address, ports[0]))
        client.send(b"asked")
        data, peer = server.recvfrom(100)
        assert data == b"asked"
        server.sendto(b"answered", peer)
        assert client.recv(100) == b"answered"
        pid = instance.processes()[relay]
        many = [random.Random(size).randbytes(size) for size in _SIZES]
        for send, receiver in (
            (client.send, server),
            (lambda data: server.sendto(data, peer), client),
        ):
            os.kill(pid, signal.SIGSTOP)
            for data in many:
                send(data)
            os.kill(pid, signal.SIGCONT)
            for data in many:
                assert receiver.recv(1 << 16) == data, f"not the one of {len(data)} bytes"
