# SPDX-License-Identifier: GPL-2.0-or-later
"""A listener that somebody else has, too, and has ended or changed, is noticed; and what the host
monitor binds is a TCP socket, whatever it does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from hardsplice.ctl.client import Client
from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import Violation, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class Altered(Program):
    """The product with some code of the test's in front of it."""

    def __init__(self, code: str) -> None:
        super().__init__()
        start = "from hardsplice.app.start import main\nsys.exit(main(sys.argv[1:]))"
        self.code = f"{code}\nimport sys\n{start}"

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = super().argv(identity)
        return [*argv[: argv.index("-m")], "-c", self.code], environment


# A namespace monitor that keeps the listener that it was asked for, and has what is accepted from
# it reset as soon as it is closed, once the host monitor has looked at it.
CUTTING = """
import os
from hardsplice.monitor import effects
from hardsplice.monitor import handover
from hardsplice.kernel import socketcalls
from hardsplice.ipc.messages import Kind, Record
from hardsplice.model.direction import Direction
from hardsplice.net.listeners import open_listener
from hardsplice.monitor.requests import decode
ours = []
def open_and_keep(self, record):
    forward, _ = decode(record, Direction.OUTBOUND)
    ours.append(open_listener(forward, self.families))
    self.parent.send(Record(Kind.OPENED, index=record.index, fds=(ours[-1],)))
handover._HANDLERS[Kind.OPEN] = open_and_keep
def cut(self, record):
    assert socketcalls.abort(ours[-1]) == 0
    self.parent.send(Record(Kind.CLOSED, index=record.index))
handover._HANDLERS[Kind.CLOSE] = cut
"""
UNFIXED = """
assert effects.Effects._check_some
effects.Effects._check_some = lambda self: None
"""


@pytest.mark.parametrize("how", ["fixed", "unfixed"])
def test_a_namespace_monitor_that_cuts_connections_by_a_listener_is_found_out(
    how: str, identity: Identity
) -> None:
    with (
        contextlib.closing(Altered(CUTTING + (UNFIXED if how == "unfixed" else ""))) as program,
        tempfile.TemporaryDirectory(prefix="hardsplice-tests-") as folder,
        Namespace(identity) as namespace,
        contextlib.ExitStack() as stack,
    ):
        if identity.uid is not None:
            os.chown(folder, identity.uid, -1)
        control, port = f"{folder}/control", free_ports()
        words = ["-f", "--control", control, str(namespace.pid)]
        instance = Instance(program, identity, words)
        stack.callback(instance.discard)
        instance.wait_ready()
        with contextlib.closing(Client(control)) as client:
            # One to be removed, by which the namespace monitor knows that it is time.
            spec = {"proto": "tcp", "parentPort": port, "childPort": 80, "parentIP": "127.0.0.1"}
            sign = client.add(spec)["id"]
            client.add({**spec, "childPort": 8088, "direction": "outbound"})
            client.remove(sign, reset_flows=False)
        said = "cannot trust the namespace monitor: it changes a listener that it has handed over"
        if how == "fixed":
            eventually(lambda: said in instance.messages(), instance.messages, within=5)
            eventually(lambda: instance.process.poll() == 1, instance.messages, within=5)
            return
        with namespace.socket(socket.AF_INET) as visitor:
            visitor.connect(("127.0.0.1", 8088))
        with pytest.raises(Violation):
            eventually(lambda: said in instance.messages(), "it is not said", within=2)
        assert instance.process.poll() is None


class Activated(Program):
    """The product with a listener of a service manager's."""

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = super().argv(identity)
        script = 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
        return ["sh", "-c", script, "hardsplice", *argv], environment


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("options", [[], ["-T", "auto"], ["--control"], ["--workers", "2"]])
def test_no_relay_goes_on_with_a_listener_that_somebody_else_has_ended(
    options: list[str], protocol: str, identity: Identity
) -> None:
    """A service manager has it still, for one; one of UDP, which doesn't show an end, it may give a
    peer. While its relay lives hardsplice goes on, which is the row without the look.
    """
    is_tcp = protocol == "tcp"
    with (
        contextlib.closing(Activated()) as program,
        tempfile.TemporaryDirectory(prefix="hardsplice-tests-") as folder,
        Namespace(identity) as namespace,
        socket.socket(type=socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(("127.0.0.1", 0))
        if is_tcp:
            listener.listen()
        if identity.uid is not None:
            os.chown(folder, identity.uid, -1)
        port = listener.getsockname()[1]
        more = [*options, f"{folder}/control"] if options == ["--control"] else options
        argv, environment = program.argv(identity)
        said, ready = os.pipe()
        os.set_inheritable(ready, True)
        started = subprocess.Popen(
            [
                *(*argv, "-f", *more, "--ready-fd", str(ready)),
                *("-t" if is_tcp else "-u", f"inherit:{port}", str(namespace.pid)),
            ],
            env=environment, cwd="/", stderr=subprocess.PIPE, text=True, close_fds=False,
            preexec_fn=lambda: os.dup2(listener.fileno(), 3),  # noqa: PLW1509
        )  # fmt: skip
        os.close(ready)
        try:
            assert os.read(said, 1) == b"\n"
            (relay, *_) = serving(started.pid, "hs-relay-in" if is_tcp else "hs-udp-in")
            if is_tcp:
                listener.shutdown(socket.SHUT_RDWR)
            else:
                listener.connect(("127.0.0.1", 9))
            assert started.poll() is None
            os.kill(relay, signal.SIGKILL)
            assert started.wait(5) == 1
            assert started.stderr is not None
            assert "somebody who has its listener ended or changed it" in started.stderr.read()
        finally:
            os.close(said)
            started.kill()
            started.communicate()


def serving(pid: int, wanted: str) -> list[int]:
    """The relays of that name."""
    return [one for one, name in procfs.names(pid).items() if name == wanted]


# A host monitor that has an address of a UNIX socket where it binds, as far as it can write there,
# and tries each descriptor that a number allows it to bind, and its log passed on to itself.
NAMED = """
import ctypes, os, socket, struct
from hardsplice.sandbox import address_book
from hardsplice.kernel import linux
from hardsplice.monitor import host
from hardsplice.kernel import pinned
from hardsplice.ipc.channel import Channel
from hardsplice.ipc.messages import Record
from hardsplice.model.direction import Direction
BOTH = (pinned.BIND_IPV4, pinned.BIND_IPV6)
libc = ctypes.CDLL(None, use_errno=True)
address = struct.pack("=H", socket.AF_UNIX) + bytes(1) + b"hardsplice-" + str(os.getpid()).encode()
ready = host.HostMonitor._say_ready
def act(self):
    ready(self)
    view = self.host.effects._books[Direction.OUTBOUND]
    codes = set()
    one, two = Channel.pair("hs-host", "hs-namespace")
    for at in BOTH:
        write(view, at)
        where = ctypes.c_void_p(view.area.values + at)
        for fd in (one.fileno(), two.fileno()):
            done = libc.bind(fd, where, len(address))
            codes.add(0 if done == 0 else ctypes.get_errno())
    told = " ".join(map(str, sorted(codes)))
    self.event_log.trouble(host.HardspliceError("name", "a socket", told))
def write(view, at):
    piece = view.view if at == BOTH[0] else view.view + pinned.PIECE
    ctypes.memmove(piece, address[2:], len(address) - 2)
host.HostMonitor._say_ready = act
"""
# The same where all of the memory can be written by the one that writes there.
ALL_WRITTEN = """
pinned.FIRST_WRITTEN = address_book._WRITTEN = 0
def written(self):
    ipv4 = self.view + 2 * pinned.PIECE if self.view else 0
    return pinned.Written(ipv4, ipv4 + pinned.PIECE) if ipv4 else None
address_book.Book.written = property(written)
def write(view, at):
    family, rest = (0, 2) if at == BOTH[0] else (1, 3)
    end = view.view + (family + 1) * pinned.PIECE
    ctypes.memmove(end - 2, address[:2], 2)
    ctypes.memmove(view.view + rest * pinned.PIECE, address[2:], len(address) - 2)
"""


@pytest.mark.parametrize("how", ["fixed", "unfixed"])
def test_a_host_monitor_gives_no_unix_socket_a_name(how: str, identity: Identity) -> None:
    with (
        contextlib.closing(Altered(NAMED + (ALL_WRITTEN if how == "unfixed" else ""))) as program,
        tempfile.TemporaryDirectory(prefix="hardsplice-tests-") as folder,
        Namespace(identity) as namespace,
        contextlib.ExitStack() as stack,
    ):
        if identity.uid is not None:
            os.chown(folder, identity.uid, -1)
        words = ["-f", "--control", f"{folder}/control", str(namespace.pid)]
        instance = Instance(program, identity, words)
        stack.callback(instance.discard)
        instance.wait_ready()
        eventually(lambda: "cannot name a socket" in instance.messages(), instance.messages)
        (codes,) = re.findall(r"cannot name a socket: ([\d ]+)", instance.messages())
        assert {*map(int, codes.split())} == {errno.EINVAL} if how == "fixed" else "0" in codes


# A datagram relay that doesn't let go of a port that is removed: it goes on, or does nothing more.
KEEPING = """
from hardsplice.monitor import placing
from hardsplice.relay.udp import engine
def keep(self, port_id, place, *, reset_flows):
    while {hangs}:
        pass
engine.Engine.remove_listener = keep
placing.LET_GO_SECONDS, placing.KEPT_SECONDS = 0.2, 1.0
"""


@pytest.mark.parametrize("hangs", [False, True])
def test_a_datagram_relay_that_keeps_a_removed_port_is_ended(
    hangs: bool, identity: Identity, user_directory: Path
) -> None:
    """And the port is free again."""
    port = free_ports(2)
    control = user_directory / "control"
    with (
        contextlib.closing(Altered(KEEPING.format(hangs=hangs))) as program,
        Namespace(identity) as namespace,
        contextlib.ExitStack() as stack,
    ):
        words = ["-f", "--control", str(control), "-u", f"127.0.0.1/{port}:80"]
        instance = Instance(program, identity, [*words, str(namespace.pid)])
        stack.callback(instance.discard)
        instance.wait_ready()
        client = stack.enter_context(contextlib.closing(Client(str(control))))
        (listed,) = client.get("/v1/ports")
        client.remove(listed["id"], reset_flows=True)
        assert not is_free(port)
        eventually(lambda: is_free(port), "it is kept")
        eventually(lambda: "keeps a listener" in instance.messages(), instance.messages)
        spec = {"proto": "udp", "parentIP": "127.0.0.1", "parentPort": port, "childPort": 80}
        client.add(spec)


def is_free(port: int) -> bool:
    """Whether it can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
