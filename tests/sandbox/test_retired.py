# SPDX-License-Identifier: GPL-2.0-or-later
"""A port of the host that was removed is of no use to a target monitor that was taken over, though
it has the listener still: it can neither listen nor connect on it again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import tempfile

import pytest

from hardsplice.ctl.client import Client
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, can_bind, free_ports
from tests.support.stream import eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# The product with a target monitor that keeps what it is told to serve, and uses it again once that
# was removed; "unfixed" leaves out what the host monitor does about it.
KEEPER = """
import ctypes, sys
from socket import AF_INET6, SO_DOMAIN, SOL_SOCKET
how, use = sys.argv[1:3]
del sys.argv[1:3]
from hardsplice import book, desk, exchange, socketcalls
from hardsplice.channel import Kind, Note
from hardsplice.requests import decode
from hardsplice.start import main
kept = {}
def serve(self, record):
    forward, slots = decode(record.text)
    (fd,) = record.fds
    self.crew.add(record.index, fd, forward, slots)
    kept[record.index] = fd, slots
    self._answer(Kind.SERVED, record, 0)
def close(self, record):
    self.crew.remove(record.index, reset_flows=True)
    fd, slots = kept.pop(record.index)
    code = 0
    if use == "listen":
        try:
            socketcalls.listen(fd, 65535)
        except OSError as error:
            code = error.errno
    else:
        is_ipv6 = socketcalls.option(fd, SOL_SOCKET, SO_DOMAIN) == AF_INET6
        where = ctypes.c_void_p(book.USUAL.address + book.SLOT * slots[is_ipv6])
        code = -socketcalls.connect(fd, where, 28 if is_ipv6 else 16)
    self.crew.upward.note(Note.ERROR, 0, 0, f"it came to {code}".encode())
    self._answer(Kind.CLOSED, record)
exchange._HANDLERS[Kind.SERVE], exchange._HANDLERS[Kind.CLOSE] = serve, close
if how == "unfixed":
    desk.Desk._use_up = lambda self, fd: None
sys.exit(main(sys.argv[1:]))
"""


class Keeper(Program):
    """The product with such a target monitor."""

    def __init__(self, how: str, use: str) -> None:
        super().__init__()
        self.words = [how, use]

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = super().argv(identity)
        return [*argv[: argv.index("-m")], "-c", KEEPER, *self.words], environment


def hears_the_farthest(port: int) -> bool:
    """Whether somebody there hears who sends with the largest number of hops."""
    with socket.socket() as client:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
        try:
            client.connect(("127.0.0.1", port))
        except ConnectionRefusedError:
            return False
        return True


@pytest.mark.parametrize("use", ["listen", "connect"])
@pytest.mark.parametrize("how", ["fixed", "unfixed"])
@pytest.mark.parametrize("address", ["127.0.0.1", None])
def test_who_has_it_still_has_nothing(
    address: str | None, how: str, use: str, identity: Identity
) -> None:
    with (
        contextlib.closing(Keeper(how, use)) as program,
        tempfile.TemporaryDirectory(prefix="hardsplice-tests-") as folder,
        Namespace(identity) as namespace,
        contextlib.ExitStack() as stack,
    ):
        if identity.uid is not None:
            os.chown(folder, identity.uid, -1)
        control, port = f"{folder}/control", free_ports()
        instance = Instance(program, identity, ["-f", "--control", control, str(namespace.pid)])
        stack.callback(instance.discard)
        instance.wait_ready()
        with contextlib.closing(Client(control)) as client:
            spec = {"proto": "tcp", "parentPort": port, "childPort": 80}
            made = client.add({**spec, "parentIP": address} if address else spec)
            client.remove(made["id"], reset_flows=False)
        eventually(lambda: "it came to" in instance.messages(), instance.messages)
        (code,) = re.findall(r"it came to (\d+)", instance.messages())
        if how == "fixed":
            assert int(code) == (errno.EINVAL if use == "listen" else errno.EISCONN)
            assert not hears_the_farthest(port)
            assert can_bind("127.0.0.1", port)
        elif use == "listen":
            assert int(code) == 0
            assert hears_the_farthest(port)
        else:
            assert int(code) not in (errno.EISCONN, errno.EINVAL)
