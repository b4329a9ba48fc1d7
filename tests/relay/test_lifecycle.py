# SPDX-License-Identifier: GPL-2.0-or-later
"""Start, background, end: what service managers and container engines rely on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace, mounted, unmount
from tests.support.product import Instance, Program, can_bind, free_ports, run
from tests.support.stream import (
    PATIENCE,
    Stream,
    eventually,
    expect,
    fill,
    send,
)

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@contextlib.contextmanager
def serving(namespace: Namespace, port: int = 80) -> Iterator[socket.socket]:
    """A listening socket in the namespace."""
    with namespace.socket(socket.AF_INET) as server:
        server.bind(("127.0.0.1", port))
        server.listen()
        server.settimeout(PATIENCE)
        yield server


@contextlib.contextmanager
def connected(port: int, server: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection through the host's port, seen to work."""
    stream = Stream()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        accepted = server.accept()[0]
        with accepted:
            accepted.settimeout(PATIENCE)
            send(client, stream, 100)
            expect(accepted, stream, 100)
            yield client, accepted


# --- ending ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_signal_ends_it_with_0(
    namespace: Namespace, identity: Identity, launch: Launch, number: int, busy: bool
) -> None:
    """At once, whatever its connections do: its ports are free, no process is left."""
    port = free_ports()
    spec = ("-t", f"127.0.0.1/{port}:80", "-T", f"127.0.0.1/81:{port}")
    instance = launch(identity, "-f", *spec, str(namespace.pid)).wait_ready()
    family = instance.processes()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(namespace))
        if busy:
            for _ in range(5):
                client, _ = stack.enter_context(connected(port, server))
                fill(client, Stream(), still=0.05)
        began = time.monotonic()
        instance.process.send_signal(number)
        assert instance.wait() == 0
        eventually(lambda: not [pid for pid in family if procfs.alive(pid)], "processes remain")
        assert time.monotonic() - began < 2
    assert can_bind("127.0.0.1", port)
    assert ("were reset: 5" in instance.messages()) if busy else (instance.messages() == "")
    with namespace.socket(socket.AF_INET) as inside:
        inside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        inside.bind(("127.0.0.1", 81))


def test_it_ends_with_the_process_that_it_serves(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    port = free_ports()
    instance = launch(identity, "-f", "-t", f"127.0.0.1/{port}:80", str(namespace.pid)).wait_ready()
    namespace.kill()
    assert instance.wait(3) == 0
    assert can_bind("127.0.0.1", port)


def test_it_ends_when_the_process_ends_though_a_child_stays(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    """The process was named, so its end counts, not that of the last one in the namespace."""
    port = free_ports()
    with serving(namespace):  # a socket keeps the namespace itself alive
        instance = launch(identity, "-f", "-t", f"127.0.0.1/{port}:80", str(namespace.pid))
        instance.wait_ready()
        namespace.kill()
        assert instance.wait(3) == 0


@pytest.mark.root
def test_it_ends_when_the_path_goes(launch: Launch, program: Program, tmp_path: Path) -> None:
    root = Identity("root")
    port = free_ports()
    with Namespace(root) as namespace, mounted(namespace, tmp_path / "net") as path:
        instance = launch(root, "-f", "-t", f"127.0.0.1/{port}:80", "--netns", str(path))
        instance.wait_ready()
        with serving(namespace) as server, connected(port, server):
            pass
        procfs.assert_quiet(instance.processes(), 2.0)
        unmount(path)
        assert instance.wait(5) == 0
    assert can_bind("127.0.0.1", port)


def test_no_netns_quit(namespace: Namespace, identity: Identity, launch: Launch) -> None:
    """With it, hardsplice outlives the process, and goes on serving the namespace."""
    port = free_ports()
    with serving(namespace) as server:
        instance = launch(
            identity, "-f", "--no-netns-quit", "-t", f"127.0.0.1/{port}:80", str(namespace.pid)
        ).wait_ready()
        namespace.kill()
        time.sleep(1.5)  # longer than the end takes in the tests above
        with connected(port, server):
            pass
        instance.stop()


# --- background ---


def test_background(
    namespace: Namespace, identity: Identity, program: Program, user_directory: Path
) -> None:
    """The parent's exit with 0 means ready; the PID file is there then; SIGTERM ends the rest."""
    port, file = free_ports(), user_directory / "pid"
    ran = run(program, identity, "-t", f"127.0.0.1/{port}:80", "-P", str(file), str(namespace.pid))
    text = file.read_text() if file.exists() else ""
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert text.endswith("\n")
    pid = int(text)
    try:
        family = procfs.tree(pid)
        assert pid in family
        for member in family:
            assert procfs.status(member)["Seccomp"] == "2"
            assert procfs.stat(member)[3] != str(os.getsid(0)), "it shares the caller's session"
        with serving(namespace) as server, connected(port, server):
            pass
        os.kill(pid, signal.SIGTERM)
        waited = eventually(lambda: os.waitpid(pid, os.WNOHANG)[0] and "ended", "it goes on")
        assert waited == "ended"
        eventually(lambda: not any(map(procfs.alive, family)), "processes remain", within=3)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert can_bind("127.0.0.1", port)


def test_background_lets_go_of_the_callers_streams(
    namespace: Namespace, identity: Identity, program: Program
) -> None:
    """Who reads its output sees the end when the parent exits: shells and engines wait for that."""
    port = free_ports()
    began = time.monotonic()
    ran = run(program, identity, "-t", f"127.0.0.1/{port}:80", str(namespace.pid))
    assert ran.returncode == 0, ran.stderr
    assert time.monotonic() - began < 5
    namespace.kill()
    eventually(lambda: can_bind("127.0.0.1", port), "it does not end with its process", within=5)


def test_background_failure_is_the_parents_failure(
    namespace: Namespace, identity: Identity, program: Program, user_directory: Path
) -> None:
    """What goes wrong before ready is told, with status 1 and no PID file."""
    file = user_directory / "pid"
    with socket.create_server(("127.0.0.1", free_ports())) as taken:
        port = taken.getsockname()[1]
        ran = run(
            program, identity, "-t", f"127.0.0.1/{port}:80", "-P", str(file), str(namespace.pid)
        )
    assert ran.returncode == 1
    assert ran.stderr.startswith("hardsplice: cannot ")
    assert not file.exists()


def test_the_pid_file_in_the_foreground(
    namespace: Namespace, identity: Identity, launch: Launch, user_directory: Path
) -> None:
    file = user_directory / "pid"
    instance = launch(
        identity, "-f", "-t", f"127.0.0.1/{free_ports()}:80", "-P", str(file), str(namespace.pid)
    ).wait_ready()
    assert file.read_text() == f"{instance.pid}\n"
    instance.stop()


# --- the sandbox, as the kernel sees it ---

CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
KINDS = (
    "/dev/null",
    "socket:",
    "pipe:",
    "anon_inode:[eventpoll]",
    "anon_inode:[signalfd]",
    "anon_inode:[pidfd]",
    "anon_inode:[landlock-ruleset]",
)


@pytest.mark.parametrize("state", ["at rest", "after work"])
def test_every_process_is_locked_down(
    namespace: Namespace, identity: Identity, launch: Launch, state: str
) -> None:
    """From /proc: a filter more than the tests have, no new privileges, no capability at all."""
    inherited = int(procfs.status(os.getpid())["Seccomp_filters"])  # of a container, for example
    port = free_ports()
    spec = ("-t", f"127.0.0.1/{port}:80", "-T", f"127.0.0.1/81:{port}")
    instance = launch(identity, "-f", *spec, str(namespace.pid)).wait_ready()
    if state == "after work":
        with serving(namespace) as server, connected(port, server) as (client, _):
            fill(client, Stream(), still=0.05)
    family = instance.processes()
    assert len(family) == 4, "two monitors and two relays"
    for pid in family:
        status = procfs.status(pid)
        assert status["Seccomp"] == "2"
        assert int(status["Seccomp_filters"]) > inherited
        assert status["NoNewPrivs"] == "1"
        assert {status[name] for name in CAPABILITIES} == {"0" * 16}, status["Name"]
    instance.stop()


@pytest.mark.root  # nobody else may look into processes that aren't dumpable
def test_every_descriptor_is_on_the_list(
    namespace: Namespace, identity: Identity, launch: Launch
) -> None:
    """Sockets, pipes, what waits for them; nothing of the caller's but where messages go."""
    port = free_ports()
    spec = ("-t", f"127.0.0.1/{port}:80", "-T", f"127.0.0.1/81:{port}")
    instance = launch(identity, "-f", *spec, str(namespace.pid)).wait_ready()
    with serving(namespace) as server, connected(port, server):
        relays = instance.relays()
        for pid in instance.processes():
            _check_descriptors(pid, is_relay=pid in relays, first=pid == instance.pid)
    instance.stop()


def _check_descriptors(pid: int, *, is_relay: bool, first: bool) -> None:
    for descriptor, target in procfs.descriptors(pid).items():
        if descriptor == 2 and first:
            continue  # messages
        allowed = [kind for kind in KINDS if not (is_relay and kind.endswith("fd]"))]
        assert target.startswith(tuple(allowed)), (procfs.status(pid)["Name"], descriptor, target)
        if descriptor <= 2:
            assert target == "/dev/null"


def test_limits_and_dumpability(namespace: Namespace, identity: Identity, launch: Launch) -> None:
    """No core, no file, no new process for a relay; the same user's processes can't look in."""
    instance = launch(
        identity, "-f", "-t", f"127.0.0.1/{free_ports()}:80", str(namespace.pid)
    ).wait_ready()
    for pid in instance.processes():
        limits = {
            line[:25].strip(): line[26:46].strip()
            for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        }
        assert limits["Max core file size"] == "0"
        if pid != instance.pid:  # which writes its messages to a file of the tests'
            assert limits["Max file size"] == "0"
        if pid in instance.relays():
            assert limits["Max processes"] == "0"
        # /proc of a process that isn't dumpable belongs to root (proc(5)).
        assert os.stat(f"/proc/{pid}/stat").st_uid == 0 or identity.is_root
    if identity.uid is not None:
        peeked = subprocess.run(
            identity.wrap(["cat", f"/proc/{instance.pid}/environ"]),
            capture_output=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        assert peeked.returncode != 0
    instance.stop()


def test_ready_means_ready(namespace: Namespace, identity: Identity, launch: Launch) -> None:
    """When the descriptor is told, each process has its filter, and a connection works at once."""
    port = free_ports()
    with serving(namespace) as server:
        instance = launch(identity, "-f", "-t", f"127.0.0.1/{port}:80", str(namespace.pid))
        instance.wait_ready()
        states = {procfs.status(pid)["Seccomp"] for pid in instance.processes()}
        with connected(port, server):
            assert states == {"2"}
        instance.stop()
