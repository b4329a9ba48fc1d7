# SPDX-License-Identifier: GPL-2.0-or-later
"""The loopback interface of a namespace, which a new one has down."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable

import pytest

from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import PATIENCE, Stream, eventually, expect, send

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")
DOWN = "the loopback interface is down"


def inside(namespace: Namespace, owner: Identity, *words: str) -> str:
    """What a command says in there."""
    enter = ["nsenter", f"--net={namespace.net_path}"]
    if not owner.is_root:
        enter += [f"--user={namespace.user_path}", "--preserve-credentials"]
    done = subprocess.run(
        owner.wrap([*enter, *words]), capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    return done.stdout


def set_loopback(namespace: Namespace, owner: Identity, state: str) -> None:
    inside(namespace, owner, "ip", "link", "set", "lo", state)


def is_up(namespace: Namespace, owner: Identity) -> bool:
    flags = inside(namespace, owner, "ip", "link", "show", "lo").partition("<")[2].partition(">")[0]
    return "UP" in flags.split(",")


def refused_at(port: int) -> None:
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", port), PATIENCE) as client,
    ):
        client.recv(1)


def test_it_is_set_up(namespace: Namespace, identity: Identity, launch: Launch) -> None:
    set_loopback(namespace, identity, "down")
    port, stream = free_ports(), Stream()
    instance = launch(identity, "-f", "-t", f"127.0.0.1/{port}:80", str(namespace.pid)).wait_ready()
    with namespace.socket(socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", 80))
        listener.listen()
        listener.settimeout(PATIENCE)
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as client,
            listener.accept()[0] as server,
        ):
            send(client, stream, 100)
            expect(server, stream, 100)
    instance.stop()
    assert instance.messages() == ""


def test_where_nothing_is_forwarded_it_is_left_alone(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    set_loopback(namespace, identity, "down")
    launch(identity, "-f", str(namespace.pid)).wait_ready().stop()
    assert not is_up(namespace, identity)


@pytest.mark.root
def test_where_it_cannot_be_set_up_it_is_said_with_what_helps(program: Program) -> None:
    """As the packaged unit has it, which has no CAP_NET_ADMIN."""
    root = Identity("root")
    with Namespace(root) as namespace:
        set_loopback(namespace, root, "down")
        without = Without(program, "net_admin")
        spec = ["-f", "-t", f"127.0.0.1/{free_ports()}:80"]
        instance = Instance(without, root, [*spec, str(namespace.pid)])
        try:
            instance.wait_ready().stop()
        finally:
            instance.discard()
        (line,) = instance.messages().splitlines()
        command = re.search(r"nsenter .* ip link set lo up$", line)
        assert "loopback" in line
        assert command, line
        subprocess.run(command[0].split(), check=True, timeout=PATIENCE)
        assert is_up(namespace, root)


class Without(Program):
    """hardsplice started by root who lacks capabilities."""

    def __init__(self, program: Program, *capabilities: str) -> None:
        super().__init__()
        self.program = program
        self.dropped = ",".join(f"-{one}" for one in capabilities)

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = self.program.argv(identity)
        dropped = self.dropped
        return ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}", *argv], environment


@pytest.mark.parametrize("family", ["127.0.0.1", "[::1]", ""])
def test_a_client_that_is_refused_since_it_is_down_is_told_so(
    family: str, namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    """In IPv6 the kernel says that no address can be assigned, and in IPv4 that there is no way."""
    port = free_ports()
    target = f"{family}/80" if family else "80"
    spec = ("-t", f"127.0.0.1/{port}:{target}")
    instance = launch(identity, "-f", "--log-flows", *spec, str(namespace.pid)).wait_ready()
    set_loopback(namespace, identity, "down")
    # What was up keeps its IPv4 routes, and would have the client wait until hardsplice gives up
    inside(namespace, identity, "ip", "address", "flush", "dev", "lo")
    refused_at(port)
    eventually(lambda: instance.messages().count(DOWN) == 2, instance.messages)
    instance.stop()
    note, flow = instance.messages().splitlines()
    assert note.endswith(f"cannot reach the target: {DOWN}")
    assert flow.endswith(f"refused: {DOWN}")


def test_where_it_is_up_the_reason_is_the_kernels(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    """Without IPv6 on it, the other family's answer is the one to tell."""
    inside(namespace, identity, "ip", "address", "del", "::1/128", "dev", "lo")
    port = free_ports(2)
    instance = launch(
        identity, "-f", "--log-flows", "-t", f"127.0.0.1/{port}:80", "-t",
        f"127.0.0.1/{port + 1}:[::1]/80", str(namespace.pid),
    ).wait_ready()  # fmt: skip
    refused_at(port)
    refused_at(port + 1)
    eventually(lambda: instance.messages().count("bytes to the target") == 2, instance.messages)
    instance.stop()
    assert DOWN not in instance.messages()
    assert "Connection refused" in instance.messages()
    assert "refused for a limit of this machine" in instance.messages()


@pytest.mark.root
def test_ones_own_that_is_down_is_said(program: Program) -> None:
    argv, environment = program.argv(Identity("root"))
    done = subprocess.run(
        ["unshare", "--net", *argv, "-t", "8080:80", "true"],
        env=environment, cwd="/", capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert "ip link set lo up" in done.stderr
