# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports that lead back to us: refused where that is certain, survived where it isn't; and targets
on other machines, which may go without a word.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.paths import Ends, Lane
from tests.support.product import Instance, Program, can_bind, free_ports, run
from tests.support.stream import PATIENCE, Violation, eventually

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")

ELSEWHERE = "10.9.9.9"  # given to the namespace's loopback, which no option says
DESCRIPTORS = 400


def test_what_is_certainly_a_loop_is_refused(
    namespace: Namespace, identity: Identity, program: Program
) -> None:
    port = free_ports()
    done = run(program, identity, "-f", "-t", str(port), "-T", str(port), str(namespace.pid))
    assert done.returncode == 1
    first, hint = done.stderr.splitlines()
    assert first == (
        f"hardsplice: cannot forward port {port} on the host: that is a loop, "
        f"by way of port {port} in the namespace, then port {port} on the host"
    )
    assert f"leave out one of them, as with -t ~{port}" in hint
    assert can_bind("127.0.0.1", port)


def test_all_ports_both_ways_are_a_loop(identity: Identity, program: Program) -> None:
    # Without what anybody might have open here.
    spec = "all,~1-64000"
    first = "-t127.0.0.1/" + spec
    done = run(program, identity, first, "-T" + spec, "--", "true")
    assert done.returncode == 1
    assert "that is a loop" in done.stderr


def test_a_loop_that_nobody_could_foresee_is_survived(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    """One client has a connection made for each connection made for it, until there are no more
    descriptors; once it has gone all of them are there again, and others are served.
    """
    port, last = free_ports(2), free_ports()
    namespace.add_address(ELSEWHERE)
    instance = launch(
        identity, "-f",
        "-t", f"127.0.0.1/{port}:{ELSEWHERE}/3002", "-T", f"3002:{port}",
        "-t", f"127.0.0.1/{last}:3000",
        str(namespace.pid), descriptors=DESCRIPTORS,
    ).wait_ready()  # fmt: skip
    other = Lane(Ends(socket.AF_INET, last, 3000, server_side=namespace.socket), list)
    with contextlib.closing(other):
        other.listen()
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
            eventually(lambda: "descriptors are in use" in instance.messages(), "it goes round")
        waiting = other.client()
        waiting.sendall(b"x")
        server = other.accept(patience=3 * PATIENCE)
        assert server.recv(1) == b"x"
        for end in (waiting, server):
            end.close()
        # No connection chases itself round and round: nothing goes on.
        eventually(lambda: is_quiet(instance), "something goes on", within=40)
    instance.stop()


def is_quiet(instance: Instance) -> bool:
    with contextlib.suppress(Violation):
        procfs.assert_quiet(instance.processes(), 1.0)
        return True
    return False


# --- keepalive ---


def timers(namespace: Namespace, local: str | None, remote: str | None) -> list[int]:
    """Which timer each connection has, by its port here or there: 2 is keepalive's (proc(5))."""
    found = []
    for line in Path(f"/proc/{namespace.pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "01" and (fields[1] == local or fields[2] == remote):
            found.append(int(fields[5].partition(":")[0], 16))
    return found


def place(address: str, port: int) -> str:
    """As /proc/net/tcp writes it."""
    number = int.from_bytes(socket.inet_aton(address), "little")
    return f"{number:08X}:{port:04X}"


@pytest.mark.skipif(
    "__import__('sys').byteorder != 'little'", reason="how proc(5) writes addresses"
)
def test_both_sides_notice_when_the_other_has_gone_without_a_word(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    """The client of a listener, and a target that isn't on the loopback."""
    port, outward = free_ports(2), free_ports()
    namespace.add_address(ELSEWHERE)
    instance = launch(
        identity, "-f",
        "-t", f"127.0.0.1/{port}:{ELSEWHERE}/3000", "-T", f"127.0.0.1/3001:{outward}",
        str(namespace.pid),
    ).wait_ready()  # fmt: skip
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(namespace.socket(socket.AF_INET))
        server.bind((ELSEWHERE, 3000))
        server.listen()
        stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
        stack.enter_context(server.accept()[0])
        outside = stack.enter_context(socket.create_server(("127.0.0.1", outward)))
        client = stack.enter_context(namespace.socket(socket.AF_INET))
        client.connect(("127.0.0.1", 3001))
        stack.enter_context(outside.accept()[0])
        target, accepted = place(ELSEWHERE, 3000), place("127.0.0.1", 3001)
        eventually(lambda: timers(namespace, None, target) == [2], "a target is watched over")
        eventually(lambda: timers(namespace, accepted, None) == [2], "a client is watched over")
    instance.stop()
