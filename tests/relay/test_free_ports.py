# SPDX-License-Identifier: GPL-2.0-or-later
"""Port 0: one that is free is chosen, is forwarded, and is told to all who want to know."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.relay.test_control import Launch, Site, connect, exchange, sited
from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports, run
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture
def site(
    program: Program, launch: Launch, identity: Identity, user_directory: Path
) -> Iterator[Site]:
    with sited(program, launch, identity, user_directory) as made:
        yield made


def listening(namespace: Namespace, port: int = 80) -> socket.socket:
    server = namespace.socket(socket.AF_INET)
    server.bind(("127.0.0.1", port))
    server.listen()
    server.settimeout(PATIENCE)
    return server


def chosen(messages: str) -> list[int]:
    """The ports that are named in messages."""
    return [int(port) for port in re.findall(r"listening on .*?port (\d+) (?:on|in) the", messages)]


def ended(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)

    def gone() -> bool:
        procfs.reap()
        return not os.path.exists(f"/proc/{pid}")

    eventually(gone, "it goes on")


def test_in_the_foreground_messages_name_the_ports_and_they_work(
    launch: Launch, identity: Identity, namespace: Namespace
) -> None:
    outside = socket.create_server(("127.0.0.1", 0))
    target = outside.getsockname()[1]
    instance: Instance = launch(
        identity, "-f", "-t", "0:80", "-t", "127.0.0.1/0:80", "-T", f"0:{target}",
        str(namespace.pid),
    ).wait_ready()  # fmt: skip
    ports = chosen(instance.messages())
    assert len(set(ports)) == len(ports) == 3
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(listening(namespace))
        exchange(*connect(stack, ports[0], server))
        exchange(*connect(stack, ports[1], server))
        with socket.create_connection(("::1", ports[0]), PATIENCE):  # the same in both families
            pass
        client = stack.enter_context(namespace.socket(socket.AF_INET))
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", ports[2]))
        exchange(client, stack.enter_context(outside.accept()[0]))
    instance.stop()
    outside.close()


@pytest.mark.parametrize("to_file", [False, True])
def test_in_the_background_ready_fd_has_a_line_for_each(
    program: Program, identity: Identity, namespace: Namespace, user_directory: Path, to_file: bool
) -> None:
    """To a file, too, as where a shell sends standard output there."""
    pid_file, output = user_directory / "pid", user_directory / "output"
    argv, environment = program.argv(identity)
    words = ["--ready-fd", "1", "-P", str(pid_file), "-t", "0:80,0:81", "-T", "0:5432"]
    with output.open("wb") as file:
        done = subprocess.run(
            [*argv, *words, str(namespace.pid)], env=environment, cwd="/", check=True,
            stdout=file if to_file else subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE,
        )  # fmt: skip
    told = output.read_text() if to_file else done.stdout.decode()
    found = re.fullmatch(r"inbound (\d+) 80\ninbound (\d+) 81\noutbound (\d+) 5432\n\n", told)
    assert found is not None, told
    assert chosen(done.stderr.decode()) == [int(port) for port in found.groups()]
    with contextlib.ExitStack() as stack:
        exchange(*connect(stack, int(found[1]), stack.enter_context(listening(namespace))))
    ended(int(pid_file.read_text()))


def test_without_port_0_ready_fd_has_an_empty_line_alone(
    program: Program, identity: Identity, namespace: Namespace, user_directory: Path
) -> None:
    pid_file = user_directory / "pid"
    done = run(
        program, identity, "--ready-fd", "1", "-P", str(pid_file), "-t", str(free_ports()),
        str(namespace.pid),
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("\n", "")
    ended(int(pid_file.read_text()))


def test_a_free_port_is_none_that_another_entry_names(program: Program, identity: Identity) -> None:
    """Even where that one is among those that the kernel chooses from, and stands behind it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        taken = probe.getsockname()[1]
    done = run(program, identity, "-t", f"0:80,{taken}:81", "--", "true")
    assert done.returncode == 0, done.stderr
    assert taken not in chosen(done.stderr)


def test_at_run_time_too(site: Site) -> None:
    with contextlib.ExitStack() as stack:
        server = site.listen(stack)
        text = site.ctl("ports", "add", "0:80")
        found = re.search(r"inbound +tcp +\*:(\d+) +loopback:80 ", text)
        assert found is not None, text
        exchange(*connect(stack, int(found[1]), server))
        again = site.ctl("ports", "add", "0:80")
        assert again != text
        assert len(site.ask("/v1/ports")) == 3
        outside = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        target = outside.getsockname()[1]
        text = site.ctl("ports", "add", "-T", f"0:{target}")
        found = re.search(rf"outbound +tcp +\*:(\d+) +loopback:{target} ", text)
        assert found is not None, text
        client = stack.enter_context(site.namespace.socket(socket.AF_INET))
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", int(found[1])))
        exchange(client, stack.enter_context(outside.accept()[0]))


def test_at_run_time_ports_come_and_go_by_their_numbers(site: Site) -> None:
    for _ in range(5):
        number = re.search(r"\n(\d+) ", site.ctl("ports", "add", "0:80"))
        assert number is not None
        site.ctl("ports", "remove", number[1])
    assert len(site.ask("/v1/ports")) == 1
