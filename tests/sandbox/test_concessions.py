# SPDX-License-Identifier: GPL-2.0-or-later
"""What SECURITY.md concedes to a host monitor that was taken over, where ports may change: that it
writes the address books. Should it come to less one day, the page may say less.
"""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

NO_TARGET = 9090  # a port of the namespace
# The product with a host monitor that takes a connection of the namespace's, has AF_UNSPEC in its
# book, which disconnects it, and then NO_TARGET, to which it connects it: in the namespace.
ELSEWHERE = """
import ctypes, os, struct, sys
from hardsplice.sandbox import address_book
from hardsplice.ipc import descriptors
from hardsplice.kernel import pinned
from hardsplice.monitor.host import HostMonitor
from hardsplice.app.start import main
libc = ctypes.CDLL(None, use_errno=True)
libc.connect.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)
begin, run, books = address_book.Book.__init__, HostMonitor.run, []
def noted(self, *arguments, **named):
    begin(self, *arguments, **named)
    books.append(self)
SLOT = 50 * address_book.SLOT
def connect(fd, address):
    for one in books:
        if one.view is not None:
            ctypes.memmove(one.view + 2 * pinned.PIECE + SLOT, address, len(address))
    return libc.connect(fd, address_book.USUAL.address + SLOT, 16)
target = struct.pack("=H", 2) + struct.pack("!H", NO_TARGET) + bytes([127, 0, 0, 1]) + bytes(24)
def acting(self):
    os.write(2, b"it waits\\n")
    fd = -1
    while fd < 0:
        fd = libc.accept4(descriptors.FIRST_LISTENER, None, None, 0)
    connect(fd, bytes(32))
    connect(fd, target)
    os.write(2, b"it tried\\n")
    return run(self)
address_book.Book.__init__, HostMonitor.run = noted, acting
sys.exit(main(sys.argv[1:]))
"""


class Elsewhere(Program):
    """The product with such a host monitor."""

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = super().argv(identity)
        code = ELSEWHERE.replace("NO_TARGET", str(NO_TARGET))
        return [*argv[: argv.index("-m")], "-c", code], environment


@pytest.mark.parametrize("changing", [True, False])
def test_where_ports_may_change_it_connects_inside_where_it_likes(
    changing: bool, identity: Identity
) -> None:
    program, ports = Elsewhere(), ["-T", f"127.0.0.1/81:{free_ports()}"]
    ports += ["-T", "auto"] if changing else []
    with contextlib.closing(program), Namespace(identity) as namespace:
        instance = Instance(program, identity, ["-f", *ports, str(namespace.pid)])
        with contextlib.ExitStack() as stack:
            stack.callback(instance.discard)
            server = stack.enter_context(namespace.socket(socket.AF_INET))
            server.bind(("127.0.0.1", NO_TARGET))
            server.listen()
            eventually(lambda: "it waits" in instance.messages(), instance.messages)
            client = stack.enter_context(namespace.socket(socket.AF_INET))
            client.connect(("127.0.0.1", 81))
            eventually(lambda: "it tried" in instance.messages(), instance.messages)
            server.setblocking(False)  # on loopback a connection stands at once
            with contextlib.nullcontext() if changing else pytest.raises(BlockingIOError):
                server.accept()[0].close()
