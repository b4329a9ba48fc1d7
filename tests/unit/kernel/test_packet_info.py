# SPDX-License-Identifier: GPL-2.0-or-later
"""From which address an answer to a datagram leaves. The structures themselves are held against the
kernel's in tests/integration/kernel/test_datagrams.py.
"""

from __future__ import annotations

import socket
import struct

import pytest

from hardsplice.kernel.packet_info import reply_from_anywhere, reply_to

HEAD = struct.Struct("@Nii")  # struct cmsghdr


def key_ipv6(client: str, asked: str) -> bytes:
    """What a client at an interface with number 7 leaves in memory."""
    name = struct.pack("@HHI16sI", socket.AF_INET6, 1234, 0, packed(client), 0).ljust(32, b"\0")
    return name + HEAD.pack(HEAD.size + 20, 41, 50) + packed(asked) + struct.pack("=i", 7)


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address)


@pytest.mark.parametrize(
    ("asked", "source", "interface"),
    [
        ("fe80::1", "fe80::1", 7),
        ("2001:db8::1", "2001:db8::1", 0),
        ("ff02::1", "::", 0),  # a group is no source
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1", 0),
    ],
)
def test_an_interface_is_named_only_where_an_address_needs_it(
    asked: str, source: str, interface: int
) -> None:
    key = key_ipv6("2001:db8::2", asked)
    reply = reply_to(key)
    assert reply[: 32 + HEAD.size] == key[: 32 + HEAD.size]
    assert reply[32 + HEAD.size :][:20] == packed(source) + struct.pack("=i", interface)


def test_the_source_of_an_ipv4_answer_is_the_address_of_the_route() -> None:
    """Which is ipi_spec_dst; where a client asked a broadcast address, ipi_addr is no source."""
    client = struct.pack("@HH4s8x", socket.AF_INET, 1234, bytes((192, 0, 2, 7)))
    info = struct.pack("=i4s4s", 7, bytes((192, 0, 2, 1)), bytes((192, 0, 2, 255)))
    reply = reply_to(client + HEAD.pack(HEAD.size + 12, 0, 8) + info)
    assert reply[:16] == client
    assert reply[16:][: HEAD.size] == HEAD.pack(HEAD.size + 12, 0, 8)
    assert reply[16 + HEAD.size :][:12] == bytes(4) + info[4:8] + bytes(4)
    anywhere = reply_from_anywhere(reply)
    assert anywhere[: 16 + HEAD.size] == reply[: 16 + HEAD.size]
    assert not any(anywhere[16 + HEAD.size :])
    assert len(anywhere) == len(reply)


@pytest.mark.parametrize(
    ("client", "source"), [("2001:db8::2", "::"), ("::ffff:192.0.2.7", "::ffff:0.0.0.0")]
)
def test_any_source_is_of_the_client_s_kind(client: str, source: str) -> None:
    reply = reply_to(key_ipv6(client, "2001:db8::1"))
    anywhere = reply_from_anywhere(reply)
    assert anywhere[32 + HEAD.size :][:20] == packed(source) + bytes(4)
    assert len(anywhere) == len(reply)
