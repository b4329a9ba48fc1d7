# SPDX-License-Identifier: GPL-2.0-or-later
"""What a running hardsplice writes: a line for each flow on request, and a file that keeps its
size.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.paths import Ends, Lane
from tests.support.product import Instance, Program, free_ports, run
from tests.support.stream import PATIENCE, eventually, reset

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")
Lanes = Callable[..., tuple[Instance, Lane, Lane]]


@pytest.fixture
def lanes(identity: Identity, namespace: Namespace, launch: Launch) -> Iterator[Lanes]:
    """Start one with these options: it, and a lane each way."""
    with contextlib.ExitStack() as stack:

        def make(*options: str) -> tuple[Instance, Lane, Lane]:
            port = free_ports(2)
            instance = launch(
                identity, "-f", *options, "-t", f"127.0.0.1/{port}:80",
                "-T", f"127.0.0.1/81:{port + 1}", str(namespace.pid),
            ).wait_ready()  # fmt: skip
            family, inside = socket.AF_INET, namespace.socket
            made = [
                Lane(Ends(family, port, 80, server_side=inside), instance.processes),
                Lane(Ends(family, 81, port + 1, client_side=inside), instance.processes),
            ]
            for lane in made:
                stack.callback(lane.close)
            return instance, made[0], made[1]

        yield make


def flows(instance: Instance, number: int) -> list[dict[str, Any]]:
    """The lines of so many flows, once they are there."""

    def found() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in instance.messages().splitlines()]
        return [line for line in lines if line.get("event") == "flow"]

    eventually(lambda: len(found()) >= number, instance.messages)
    assert len(found()) == number, instance.messages()
    return found()


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_each_flow_is_a_line_that_says_how_it_went(lanes: Lanes, direction: str) -> None:
    instance, *both = lanes("--log-flows", "--log-format", "json")
    lane = both[direction == "outbound"]
    client, server = lane.pair()
    where = client.getsockname()
    client.sendall(b"x" * 1000)
    assert server.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
    server.sendall(b"yz")
    assert client.recv(2, socket.MSG_WAITALL) == b"yz"
    for end in (client, server):
        end.shutdown(socket.SHUT_WR)
    (line,) = flows(instance, 1)
    assert line.pop("time")
    assert 0 < line.pop("seconds") < PATIENCE
    assert line == {
        "level": "info",
        "event": "flow",
        "direction": direction,
        "protocol": "tcp",
        "listener": f"127.0.0.1 port {lane.ends.entry}",
        "client": where[0],
        "client_port": where[1],
        "target": "127.0.0.1",
        "target_port": lane.ends.exit,
        "bytes_to_target": 1000,
        "bytes_to_client": 2,
        "end": "fin",
    }
    instance.stop()


def test_each_way_to_end_has_its_name(lanes: Lanes) -> None:
    instance, inbound, outbound = lanes("--log-flows", "--log-format", "json")
    ends = []
    for lane in (inbound, outbound):
        client, _ = lane.pair()
        reset(client)
        ends.append("client_reset")
        _, server = lane.pair()
        reset(server)
        ends.append("target_reset")
        assert [line["end"] for line in flows(instance, len(ends))] == ends
    inbound.close()
    with contextlib.suppress(ConnectionResetError):
        assert inbound.client().recv(1) == b""
    ends.append("refused")
    assert [line["end"] for line in flows(instance, len(ends))] == ends
    outbound.pair()
    relays = [pid for pid in instance.relays() if int(procfs.stat(pid)[1]) == instance.pid]
    os.kill(relays[0], signal.SIGKILL)
    ends.append("relay_died")
    assert [line["end"] for line in flows(instance, len(ends))] == ends
    inbound.pair()
    instance.stop()
    ends.append("stopped")
    assert [line["end"] for line in flows(instance, len(ends))] == ends


def test_without_the_option_no_flow_has_a_line(lanes: Lanes) -> None:
    instance, inbound, _ = lanes()
    client, server = inbound.pair()
    for end in (client, server):
        end.shutdown(socket.SHUT_WR)
    assert client.recv(1) == server.recv(1) == b""
    instance.stop()
    assert instance.messages() == ""


def test_a_thousand_flows_at_once_have_a_line_each_or_are_counted(lanes: Lanes) -> None:
    """What a relay's channel has no room for is left out, and that is said."""
    instance, inbound, _ = lanes("--log-flows")
    inbound.listen()
    number = 1000
    for _ in range(number // 100):
        pairs = [inbound.pair() for _ in range(100)]
        os.kill(instance.pid, signal.SIGSTOP)  # nobody listens to the namespace monitor
        for client, server in pairs:
            inbound.forget(client)
            inbound.forget(server)
        os.kill(instance.pid, signal.SIGCONT)

    def accounted() -> bool:
        said = instance.messages()
        missed = sum(map(int, re.findall(r"inbound: (\d+) ends of flows are not in", said)))
        return len(re.findall("closed by FIN|reset by", said)) + missed == number

    instance.stop()
    assert accounted(), instance.messages()[-500:]


def test_a_log_file_keeps_its_size_and_its_newest_lines(lanes: Lanes, user_directory: Path) -> None:
    path = user_directory / "log"
    instance, inbound, _ = lanes(
        "--log-flows", "--log-file", str(path), "--log-size", "4096", "--trace"
    )
    inbound.listen()
    for _ in range(100):
        client, server = inbound.pair()
        last = client.getsockname()[1]
        inbound.forget(client)
        inbound.forget(server)
        assert path.stat().st_size <= 4096
    # On a busy machine the ends of flows may be written later, and the end of hardsplice would not
    # be among the newest lines.
    eventually(lambda: re.search(rf":{last} .*closed by FIN", path.read_text()), instance.messages)
    instance.stop()
    text = path.read_text()
    assert 1024 < len(text) <= 4096
    lines = text.splitlines()
    for line in lines:
        assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00 hardsplice: ", line), "a line is cut"
    assert any(line.endswith(" hardsplice: ending: SIGTERM") for line in lines)
    assert text.endswith("\n")


def test_two_do_not_share_a_log_file(
    lanes: Lanes, user_directory: Path, program: Program, identity: Identity
) -> None:
    path = str(user_directory / "log")
    instance, _, _ = lanes("--log-file", path)
    second = run(program, identity, "--log-file", path, "true")
    assert second.returncode == 1
    assert second.stderr.startswith(f"hardsplice: cannot write log file {path}: another hardspl")
    instance.stop()


def test_in_the_journal_each_line_says_how_much_it_matters(
    program: Program, identity: Identity
) -> None:
    """$JOURNAL_STREAM says which stream is the journal's; any other one gets bare lines."""
    argv, environment = program.argv(identity)
    as_is = ["--runas", "0"] if identity.is_root else []  # or a line of another level says who
    for is_journal in (True, False):
        reader, writer = os.pipe()
        found = os.fstat(writer)
        stream = f"{found.st_dev}:{found.st_ino if is_journal else 1}"
        subprocess.run(
            [*argv, *as_is, "-d", "-t", "none", "true"],
            env={**environment, "JOURNAL_STREAM": stream},
            stdin=subprocess.DEVNULL, stderr=writer, cwd="/", check=True, timeout=PATIENCE,
        )  # fmt: skip
        os.close(writer)
        with open(reader, encoding="utf-8") as text:
            lines = text.read().splitlines()
        assert lines
        lead = "<7>hardsplice: " if is_journal else "hardsplice: "
        assert all(line.startswith(lead) for line in lines)
