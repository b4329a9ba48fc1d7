# SPDX-License-Identifier: GPL-2.0-or-later
"""What a client may do to the server of many containers' ports, on purpose or by mistake, in the
real processes: the others are served as before, and nothing is left of it.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from hardsplice.frontends import mapping, offers
from hardsplice.frontends import server as server_module
from hardsplice.frontends.offers import Offer
from hardsplice.kernel.scm import Messages
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.net import listeners
from tests.support import procfs
from tests.support.containers import Containers
from tests.support.frontends import executable
from tests.support.netns import Identity, Namespace
from tests.support.product import Program, can_bind
from tests.support.stream import PATIENCE, eventually

pytestmark = [pytest.mark.usefixtures("nothing_left_behind"), pytest.mark.root]
LOCAL = ip_address("127.0.0.1")
ROOT = pytest.mark.parametrize("identity", ["root"], indirect=True)  # for an ordinary user alike

# Connects as whoever runs it, and gives the connection away.
CONNECT = """
import os, socket, sys
ours = socket.socket(fileno=int(sys.argv[1]))
one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.chdir(sys.argv[2])
one.connect(sys.argv[3])
socket.send_fds(ours, [b"x"], [one.fileno()])
"""


@pytest.fixture
def containers(program: Program, identity: Identity, user_directory: Path) -> Iterator[Containers]:
    """Containers of root's, and of an ordinary user who is root in a namespace, as in Podman's."""
    script = executable(user_directory / "rootlessport", program.stage(), "rootlessport")
    with Namespace(identity) as namespace:
        made = Containers(script, user_directory, namespace, identity)
        made.start(0)
        yield made
        made.close()


def connect(
    containers: Containers, before: list[str] | None = None, path: Path | None = None
) -> socket.socket:
    """A connection of the owner's, or of who runs those words, to the server, or there."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        folder, name = os.path.split(path or containers.place.path)
        words = ["/usr/bin/python3", "-I", "-c", CONNECT, str(theirs.fileno()), folder, name]
        before = containers.owner.wrap([]) if before is None else before
        subprocess.run([*before, *words], pass_fds=[theirs.fileno()], cwd="/", check=True)
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
    made = socket.socket(fileno=fd)
    made.settimeout(PATIENCE)
    return made


def run(containers: Containers, script: str, path: Path) -> None:
    """Run a script of the owner's with a socket's folder and name."""
    words = ["/usr/bin/python3", "-I", "-c", script, str(path.parent), path.name]
    subprocess.run(containers.owner.wrap(words), cwd="/", check=True, timeout=PATIENCE)


def say(client: socket.socket, offer: Offer) -> str:
    """Offer it; what is wrong with it, or nothing."""
    room = Messages(offers.SIZE, offers.FDS)
    for data, fds in offers.encode(offer):
        room.sendmsg(client.fileno(), data, fds, 0)
    return str(offers.answer_of(client.recv(1 << 14)).failure or "")


def listener(containers: Containers) -> tuple[socket.socket, Forward]:
    """A listener as programs make it, and what it is for."""
    made = socket.create_server(("127.0.0.1", 0))
    listeners.make_sound(made)
    port = made.getsockname()[1]
    return made, mapping.inbound(Protocol.TCP, LOCAL, port, LOCAL, containers.target)


@ROOT
def test_one_that_blocks_is_refused(containers: Containers) -> None:
    """A relay that accepts at it would wait for its next client, and serve nobody meanwhile."""
    made, forward = listener(containers)
    with made, connect(containers) as client:
        made.setblocking(True)
        assert "its listener is one that blocks" in say(client, Offer([forward], [made.fileno()]))
    assert containers.serves(0)
    assert can_bind("127.0.0.1", forward.port)


def shut(made: socket.socket) -> None:
    made.shutdown(socket.SHUT_RDWR)


def have_resets(made: socket.socket) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@ROOT
@pytest.mark.parametrize("change", [shut, have_resets])
def test_one_that_is_changed_afterwards_harms_its_own_port_only(
    change: Callable[[socket.socket], None], containers: Containers
) -> None:
    before = containers.servers()
    conversation = containers.connected(0)
    made, forward = listener(containers)
    with made, connect(containers) as client:
        assert not say(client, Offer([forward], [made.fileno()]))
        change(made)
        assert containers.serves(0)
    eventually(lambda: can_bind("127.0.0.1", forward.port), "its port is still bound")
    conversation.goes_on()
    conversation.end()
    assert containers.servers() == before


@ROOT
def test_two_clients_with_one_listener_are_not_both_served(containers: Containers) -> None:
    made, forward = listener(containers)
    offer = Offer([forward], [made.fileno()])
    with made, connect(containers) as first, connect(containers) as second:
        assert not say(first, offer)
        assert "it is forwarded already" in say(second, offer)
        socket.create_connection(("127.0.0.1", forward.port), PATIENCE).close()
        containers.echo.accept()[0].close()
    assert containers.serves(0)


# Clients that come and go: half of them say nothing, the others have no ports served.
CROWD = """
import os, socket, sys
os.chdir(sys.argv[1])
for at in range(1000):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
        one.connect(sys.argv[2])
        if at % 2:
            one.send(b"\\1\\0")
            assert one.recv(10) == b"\\0"
"""


def state(server: int) -> dict[int, tuple[int, str]]:
    """How many descriptors each of its processes has, and how often it has slept by now."""
    pids = [server, *procfs.names(server)]
    return {
        pid: (len(procfs.descriptors(pid)), procfs.status(pid)["voluntary_ctxt_switches"])
        for pid in pids
    }


def descriptors(found: dict[int, tuple[int, str]]) -> dict[int, int]:
    return {pid: count for pid, (count, _) in found.items()}


def test_nothing_grows_by_clients_that_come_and_go(containers: Containers) -> None:
    """Ports that come and go are those of tests/relay/test_ports.py."""
    (server,) = containers.servers()
    before = state(server)
    run(containers, CROWD, Path(containers.place.path))
    eventually(lambda: descriptors(state(server)) == descriptors(before), "descriptors are left")
    time.sleep(server_module.IDLE_SECONDS)  # of its first moments, which it looks at once
    idle = state(server)
    time.sleep(1)
    assert state(server) == idle, "it wakes up although nobody is there"
    assert containers.serves(0)


@pytest.mark.parametrize("before", [(), ("unshare", "--user", "--map-root-user")])
def test_another_user_who_finds_the_socket_is_hung_up_on(
    before: tuple[str, ...], containers: Containers
) -> None:
    """Root in a namespace of his own, too."""
    path = Path(containers.place.path)
    for one in (containers.folder, path.parent, path):
        one.chmod(0o777)
    with connect(containers, Identity("other", 39_999).wrap([*before])) as client:
        assert client.recv(10) == b""
    path.parent.chmod(0o700)
    assert containers.serves(0)


# Has the container's address change so often that what a client is told of it finds no room.
MOVE = """
import os, socket, sys
os.chdir(sys.argv[1])
for at in range(200):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
        one.connect(sys.argv[2])
        one.send(b'"127.0.0.%d"' % (1 + at % 2))
        assert one.recv(100) == b"OK"
"""


@ROOT
def test_one_that_reads_nothing_holds_nobody_up(containers: Containers) -> None:
    made, forward = listener(containers)
    path = containers.folder / "moves"
    moves = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    with made, moves, connect(containers) as client:
        moves.bind(str(path))
        moves.listen()
        if containers.owner.uid is not None:
            os.chown(path, containers.owner.uid, containers.owner.uid)
        assert not say(client, Offer([forward], [made.fileno()], moves=moves.fileno()))
        run(containers, MOVE, path)
        assert containers.serves(0)
    eventually(lambda: can_bind("127.0.0.1", forward.port), "its port is still bound")


@ROOT
def test_what_has_too_many_descriptors_is_refused(containers: Containers) -> None:
    (server,) = containers.servers()
    before = state(server)
    with connect(containers) as client, open(os.devnull) as null:
        room = Messages(offers.SIZE, 250)
        room.sendmsg(client.fileno(), b"\1\0", [null.fileno()] * 250, 0)
        answer = offers.answer_of(client.recv(1 << 14))
        assert "too many descriptors" in str(answer.failure)
    eventually(lambda: descriptors(state(server)) == descriptors(before), "descriptors are left")
    assert containers.serves(0)
