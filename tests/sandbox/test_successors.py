# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay that was taken over leaves nothing behind that its successors would fall over: what it
counts with lies in memory that they have, too; and so do listeners, in which the kernel keeps what
it reports.
"""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import Violation, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# The product with a first relay that writes what it likes where it counts, and dies; "unfixed"
# leaves its successor what is there.
POISONER = """
import ctypes, mmap, sys
how, left = sys.argv[1:3]
del sys.argv[1:3]
from hardsplice.relay.tcp import engine
from hardsplice.telemetry import counters
from hardsplice.app.start import main
is_done = mmap.mmap(-1, 1)
turn = engine.Engine.turn
def poison(self, others):
    turn(self, others)
    if not is_done[0] and self.counters[counters.ACCEPTED]:
        is_done[0] = 1
        for at in range(len(self.counters)):
            self.counters[at] = 2**64 - 1
        if left == "bytes":
            for at in range(2, len(self.counters)):
                self.counters[at] = 0
            self.counters[0] = self.counters[1] = 2**64 - 5
        ctypes.CDLL(None).getppid()  # which its filter doesn't allow
engine.Engine.turn = poison
if how == "unfixed":
    counters.Stats.begin_anew = lambda self: None
sys.exit(main(sys.argv[1:]))
"""


# The same with a first datagram relay that has the kernel report on all that it sends, until there
# is no more room for that; and dies. "unfixed" lets its successor leave that where it is.
REPORTED = """
import ctypes, mmap, socket, struct, sys
how, _ = sys.argv[1:3]
del sys.argv[1:3]
from hardsplice.app.start import main
from hardsplice.kernel import datagrams
from hardsplice.relay.udp import engine, seam
from hardsplice.telemetry import counters
is_done = mmap.mmap(-1, 1)
kept = []
def place(contents):
    kept.append(ctypes.create_string_buffer(contents, len(contents)))
    return ctypes.addressof(kept[-1])
libc = ctypes.CDLL(None)
syscall, getppid = libc.syscall, libc.getppid
turn = engine.Engine.turn
def report(self, *arguments):
    result = turn(self, *arguments)
    if not is_done[0] and self.counters[counters.ACCEPTED]:
        is_done[0] = 1
        listener = next(iter(self.listeners))
        name = place(struct.pack("=H", 2) + struct.pack("!H", 9) + bytes([127, 0, 0, 1]) + bytes(8))
        head = struct.pack("@Nii", struct.calcsize("@Nii") + 4, 1, 37)  # SO_TIMESTAMPING
        wish = head + struct.pack("=I4x", 2)  # SOF_TIMESTAMPING_TX_SOFTWARE
        for size in (60000, 5000, 1):
            part = place(struct.pack("@PN", place(bytes(size)), size))
            header = struct.pack("@PPPNPNP", name, 16, part, 1, place(wish), len(wish), 0)
            message = place(header + bytes(struct.calcsize("@P")))
            for _ in range(1000):
                number = ctypes.c_long(datagrams.SENDMMSG.value)
                syscall(number, listener, ctypes.c_void_p(message), 1, 0x4040)
        getppid()  # which its filter doesn't allow
    return result
engine.Engine.turn = report
if how == "unfixed":
    seam.Kernel.discard_errors = staticmethod(lambda fd, inbox: 0)
sys.exit(main(sys.argv[1:]))
"""


class Poisoner(Program):
    """The product with such a relay."""

    def __init__(self, how: str, left: str, code: str = POISONER) -> None:
        super().__init__()
        self.code = code
        self.words = [how, left]

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = super().argv(identity)
        return [*argv[: argv.index("-m")], "-c", self.code, *self.words], environment


def is_served(port: int, server: socket.socket) -> bool:
    """Whether ten bytes come there and back."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as client:
            near = server.accept()[0]
            with near:
                near.settimeout(2)
                client.sendall(b"0123456789")
                received = near.recv(10, socket.MSG_WAITALL)
                near.sendall(received)
                return client.recv(10, socket.MSG_WAITALL) == b"0123456789"
    except OSError:
        return False


@pytest.mark.parametrize("how", ["fixed", "unfixed"])
@pytest.mark.parametrize(
    ("left", "options"),
    [
        ("all", []),
        ("all", ["--workers", "2"]),
        ("all", ["--log-flows"]),
        ("bytes", []),  # with a flow table these are counted elsewhere
    ],
)
def test_what_a_dead_relay_counted_with_is_no_trap(
    left: str, options: list[str], how: str, identity: Identity
) -> None:
    with (
        contextlib.closing(Poisoner(how, left)) as program,
        Namespace(identity) as namespace,
        namespace.socket(socket.AF_INET) as server,
        contextlib.ExitStack() as stack,
    ):
        port = free_ports()
        server.bind(("127.0.0.1", 80))
        server.listen()
        server.settimeout(2)
        words = ["-f", *options, "-t", f"127.0.0.1/{port}:80", str(namespace.pid)]
        instance = Instance(program, identity, words)
        stack.callback(instance.discard)
        instance.wait_ready()
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
        eventually(lambda: "was started again" in instance.messages(), instance.messages)
        with contextlib.suppress(TimeoutError):  # what the first relay connected
            server.settimeout(0.1)
            while True:
                server.accept()[0].close()
        server.settimeout(2)
        assert all(is_served(port, server) for _ in range(10)) == (how == "fixed")
        if how == "fixed":
            assert instance.messages().count("was started again") == 1


@pytest.mark.parametrize("how", ["fixed", "unfixed"])
def test_what_a_dead_relay_has_sent_is_no_trap(how: str, identity: Identity) -> None:
    """The kernel's reports on it fill a listener's queue, and wake whoever waits there."""
    with (
        contextlib.closing(Poisoner(how, "reports", REPORTED)) as program,
        Namespace(identity) as namespace,
        namespace.datagram_socket(socket.AF_INET) as server,
        contextlib.ExitStack() as stack,
    ):
        port = free_ports()
        server.bind(("127.0.0.1", 80))
        server.settimeout(2)
        words = ["-f", "-u", f"127.0.0.1/{port}:80", str(namespace.pid)]
        instance = Instance(program, identity, words)
        stack.callback(instance.discard)
        instance.wait_ready()
        client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        client.connect(("127.0.0.1", port))
        client.send(b"first")
        eventually(lambda: "was started again" in instance.messages(), instance.messages)
        assert server.recv(100) == b"first"
        if how == "fixed":
            server.settimeout(0.1)

            def is_served() -> bool:
                """Until the successor has made room for it, a datagram is dropped."""
                client.send(b"second")
                with contextlib.suppress(TimeoutError):
                    return server.recv(100) == b"second"
                return False

            eventually(is_served, "nothing comes through")
            procfs.assert_quiet(instance.processes(), 0.5)
            assert instance.messages().count("was started again") == 1
            return
        with pytest.raises(Violation):
            procfs.assert_quiet(instance.processes(), 0.5)
