# SPDX-License-Identifier: GPL-2.0-or-later
"""A table of flows that one process writes and another one reads."""

from __future__ import annotations

import os
import time
from ipaddress import IPv4Address, IPv6Address

from hardsplice.kernel import socketcalls
from hardsplice.model.protocol import Protocol
from tests.support.tables import empty

TCP = Protocol.TCP.number
CLIENT = socketcalls.endpoint(socketcalls.sockaddr(IPv4Address("192.0.2.1"), 40000))
TARGET = socketcalls.endpoint(socketcalls.sockaddr(IPv6Address("2001:db8::1"), 443))


def test_a_process_forked_later_reads_what_another_one_writes() -> None:
    stats, table = empty()
    ready, told = os.pipe()
    with stats.shared():
        pid = os.fork()
    if pid == 0:
        at = table.positions()[0]
        table.open(at, 1, TCP, CLIENT, TARGET, time.monotonic())
        stats.count[at] = 9
        os.write(told, b"\n")
        os._exit(0)
    assert os.read(ready, 1) == b"\n"
    os.waitpid(pid, 0)
    os.close(ready)
    os.close(told)
    assert [row.bytes_to_target for row in table] == [9], "although the writer is gone"
