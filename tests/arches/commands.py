# SPDX-License-Identifier: GPL-2.0-or-later
"""A COMMAND in namespaces of its own: reached through ports that are given at the start, and
through ports that come and go while it runs, as its relays are given listeners then.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

from hardsplice.ctl.client import Client
from tests.arches.instance import PATIENCE, Instance, eventually, is_locked_down, pause

_CONTROL = "/tmp/control"  # of the guest
_PROCESSES = {"hs-host", "hs-namespace", "hs-relay-in", "hs-guard", "hs-init"}
# Serves so many connections; and, if there is a port, makes one.
_PROGRAM = """
import socket, sys
with socket.create_server(("127.0.0.1", 8080)) as server:
    print("listening", flush=True)
    for _ in range(int(sys.argv[1])):
        with server.accept()[0] as peer:
            peer.sendall(peer.recv(100).upper())
for port in sys.argv[2:]:
    with socket.create_connection(("127.0.0.1", int(port))) as client:
        client.sendall(b"from inside")
sys.exit(7)
"""


@contextlib.contextmanager
def _command(options: tuple[str, ...], *words: str, user: int | None = None) -> Iterator[Instance]:
    """A running COMMAND that listens; in the end its status was passed on."""
    program = ["--", sys.executable, "-c", _PROGRAM, *words]
    instance = Instance(*options, *program, user=user, stdout=subprocess.PIPE)
    try:
        instance.wait_ready()
        assert instance.process.stdout is not None
        assert instance.process.stdout.readline() == b"listening\n"
        yield instance
    finally:
        instance.end(7)


def _exchange(port: int) -> bool:
    """One connection to COMMAND by a port of the host's; False where nobody listens there."""
    try:
        client = socket.create_connection(("127.0.0.1", port), PATIENCE)
    except ConnectionRefusedError:
        return False
    with client, client.makefile("rb") as answer:
        client.sendall(b"hello")
        assert answer.read() == b"HELLO"
    return True


def fixed_ports(user: int | None) -> None:
    """Ports of the command line, and a status that is passed on."""
    with _command(("-t", "127.0.0.1/19090:8080"), "1", user=user) as instance:
        is_locked_down(instance, _PROCESSES)
        for pid in instance.processes().values():
            pause(pid)
        assert _exchange(19090)


def changing_ports() -> None:
    """Ports that hardsplice finds, and that it is told to add and to remove."""
    options = ("-t", "127.0.0.1/auto", "--control", _CONTROL)
    with (
        _command(options, "3", "8083") as instance,
        socket.create_server(("127.0.0.1", 15435)) as server,
        contextlib.closing(Client(_CONTROL)) as client,
    ):
        server.settimeout(PATIENCE)
        eventually(lambda: _exchange(8080), "auto has not found the port")
        is_locked_down(instance, {*_PROCESSES, "hs-relay-out"})
        outward = {"proto": "tcp", "parentPort": 15435, "childPort": 8083}
        client.add({**outward, "childIP": "127.0.0.1", "direction": "outbound"})
        inward = {"proto": "tcp", "parentIP": "127.0.0.1", "parentPort": 19091, "childPort": 8080}
        for _ in range(2):  # the second one takes the place of the first one
            number = client.add(inward)["id"]
            assert _exchange(19091), "nobody listens on a port that was added"
            client.remove(number, reset_flows=False)
            assert not _exchange(19091), "somebody listens on a port that was removed"
        peer, _ = server.accept()
        with peer, peer.makefile("rb") as sent:
            assert sent.read() == b"from inside"
