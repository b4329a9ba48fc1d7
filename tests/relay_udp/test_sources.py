# SPDX-License-Identifier: GPL-2.0-or-later
"""Where datagrams come from, and what may be sent back there: clients on another machine, who put
into a packet what they like.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program
from tests.support.stream import PATIENCE, eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left_behind")]
HERE, THERE = "10.66.0.1", "10.66.0.2"
SIX, ALSO_SIX = "fd66::1", "fd66::2"  # both of them here
EVERYBODY = "255.255.255.255"
PORT, VICTIM, UNUSED = 5000, 7777, 7778
SHORT = 0.3  # seconds for what must not come


@dataclass(frozen=True)
class Within(Identity):
    """Root in another network namespace."""

    path: str = ""

    def wrap(self, argv: list[str]) -> list[str]:
        return ["nsenter", f"--net={self.path}", *argv]


@dataclass
class Stand:
    """A host with a cable to another machine, whose end of it is here."""

    host: Namespace
    wire: socket.socket
    hardware: bytes  # the host's address there
    served: Namespace
    heard: list[bytes] = field(default_factory=list)

    def packet(self, source: str, destination: str, port: int, data: bytes) -> None:
        """Put a datagram from that address and port onto the wire, for the forwarded port."""
        udp = struct.pack("!HHHH", port, PORT, 8 + len(data), 0) + data
        ends = socket.inet_aton(source) + socket.inet_aton(destination)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends
        words = sum(struct.unpack("!10H", head))
        checked = head[:10] + struct.pack("!H", ~(words % 0xFFFF) & 0xFFFF) + head[12:]
        receiver = b"\xff" * 6 if destination == EVERYBODY else self.hardware
        self.wire.send(receiver + b"\2\0\0\0\0\7" + b"\x08\0" + checked + udp)

    def packet_six(self, source: str, destination: str, port: int, data: bytes) -> None:
        """The same in IPv6."""
        ends = socket.inet_pton(socket.AF_INET6, source)
        ends += socket.inet_pton(socket.AF_INET6, destination)
        size = 8 + len(data)
        udp = struct.pack("!HHHH", port, PORT, size, 0) + data
        summed = ends + struct.pack("!II", size, 17) + udp + bytes(len(udp) % 2)
        check = ~(sum(struct.unpack(f"!{len(summed) // 2}H", summed)) % 0xFFFF) & 0xFFFF
        head = struct.pack("!IHBB", 6 << 28, size, 17, 64) + ends
        whole = head + udp[:6] + struct.pack("!H", check or 0xFFFF) + udp[8:]
        self.wire.send(self.hardware + b"\2\0\0\0\0\7" + b"\x86\xdd" + whole)


def ip(namespace: Namespace, words: str) -> str:
    enter = ["nsenter", f"--net={namespace.net_path}", "ip", *words.split()]
    return subprocess.run(
        enter, check=True, timeout=PATIENCE, capture_output=True, text=True
    ).stdout


@pytest.fixture
def stand() -> Iterator[Stand]:
    """hardsplice on that host, which forwards a port of all its addresses."""
    root = Identity("root")
    with (
        contextlib.closing(Program()) as program,
        Namespace(root) as host,
        Namespace(root) as served,
        Namespace(root) as there,
        contextlib.ExitStack() as stack,
    ):
        ip(host, f"link add here type veth peer name there netns {there.pid}")
        ip(host, f"address add {HERE}/24 dev here")
        for six in (SIX, ALSO_SIX):
            ip(host, f"address add {six}/64 dev here nodad")
        ip(host, "link set here up")
        ip(there, f"address add {THERE}/24 dev there")
        ip(there, "link set there up")
        found = re.search(r"link/ether (\S+)", ip(host, "link show here"))
        assert found is not None
        hardware = bytes.fromhex(found[1].replace(":", ""))
        wire = stack.enter_context(there.packet_socket())
        wire.bind(("there", 0))
        words = ["-f", "-u", f"{PORT}:80", str(served.pid)]
        instance = Instance(program, Within("root", path=host.net_path), words)
        stack.callback(instance.discard)
        instance.wait_ready()
        yield Stand(host, wire, hardware, served)
        instance.stop()


def at(namespace: Namespace, address: str, port: int) -> socket.socket:
    made = namespace.datagram_socket(socket.AF_INET)
    made.bind((address, port))
    made.settimeout(PATIENCE)
    return made


@pytest.mark.parametrize("port", [VICTIM, PORT])
def test_who_has_no_address_is_no_client(stand: Stand, port: int) -> None:
    """The kernel passes on what comes from 0.0.0.0 if it is sent to everybody, as DHCP is; and
    would take the answer as one to this machine: to a service on its loopback, or to the listener,
    so that a server which answers everything would do so for ever.
    """
    with at(stand.served, "127.0.0.1", 80) as server, at(stand.host, "0.0.0.0", VICTIM) as victim:
        stand.packet("0.0.0.0", EVERYBODY, port, b"from nowhere")
        stand.packet(THERE, EVERYBODY, UNUSED, b"from there")
        data, client = server.recvfrom(100)
        assert data == b"from there"
        server.sendto(b"answer", client)
        for silent in (server, victim):
            silent.settimeout(SHORT)
            with pytest.raises(TimeoutError):
                silent.recv(100)


def test_an_address_of_ipv4_in_a_packet_of_ipv6_is_none(stand: Stand) -> None:
    """The answer would go by IPv4: to a service on the loopback of this machine, for example."""
    with at(stand.served, "127.0.0.1", 80) as server:
        stand.packet_six("::ffff:127.0.0.1", SIX, VICTIM, b"made up")
        stand.packet_six("fd66::77", SIX, VICTIM, b"from there")
        assert server.recv(100) == b"from there"


@pytest.mark.parametrize("source", [SIX, ALSO_SIX])
def test_a_listener_does_not_answer_itself(stand: Stand, source: str) -> None:
    """In IPv6 the kernel passes on what has an address of this machine as its source; and whoever
    answers everything would do so for ever.
    """
    with at(stand.served, "127.0.0.1", 80) as server:
        stand.packet_six(source, SIX, PORT, b"to and fro")
        server.settimeout(SHORT)
        heard = 0
        with contextlib.suppress(TimeoutError):
            while heard < 10:
                data, client = server.recvfrom(100)
                heard += 1
                server.sendto(data, client)
        assert heard == (0 if source == SIX else 1)
        server.settimeout(PATIENCE)
        stand.packet_six("fd66::77", SIX, PORT, b"from there")
        assert server.recv(100) == b"from there", "another machine's port of that number"


def test_what_was_sent_to_all_of_a_network_is_answered(stand: Stand) -> None:
    """From an address of this machine, as the one that was asked can't be a source."""
    received = []
    with at(stand.served, "127.0.0.1", 80) as server:
        for number, everybody in enumerate((EVERYBODY, "10.66.0.255")):
            stand.packet(THERE, everybody, UNUSED + number, b"who is there?")
            data, client = server.recvfrom(100)
            assert data == b"who is there?"
            server.sendto(b"me", client)
        stand.wire.settimeout(PATIENCE)

        def came() -> bool:
            packet = stand.wire.recv(2000)
            if packet[12:14] == b"\x08\0" and packet[23] == 17 and packet.endswith(b"me"):
                received.append((socket.inet_ntoa(packet[26:30]), packet[36:38]))
            return len(received) == 2

        eventually(came, lambda: f"{received} came")
    wanted = [(HERE, struct.pack("!H", UNUSED + number)) for number in range(2)]
    assert received == wanted
