# SPDX-License-Identifier: GPL-2.0-or-later
"""A port of the host that was removed is of no use to a namespace monitor that was taken over,
though it has the listener still: it can neither listen nor connect on it again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest

from tests.support.netns import Identity, Namespace
from tests.support.product import ROOT, Instance, Program, free_ports
from tests.support.retiring import run
from tests.support.stream import eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# The product with a namespace monitor that keeps what it is told to serve, and uses it again once
# that was removed; "unfixed" leaves out what the host monitor does about it.
KEEPER = """
import ctypes, sys, time
from socket import AF_INET6, SO_DOMAIN, SOL_SOCKET
how, use = sys.argv[1:3]
del sys.argv[1:3]
from hardsplice.sandbox import address_book
from hardsplice.monitor import handover
from hardsplice.net import retiring
from hardsplice.kernel import socketcalls
from hardsplice.ipc.messages import Kind, Note
from hardsplice.model.direction import Direction
from hardsplice.model.protocol import Protocol
from hardsplice.monitor.requests import decode
from hardsplice.app.start import main
kept = {}
def serve(self, record):
    forward, slots = decode(record, Direction.INBOUND)
    (fd,) = record.fds
    self.groups.add(forward, fd, slots)
    kept[record.index] = fd, slots
    self._answer(Kind.SERVED, record, 0)
def close(self, record):
    self.groups.remove(record.index, reset_flows=True, done=lambda: None)
    fd, slots = kept.pop(record.index)
    until = time.monotonic() + 0.3  # the host monitor ends it once it has asked
    while time.monotonic() < until:  # no filter lets a monitor sleep
        pass
    code = 0
    if use == "listen":
        try:
            socketcalls.listen(fd, 65535)
        except OSError as error:
            code = error.errno
    else:
        is_ipv6 = socketcalls.option(fd, SOL_SOCKET, SO_DOMAIN) == AF_INET6
        where = ctypes.c_void_p(address_book.USUAL.address + address_book.SLOT * slots[is_ipv6])
        code = -socketcalls.connect(fd, where, 28 if is_ipv6 else 16)
    self.groups.note(Protocol.TCP, Note.ERROR, 0, 0, f"it came to {code}".encode())
    self._answer(Kind.CLOSED, record)
handover._HANDLERS[Kind.SERVE], handover._HANDLERS[Kind.CLOSE] = serve, close
if how == "unfixed":
    def only_deaf(self, late):
        socketcalls.retire(late.fd)
        return ""
    retiring.Retiring._use_up = only_deaf
sys.exit(main(sys.argv[1:]))
"""


class Supervisor(Program):
    """The product with such a namespace monitor, in a network namespace."""

    def __init__(self, how: str, use: str, host: Namespace | None) -> None:
        super().__init__()
        self.words = [how, use]
        self.host = host

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = super().argv(identity)
        prefix = in_there(self.host) if self.host else []
        return [*prefix, *argv[: argv.index("-m")], "-c", KEEPER, *self.words], environment


def in_there(host: Namespace) -> list[str]:
    """Words before a command that is to run in that namespace."""
    return ["nsenter", f"--net={host.net_path}"]


ADDRESS = "10.9.9.9"
NO_IPV6 = [
    f"echo 1 >/proc/sys/net/ipv6/conf/{name}/disable_ipv6" for name in ("all", "default", "lo")
]
# What the host is like: by name, the commands that make it so.
HOSTS: dict[str, list[str]] = {
    "plain": [],
    "without IPv6": NO_IPV6,
    "sends with the most hops": ["echo 255 >/proc/sys/net/ipv4/ip_default_ttl"],
    "drops": [
        f"ip address add {ADDRESS}/32 dev lo",
        f"iptables -A INPUT -d {ADDRESS} -p tcp -j DROP",
    ],
}


@contextlib.contextmanager
def a_host(kind: str) -> Iterator[Namespace | None]:
    """A network namespace to run hardsplice in; None where the machine's own will do."""
    if kind == "plain":
        yield None
        return
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a host's network namespace")
    with Namespace(Identity("root"), new_user=False) as host:
        for command in HOSTS[kind]:
            if shutil.which(command.split()[0]) is None and not command.startswith("echo"):
                pytest.skip(f"needs {command.split()[0]}")
            subprocess.run([*in_there(host), "sh", "-c", command], check=True)
        yield host


def socket_of(host: Namespace | None) -> socket.socket:
    return host.socket(socket.AF_INET) if host else socket.socket()


def hears_the_farthest(host: Namespace | None, address: str, port: int) -> bool:
    """Whether somebody there hears who sends with the largest number of hops."""
    with socket_of(host) as client:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
        client.settimeout(0.5)
        try:
            client.connect((address, port))
        except (ConnectionRefusedError, TimeoutError):
            return False
        return True


def is_free(host: Namespace | None, address: str, port: int) -> bool:
    """For whoever says SO_REUSEADDR: others have to wait until nobody has the old one."""
    with socket_of(host) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, port))
        one.listen()
        return True


Change = Callable[[], None]
# Adds or removes a port, from where it is heard: the network namespace that hardsplice is in.
CLIENT = """
import json, sys
from hardsplice.ctl.client import Client
client, words = Client(sys.argv[1]), json.loads(sys.argv[2])
if isinstance(words, int):
    client.remove(words, reset_flows=False)
else:
    print(client.add(words)["id"])
"""
PATH = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


@contextlib.contextmanager
def asked_for(
    by: str,
    address: str | None,
    port: int,
    host: Namespace | None,
    namespace: Namespace,
    folder: str,
) -> Iterator[tuple[list[str], Change, Change]]:
    """Options, and what makes and removes the port."""
    if by == "auto":
        with namespace.socket(socket.AF_INET) as server:
            server.bind(("127.0.0.1", port))
            where = f"{address}/auto" if address else "auto"
            yield ["-t", where], server.listen, server.close
        return
    spec = f'{{"proto": "tcp", "parentPort": {port}, "childPort": 80}}'
    if address:
        spec = spec.replace("}", f', "parentIP": "{address}"}}')
    client = [*(in_there(host) if host else []), sys.executable, "-c", CLIENT, f"{folder}/control"]
    made: list[str] = []

    def add() -> None:
        done = subprocess.run(
            [*client, spec], env=PATH, cwd="/", stdout=subprocess.PIPE, text=True, check=True
        )
        made.append(done.stdout.strip())

    def remove() -> None:
        subprocess.run([*client, made.pop()], env=PATH, cwd="/", check=True)

    yield ["--control", f"{folder}/control"], add, remove


@pytest.mark.parametrize("use", ["listen", "connect"])
@pytest.mark.parametrize("how", ["fixed", "unfixed"])
@pytest.mark.parametrize(
    ("kind", "by", "address"),
    [
        ("plain", "control", "127.0.0.1"),
        ("plain", "control", None),
        ("plain", "auto", "127.0.0.1"),
        ("without IPv6", "control", None),
        ("without IPv6", "auto", None),
        ("sends with the most hops", "auto", "127.0.0.1"),
        ("drops", "control", ADDRESS),
    ],
)
def test_who_has_it_still_has_nothing(
    kind: str, by: str, address: str | None, how: str, use: str, identity: Identity
) -> None:
    with (
        a_host(kind) as host,
        contextlib.closing(Supervisor(how, use, host)) as program,
        tempfile.TemporaryDirectory(prefix="hardsplice-tests-") as folder,
        Namespace(identity) as namespace,
        contextlib.ExitStack() as stack,
    ):
        if identity.uid is not None:
            os.chown(folder, identity.uid, -1)
        port = free_ports()
        words, add, remove = stack.enter_context(
            asked_for(by, address, port, host, namespace, folder)
        )
        instance = Instance(program, identity, ["-f", *words, str(namespace.pid)])
        stack.callback(instance.discard)
        instance.wait_ready()
        add()
        where = address or "127.0.0.1"
        if by == "auto":
            eventually(lambda: hears_the_farthest(host, where, port), instance.messages)
        remove()
        eventually(lambda: "it came to" in instance.messages(), instance.messages)
        (code,) = map(int, re.findall(r"it came to (\d+)", instance.messages()))
        if how == "fixed":
            waits = errno.EALREADY if kind == "drops" else errno.EISCONN
            assert code == (errno.EINVAL if use == "listen" else waits)
            assert not hears_the_farthest(host, where, port)
            assert is_free(host, where, port)
            assert instance.process.poll() is None
        elif use == "listen":
            assert code == 0
            assert hears_the_farthest(host, where, port) == (kind != "drops")
        else:
            assert code not in (errno.EISCONN, errno.EINVAL, errno.EALREADY)


def test_one_that_nobody_answers_is_used_up_by_that() -> None:
    """As behind a firewall: the sink doesn't send far enough to be heard."""
    words = run("""
for fd in sink.fds.values():
    socket.socket(fileno=os.dup(fd)).setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
made = listener(socket.AF_INET, "127.0.0.1")
began = time.monotonic()
one.end(os.dup(made.fileno()), "it")
print(code_of(made.listen), code_of(made.connect, ("127.0.0.1", 9)), timers.due is not None)
retiring.PATIENT_TRIES = 1000  # it is given up by the kernel
go_on(lambda: not one._late, 0.25)
print(code_of(made.listen), code_of(made.connect, ("127.0.0.1", 9)), told, misused)
print(time.monotonic() - began > 2)
""")
    assert words == ["EINVAL", "EALREADY", "True", "EINVAL", "EINVAL", "[]", "[]", "True"]
