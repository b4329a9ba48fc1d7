# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay's end-to-end check, for places where nothing is but a Python and hardsplice.

It needs the standard library only, so that the same text runs under another architecture's Python
on this kernel and on another architecture's kernel. It is a smoke run of the contract in
tests/relay, not its replacement: each way that TCP has to begin, go on and end is taken once, in
both directions, with hardsplice's own command line and every filter on; whatever system call an
architecture makes for that and its policy doesn't name ends a process by SIGSYS, and a check fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hardsplice.kernel import linux
from hardsplice.net import loopback
from hardsplice.sandbox import seccomp
from tests.arches import commands, datagrams
from tests.arches.instance import PATIENCE, Instance, calls_are, is_locked_down
from tests.arches.tap import Writer

MIB = 1 << 20
_BLOCK = random.Random("end to end").randbytes(MIB + 4099)
_SIOCATMARK = 0x8905  # asm-generic/sockios.h; the same on all seven architectures


def payload(size: int, start: int = 0) -> bytes:
    """Bytes in which a lost or doubled one can't hide: no power of two divides the period."""
    period = len(_BLOCK)
    copies = _BLOCK * ((start % period + size) // period + 1)
    return copies[start % period :][:size]


# --- where connections are made -------------------------------------------------------------------


class Namespace:
    """A network namespace, kept by a process that makes sockets in it on request."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self._channel.close()
            self._serve(theirs)
        theirs.close()
        if self._channel.recv(16) != b"up":
            raise RuntimeError("cannot make a network namespace")

    def _serve(self, channel: socket.socket) -> None:
        try:
            linux.unshare(linux.CLONE_NEWNET)
            loopback.bring_up()
            channel.send(b"up")
            while request := channel.recv(1):
                family = socket.AF_INET6 if request in b"6v" else socket.AF_INET
                kind = socket.SOCK_DGRAM if request in b"uv" else socket.SOCK_STREAM
                with socket.socket(family, kind) as made:
                    socket.send_fds(channel, [b"s"], [made.fileno()])
                channel.send(b"c")  # there is no copy of it here any more
        finally:
            os._exit(0)

    def datagram_socket(self, family: socket.AddressFamily) -> socket.socket:
        """A UDP socket that belongs to the namespace."""
        return self._made(b"v" if family == socket.AF_INET6 else b"u")

    def _made(self, request: bytes) -> socket.socket:
        self._channel.send(request)
        _, (fd,), _, _ = socket.recv_fds(self._channel, 1, 1)
        self._channel.recv(1)
        return socket.socket(fileno=fd)

    def socket(self, family: socket.AddressFamily) -> socket.socket:
        """A TCP socket that belongs to the namespace."""
        return self._made(b"6" if family == socket.AF_INET6 else b"4")

    def close(self) -> None:
        """Let the process end, and the namespace with it."""
        self._channel.close()
        os.waitpid(self.pid, 0)


def _here(family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM)


@dataclass(frozen=True)
class Lane:
    """One way through hardsplice: clients connect to `entry`, servers listen on `exit`."""

    name: str
    family: socket.AddressFamily
    entry: int
    exit: int
    relay: str  # the name of the process that carries it
    client_side: Callable[[socket.AddressFamily], socket.socket]
    server_side: Callable[[socket.AddressFamily], socket.socket]

    @property
    def loopback(self) -> str:
        return "127.0.0.1" if self.family == socket.AF_INET else "::1"

    @contextlib.contextmanager
    def listening(self) -> Iterator[socket.socket]:
        """A server's listening socket."""
        with self.server_side(self.family) as server:
            server.settimeout(PATIENCE)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((self.loopback, self.exit))
            server.listen(128)
            yield server

    def connect(self, entry: int | None = None) -> socket.socket:
        """A client's connected socket."""
        client = self.client_side(self.family)
        client.settimeout(PATIENCE)
        client.connect((self.loopback, entry or self.entry))
        return client

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A client and its server's end."""
        with self.listening() as server, self.connect() as client:
            peer, _ = server.accept()
            with peer:
                peer.settimeout(PATIENCE)
                yield client, peer


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly so many bytes."""
    got = bytearray()
    while len(got) < size and (some := sock.recv(min(MIB, size - len(got)))):
        got += some
    assert len(got) == size, f"the stream ended after {len(got)} of {size} bytes"
    return bytes(got)


def expect(sock: socket.socket, wanted: bytes) -> None:
    """These bytes come next; those that don't match are not printed."""
    got = receive(sock, len(wanted))
    assert got == wanted, f"of {len(wanted)} bytes some are wrong"


def expect_end(sock: socket.socket) -> None:
    """The stream ends here, cleanly."""
    assert sock.recv(1) == b"", "bytes came after the end"


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send this, and then nothing more."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def expect_all(sock: socket.socket, wanted: bytes) -> None:
    """These bytes come, and then nothing more."""
    expect(sock, wanted)
    expect_end(sock)


def expect_reset(sock: socket.socket) -> None:
    """The connection is broken by the other side."""
    try:
        got = sock.recv(1)
    except ConnectionResetError:
        return
    raise AssertionError(f"{'bytes' if got else 'a clean end'} instead of a reset")


def together(*jobs: Callable[[], object]) -> None:
    """Run the jobs at once; raise the first failure."""
    failures: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:  # raised below, in the caller's thread
            failures.append(error)

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), "stalled"


# --- what is checked on every lane ----------------------------------------------------------------


def echo(lane: Lane) -> None:
    """Bytes go there and back."""
    with lane.connected() as (client, server):
        for size in (1, 100, 70_000):
            client.sendall(payload(size))
            expect(server, payload(size))
            server.sendall(payload(size, 7))
            expect(client, payload(size, 7))


def client_finishes_first(lane: Lane) -> None:
    """Half-close: the server answers after the client's end of file."""
    with lane.connected() as (client, server):
        together(
            lambda: send_all(client, payload(300_000)),
            lambda: expect_all(server, payload(300_000)),
        )
        together(
            lambda: send_all(server, payload(300_000, 11)),
            lambda: expect_all(client, payload(300_000, 11)),
        )


def server_finishes_first(lane: Lane) -> None:
    """Half-close the other way: the client goes on after the server's end of file."""
    with lane.connected() as (client, server):
        send_all(server, payload(1000))
        expect_all(client, payload(1000))
        together(
            lambda: send_all(client, payload(300_000, 13)),
            lambda: expect_all(server, payload(300_000, 13)),
        )


def four_mebibytes(lane: Lane) -> None:
    """More than pipes and buffers hold, both ways at once: sinks block and pipes are lent."""
    with lane.connected() as (client, server):
        together(
            lambda: send_all(client, payload(4 * MIB)),
            lambda: send_all(server, payload(4 * MIB, 17)),
            lambda: expect_all(server, payload(4 * MIB)),
            lambda: expect_all(client, payload(4 * MIB, 17)),
        )


def resets(lane: Lane) -> None:
    """A reset of either side reaches the other as a reset."""
    for breaks in (0, 1):
        with lane.connected() as ends:
            ends[breaks].sendall(b"x")
            expect(ends[1 - breaks], b"x")
            linger = struct.pack("ii", 1, 0)
            ends[breaks].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            ends[breaks].close()
            expect_reset(ends[1 - breaks])


def urgent_byte(lane: Lane) -> None:
    """MSG_OOB arrives as urgent data, at its place in the stream."""
    with lane.connected() as (client, server):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        client.sendall(payload(1000))
        client.send(b"!", socket.MSG_OOB)
        client.sendall(payload(1000, 1000))
        client.shutdown(socket.SHUT_WR)
        expect(server, payload(1000))
        server.recv(1, socket.MSG_PEEK)  # until it is there
        mark = fcntl.ioctl(server, _SIOCATMARK, struct.pack("i", 0))
        assert struct.unpack("i", mark) == (1,), "the urgent byte's place is lost"
        expect(server, b"!" + payload(1000, 1000))
        expect_end(server)


def refusal(lane: Lane) -> None:
    """Where nobody listens, the client is reset and sees no clean end."""
    try:
        client = lane.connect(lane.entry + 1)
    except ConnectionResetError:  # as early as that
        return
    with client:
        expect_reset(client)


def short_connections(lane: Lane) -> None:
    """Eighty connections, one after the other: pools, of 32, are refilled on the way."""
    with lane.listening() as server:
        for index in range(80):
            with lane.connect() as client:
                client.sendall(struct.pack("!I", index))
                client.shutdown(socket.SHUT_WR)
                peer, _ = server.accept()
                with peer:
                    expect(peer, struct.pack("!I", index))
                    expect_end(peer)
                    peer.sendall(b"done")
                expect(client, b"done")
                expect_end(client)


CHECKS: tuple[Callable[[Lane], None], ...] = (
    echo,
    client_finishes_first,
    server_finishes_first,
    refusal,
)
# What the family of addresses can make no difference to is checked for one of them.
CHECKS_IPV4 = (*CHECKS, four_mebibytes, resets, urgent_byte, short_connections)


# --- what is checked of the whole -----------------------------------------------------------------


def restart(instance: Instance, lane: Lane) -> None:
    """A relay that was killed is replaced, and no client is refused meanwhile."""
    before = instance.processes()[lane.relay]
    os.kill(before, signal.SIGKILL)
    echo(lane)
    assert instance.processes()[lane.relay] != before, "the killed relay is still there"


def run(report: Writer, arch: str) -> None:
    """All of it."""
    native = seccomp.native_arch()
    report.fact("arch", native)
    report.check("the policy is this architecture's", lambda: _same(native, arch))
    inside = Namespace()
    instance = Instance(
        "-t", "18080-18081:8080-8081", "-T", "15432-15433:5432-5433", str(inside.pid)
    )
    if report.check("ready", instance.wait_ready):
        _serve(report, arch, instance, inside)
    instance.process.terminate()
    report.check("SIGTERM ends it", lambda: instance.end(0))
    datagrams.run(report, inside)
    inside.close()
    report.check("a command, as an ordinary user", lambda: commands.fixed_ports(1000))
    report.check("a command, as root, and ports that change", commands.changing_ports)


def _serve(report: Writer, arch: str, instance: Instance, inside: Namespace) -> None:
    names = {"hs-host", "hs-namespace", "hs-relay-in", "hs-relay-out"}
    report.check("locked down", lambda: is_locked_down(instance, names))
    report.check("system calls by their numbers", lambda: calls_are(instance, arch))
    for family in (socket.AF_INET, socket.AF_INET6):
        if family == socket.AF_INET6 and not os.path.exists("/proc/net/if_inet6"):
            continue
        version = "IPv4" if family == socket.AF_INET else "IPv6"
        for lane in (
            Lane(f"inbound {version}", family, 18080, 8080, "hs-relay-in", _here, inside.socket),
            Lane(f"outbound {version}", family, 15432, 5432, "hs-relay-out", inside.socket, _here),
        ):
            for check in CHECKS_IPV4 if family == socket.AF_INET else CHECKS:
                name = f"{lane.name}: {check.__name__.replace('_', ' ')}"
                report.check(name, functools.partial(check, lane))
            report.check(f"{lane.name}: restart", functools.partial(restart, instance, lane))
    report.check("still locked down", lambda: is_locked_down(instance, names))


def _same(found: str, wanted: str) -> None:
    assert found == wanted, f"{found} instead of {wanted}"
