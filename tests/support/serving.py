# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of hardsplice that shows that it does its work: in the strict sandbox, both ways, also
by relays that were started anew.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import PATIENCE, Stream, eventually, expect, send

_INSIDE = 81  # a port of the namespace
# What a process has given up, in /proc/PID/status.
_GIVEN_UP = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups")
GivenUp = list[tuple[str, list[str]]]


def served(
    program: Program,
    identity: Identity,
    namespace: Namespace,
    *words: str,
    once_ready: Callable[[], object] = lambda: None,
) -> GivenUp:
    """Serve connections, with further options, before and after all relays are killed and started
    anew under their monitors' filters; what each process has given up, in the order of their names.
    """
    outside, served_port = free_ports(), free_ports()
    ports = ["-t", f"127.0.0.1/{outside}:80", "-T", f"127.0.0.1/{_INSIDE}:{served_port}"]
    instance = Instance(
        program, identity, ["-f", "--sandbox=strict", *words, *ports, str(namespace.pid)]
    )
    host = _made_on_the_host

    def passes() -> None:
        _passes(host, outside, namespace.socket, 80)
        _passes(namespace.socket, _INSIDE, host, served_port)

    try:
        instance.wait_ready()
        once_ready()
        passes()
        before = instance.relays()
        for relay in before:
            os.kill(relay, signal.SIGKILL)
        eventually(
            lambda: len(instance.relays()) == 2 and not set(before) & set(instance.relays()),
            "the relays are started again",
        )
        passes()
        found = [procfs.status(pid) for pid in instance.processes()]
        instance.stop()
    finally:
        instance.discard()
    return sorted((one["Name"], [one[field] for field in _GIVEN_UP]) for one in found)


def _made_on_the_host(family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM)


_Maker = Callable[[socket.AddressFamily], socket.socket]


def _passes(client_side: _Maker, entry: int, server_side: _Maker, exit_: int) -> None:
    """A client on one side reaches a server on the other one."""
    stream = Stream()
    with server_side(socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", exit_))
        listener.listen()
        listener.settimeout(PATIENCE)
        with client_side(socket.AF_INET) as client:
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", entry))
            with listener.accept()[0] as server:
                server.settimeout(PATIENCE)
                send(client, stream, 100_000)
                expect(server, stream, 100_000)
