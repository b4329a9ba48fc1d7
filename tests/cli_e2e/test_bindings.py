# SPDX-License-Identifier: GPL-2.0-or-later
"""Whichever modules hardsplice finds for libseccomp and prctl(2), it starts, serves, and gives up
the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.support import procfs
from tests.support.bindings import COMBINATIONS, Combination, Combined, Distributed, lacking
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports, run
from tests.support.stream import PATIENCE, Stream, eventually, expect, send

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
# What a process has given up, in /proc/PID/status.
_GIVEN_UP = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups")


@pytest.fixture(scope="module", params=COMBINATIONS, ids=str)
def combined(request: pytest.FixtureRequest) -> Iterator[Program]:
    if reason := lacking(request.param):
        pytest.skip(reason)
    with contextlib.closing(Combined(request.param)) as program:
        yield program


@pytest.fixture(scope="module")
def usual() -> Iterator[Program]:
    with contextlib.closing(Combined(COMBINATIONS[0])) as program:
        yield program


def given_up(instance: Instance) -> list[tuple[str, list[str]]]:
    """By each process, in the order of their names."""
    found = [procfs.status(pid) for pid in instance.processes()]
    return sorted((one["Name"], [one[field] for field in _GIVEN_UP]) for one in found)


def passes(namespace: Namespace, port: int) -> None:
    """A client of the host reaches a server in the namespace."""
    stream = Stream()
    with namespace.socket(socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 80))
        listener.listen()
        listener.settimeout(PATIENCE)
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client,
            listener.accept()[0] as server,
        ):
            server.settimeout(PATIENCE)
            send(client, stream, 100_000)
            expect(server, stream, 100_000)


def served(
    program: Program, identity: Identity, namespace: Namespace
) -> list[tuple[str, list[str]]]:
    """Serve a connection in the strict sandbox, before and after a relay is started anew under its
    monitor's filter; what the processes have given up.
    """
    port = free_ports()
    ports = ["-t", f"127.0.0.1/{port}:80", "-T", f"81:{port}"]
    instance = Instance(
        program, identity, ["-f", "--debug", "--sandbox=strict", *ports, str(namespace.pid)]
    )
    try:
        instance.wait_ready()
        passes(namespace, port)
        before = instance.relays()
        for relay in before:
            os.kill(relay, signal.SIGKILL)
        eventually(
            lambda: len(instance.relays()) == 2 and not set(before) & set(instance.relays()),
            "the relays are started again",
        )
        passes(namespace, port)
        found = given_up(instance)
        instance.stop()
    finally:
        instance.discard()
    return found


def test_it_serves_and_gives_up_the_same(
    combined: Combined, usual: Program, identity: Identity, namespace: Namespace
) -> None:
    found = served(combined, identity, namespace)
    assert [name for name, _ in found] == ["hs-host", "hs-namespace", "hs-relay-in", "hs-relay-out"]
    assert all(set("".join(fields[:5])) == {"0"} for _, fields in found)
    assert found == served(usual, identity, namespace)


def test_it_runs_a_command_and_says_what_it_uses(combined: Combined, identity: Identity) -> None:
    words = ("--debug", "--sandbox=strict", "-t", f"127.0.0.1/{free_ports()}:80", "--")
    done = run(combined, identity, *words, "sh", "-c", "exit 7")
    assert done.returncode == 7, done.stderr
    library, prctl = combined.combination
    assert f"libseccomp by {library}, prctl by {prctl}" in done.stderr


def test_the_system_s_python_finds_what_its_distribution_installed(
    usual: Program, identity: Identity, namespace: Namespace
) -> None:
    """In dist-packages, where only site looks: the isolated interpreter is told."""
    with contextlib.closing(Distributed()) as program:
        assert served(program, identity, namespace) == served(usual, identity, namespace)


def test_without_any_binding_the_start_ends_with_the_next_step(
    usual: Program, identity: Identity
) -> None:
    nothing = Combination("none", "hardsplice itself")
    with contextlib.closing(Combined(nothing)) as program:
        path = {"PYTHONPATH": str(program.stage())}
        done = run(usual, identity, "-t", "none", "--", "true", environment=path)
    said = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(said)) == (1, "", 2)
    assert said[0].startswith("hardsplice: cannot import pyseccomp or seccomp: ")
    assert said[1].startswith("hardsplice: install one of them: ")
