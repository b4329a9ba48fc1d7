# SPDX-License-Identifier: GPL-2.0-or-later
"""What hardsplice tells a service manager: that it is ready, reloads, lives on, and ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

import pytest

from tests.service.conftest import Serve, gone, passes
from tests.support import procfs
from tests.support.manager import Manager
from tests.support.netns import Identity, Namespace
from tests.support.product import Program, family, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def test_it_says_when_it_is_ready_and_when_it_stops(
    serve: Serve, namespace: Namespace, inside: socket.socket
) -> None:
    port = free_ports()
    manager = serve(Manager(keeps=0), "-f", "-t", f"127.0.0.1/{port}:80", str(namespace.pid))
    manager.until_ready()
    assert manager.heard == [{"READY": "1", "STATUS": "1 port forwarded"}]
    passes(port, inside)
    manager.stop()
    assert manager.heard[-1] == {"STOPPING": "1", "STATUS": "ending"}
    assert manager.wait() == 0


def test_in_the_background_its_word_counts_once_the_manager_knows_its_pid(
    serve: Serve, namespace: Namespace
) -> None:
    """NotifyAccess=main takes the word of nobody but the process that it knows."""
    port = free_ports()
    manager = serve(Manager(), "-t", f"127.0.0.1/{port}:80", str(namespace.pid))
    assert manager.process is not None
    manager.until_ready()
    assert manager.heard[0] == {"MAINPID": str(manager.main)}
    assert manager.main != manager.process.pid
    assert manager.wait() == 0, "the one that was started has ended"
    assert [name for name, _ in manager.store] == [f"hardsplice/inbound/tcp/127.0.0.1/{port}"]
    started = family(manager.main)
    manager.stop()
    gone(started)


def test_an_error_is_its_status(serve: Serve, namespace: Namespace) -> None:
    port = free_ports()
    with socket.create_server(("127.0.0.1", port)):
        manager = serve(Manager(), "-f", "-t", f"127.0.0.1/{port}:80", str(namespace.pid))
        manager.until(lambda message: "STATUS" in message)
    assert manager.heard[-1] == {
        "STATUS": f"cannot listen on 127.0.0.1 port {port} on the host: Address already in use"
    }
    assert manager.wait() == 1


def test_sighup_reloads_nothing_and_loses_nothing(
    serve: Serve, namespace: Namespace, inside: socket.socket
) -> None:
    port = free_ports()
    manager = serve(Manager(), "-f", "-t", f"127.0.0.1/{port}:80", str(namespace.pid))
    manager.until_ready()
    started = family(manager.main)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client,
        inside.accept()[0] as server,
    ):
        procfs.settle(started)  # as pools are filled up, sockets pass through a monitor
        before = {pid: procfs.descriptors(pid) for pid in started}
        for _ in range(3):
            now = time.monotonic_ns() // 1000
            os.kill(manager.main, signal.SIGHUP)
            manager.until(lambda message: message.get("READY") == "1")
            reloading = manager.heard[-2]
            assert reloading["RELOADING"] == "1"
            assert now <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        after = {pid: procfs.descriptors(pid) for pid in family(manager.main)}
        assert after.keys() == before.keys()
        for pid, held in before.items():
            assert held.items() <= after[pid].items()  # pools may have been filled up meanwhile
        client.sendall(b"still")
        assert server.recv(5, socket.MSG_WAITALL) == b"still"
    passes(port, inside)
    manager.stop()


def test_the_watchdog_is_fed_while_all_processes_go_on(serve: Serve, namespace: Namespace) -> None:
    """One that hangs, be it alive, lets the service manager's time run out."""
    port = free_ports(2)
    manager = serve(
        Manager(watchdog=0.6), "-f", "-t", f"127.0.0.1/{port}:80",
        "-T", f"127.0.0.1/81:{port + 1}", str(namespace.pid),
    ).until_ready()  # fmt: skip
    is_fed = {"WATCHDOG": "1"}.__eq__
    for _ in range(3):
        manager.until(is_fed, within=0.6)
    started = family(manager.main)
    assert len(started) == 4
    for pid in started[1:]:
        os.kill(pid, signal.SIGSTOP)
        while manager.hear(0.35):  # one round may have been under way
            pass
        manager.heard.clear()
        assert not manager.hear(0.9), f"{procfs.status(pid)['Name']} hangs, and all is said well"
        os.kill(pid, signal.SIGCONT)
        manager.until(is_fed)
    manager.stop()


def test_a_relay_that_is_replaced_does_not_starve_the_watchdog(
    serve: Serve, namespace: Namespace
) -> None:
    manager = serve(
        Manager(watchdog=2), "-f", "-t", f"127.0.0.1/{free_ports()}:80", str(namespace.pid)
    ).until_ready()
    for _ in range(4):
        _replace_relay(manager)
        manager.until({"WATCHDOG": "1"}.__eq__, within=2)
    manager.stop()


def _replace_relay(manager: Manager) -> None:
    old = family(manager.main)
    os.kill(procfs.leaves(old)[0], signal.SIGKILL)
    eventually(
        lambda: len(new := family(manager.main)) == len(old) and new != old, "no other relay"
    )


def test_command_does_not_see_what_is_for_hardsplice(program: Program, identity: Identity) -> None:
    argv, environment = program.argv(identity)
    done = subprocess.run(
        [*argv, "-t", "none", "env"],
        env={**environment, "FDSTORE": "3", "LISTEN_FDS": "1", "LISTEN_PID": "1", "OTHER": "x"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", check=True,
        timeout=PATIENCE,
    )  # fmt: skip
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert "OTHER" in names
    assert not names & {"FDSTORE", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET"}
