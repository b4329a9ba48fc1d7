# SPDX-License-Identifier: GPL-2.0-or-later
"""Under a real systemd: no client is refused while the service ends, however it ends, and comes
back; the watchdog and the reload work; a socket unit's listener is taken.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support.netns import Identity
from tests.support.product import Program, free_ports
from tests.support.stream import PATIENCE, eventually
from tests.support.systemd import Systemd, skip_unless_possible

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.timeout(120)]

NETNS = """[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'mkdir -p /run/netns; touch /run/netns/blue; \
    exec unshare --net=/run/netns/blue ip link set lo up'
"""
SERVER = """[Unit]
DefaultDependencies=no
Requires=netns.service
After=netns.service
[Service]
Type=exec
ExecStart=/usr/bin/nsenter --net=/run/netns/blue /usr/bin/python3 /units/server.py
"""
ECHO = """import socket, threading
def serve(one):
    with one:
        while data := one.recv(4096):
            one.sendall(data)
listener = socket.create_server(("127.0.0.1", 80), backlog=1024)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
HARDSPLICE = """[Unit]
DefaultDependencies=no
Requires=netns.service server.service
After=netns.service server.service
StartLimitIntervalSec=0
[Service]
Type=notify
Environment=PYTHONPATH=/program FDSTORE=8
FileDescriptorStoreMax=8
WatchdogSec={watchdog}
Restart=always
RestartSec=0
KillMode=mixed
StandardError=append:/run/log
ExecStart=/usr/bin/python3 -m hardsplice -d -f {options} --netns blue
ExecReload=/bin/kill -HUP $MAINPID
"""
Start = Callable[..., Systemd]
UNIT = "hardsplice.service"


@pytest.fixture
def start(program: Program, user: Identity) -> Iterator[Start]:
    """Start systemd with hardsplice and a server: start(options, watchdog=seconds, ...)."""
    skip_unless_possible()
    started = []

    def make(options: str, *, watchdog: float = 30, wants: str = UNIT, **more: str) -> Systemd:
        units = {
            "netns.service": NETNS,
            "server.service": SERVER,
            "server.py": ECHO,
            UNIT: HARDSPLICE.format(options=options, watchdog=watchdog),
            **{name.replace("_", "."): text for name, text in more.items()},
        }
        systemd = Systemd(user, program.stage(), units, wants)
        started.append(systemd)
        status, said = systemd.run(
            "env",
            "PYTHONPATH=/program",
            "/usr/bin/python3",
            "-c",
            "import hardsplice.app.stages as s; s.libseccomp.load()",
        )
        if status != 0:
            pytest.skip(f"/usr/bin/python3 lacks what hardsplice needs: {said.splitlines()[-1]}")
        return systemd

    yield make
    for systemd in started:
        systemd.close()


def log(systemd: Systemd) -> str:
    return systemd.run("cat", "/run/log")[1] + systemd.said()


def until_ready(systemd: Systemd) -> None:
    eventually(lambda: systemd.is_ready(UNIT), lambda: f"not ready: {log(systemd)}")


def passes(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(b"ping")
        assert client.recv(4, socket.MSG_WAITALL) == b"ping"


class Knocking:
    """Clients, one after the other, while something happens to the service."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.attempts = self.refused = self.broken = self.served = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._knock)

    def _knock(self) -> None:
        while not self._over.wait(0.002):
            self.attempts += 1
            try:
                client = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
            except ConnectionRefusedError:
                self.refused += 1
                continue
            except ConnectionResetError:
                self.broken += 1  # it was connected, and reset before connect(2) returned
                continue
            with client:
                try:
                    client.sendall(b"ping")
                    answer = client.recv(4, socket.MSG_WAITALL)
                except ConnectionError:
                    answer = b""
                if answer == b"ping":
                    self.served += 1
                else:
                    self.broken += 1

    def __enter__(self) -> Knocking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def serve_more(self) -> None:
        """Until another one was served."""
        before = self.served
        eventually(lambda: self.served > before, "nobody is served", within=PATIENCE)


def test_no_client_is_refused_however_the_service_ends(start: Start) -> None:
    """Ended by systemctl, or the first process or the namespace monitor killed: the store has the
    listener, and each time the whole tree is another one.
    """
    port = free_ports()
    systemd = start(f"-t 127.0.0.1/{port}:80")
    until_ready(systemd)
    assert systemd.property(UNIT, "NFileDescriptorStore") == "1"
    passes(port)
    with Knocking(port) as knocking:
        for what in ("restart", "first", "target"):
            knocking.serve_more()
            before = systemd.processes(UNIT)
            assert len(before) == 3
            if what == "restart":
                systemd.control("restart", UNIT)
            else:
                os.kill(before[what == "target"], signal.SIGKILL)
            eventually(
                lambda: len(after := systemd.processes(UNIT)) == 3 and not {*after} & {*before},  # noqa: B023
                lambda: f"after {what}: {log(systemd)}",  # noqa: B023
            )
            until_ready(systemd)
            knocking.serve_more()
    assert knocking.refused == 0, (knocking.attempts, log(systemd))
    assert knocking.served > 3
    assert systemd.property(UNIT, "NFileDescriptorStore") == "1", "the same one still"
    assert systemd.property(UNIT, "NRestarts") == "2"
    print(f"attempts {knocking.attempts}, broken {knocking.broken}, served {knocking.served}")


def test_without_a_store_the_same_knocking_is_refused(start: Start) -> None:
    """The test above can fail."""
    port = free_ports()
    systemd = start(f"-t 127.0.0.1/{port}:80")
    until_ready(systemd)
    with Knocking(port) as knocking:
        knocking.serve_more()
        systemd.control("stop", UNIT)  # which gives the store up, too
        eventually(lambda: knocking.refused > 0, "nobody is refused", within=PATIENCE)
        systemd.control("start", UNIT)
        knocking.serve_more()


def test_a_service_that_hangs_is_ended_by_the_watchdog_and_comes_back(start: Start) -> None:
    port = free_ports()
    systemd = start(f"-t 127.0.0.1/{port}:80", watchdog=1)
    until_ready(systemd)
    passes(port)
    first = systemd.processes(UNIT)
    os.kill(first[-1], signal.SIGSTOP)  # the relay
    eventually(
        lambda: systemd.property(UNIT, "NRestarts") == "1", lambda: log(systemd), within=PATIENCE
    )
    until_ready(systemd)
    passes(port)
    assert not {*first} & {*systemd.processes(UNIT)}


def test_a_reload_keeps_every_process_and_connection(start: Start) -> None:
    port = free_ports()
    systemd = start(f"-t 127.0.0.1/{port}:80")
    until_ready(systemd)
    before = systemd.processes(UNIT)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(b"one")
        assert client.recv(3, socket.MSG_WAITALL) == b"one"
        systemd.control("reload", UNIT)
        until_ready(systemd)
        client.sendall(b"two")
        assert client.recv(3, socket.MSG_WAITALL) == b"two"
    assert systemd.processes(UNIT) == before


def test_a_socket_unit_starts_the_service_with_its_first_client(start: Start) -> None:
    port = free_ports()
    unit = (
        "[Unit]\nDefaultDependencies=no\n"
        f"[Socket]\nListenStream=127.0.0.1:{port}\nFileDescriptorName=web\n"
    )
    systemd = start("-t inherit:web:80", wants="hardsplice.socket", hardsplice_socket=unit)
    assert not systemd.is_ready(UNIT)
    passes(port)
    assert systemd.is_ready(UNIT)
    systemd.control("restart", UNIT)
    passes(port)
