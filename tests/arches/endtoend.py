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
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hardsplice import linux, namespaces, seccomp
from tests.arches import numbers
from tests.arches.tap import Writer

PATIENCE = 60.0  # seconds; emulated machines are slow, and a stall is for ever
MIB = 1 << 20
_BLOCK = random.Random("end to end").randbytes(MIB + 4099)
_CAP_KILL = 5  # linux/capability.h
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
            namespaces.bring_up_loopback()
            channel.send(b"up")
            while request := channel.recv(1):
                family = socket.AF_INET6 if request == b"6" else socket.AF_INET
                with socket.socket(family, socket.SOCK_STREAM) as made:
                    socket.send_fds(channel, [b"s"], [made.fileno()])
        finally:
            os._exit(0)

    def socket(self, family: socket.AddressFamily) -> socket.socket:
        """A TCP socket that belongs to the namespace."""
        self._channel.send(b"6" if family == socket.AF_INET6 else b"4")
        _, (fd,), _, _ = socket.recv_fds(self._channel, 1, 1)
        return socket.socket(fileno=fd)

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
        client.sendall(payload(300_000))
        client.shutdown(socket.SHUT_WR)
        expect(server, payload(300_000))
        expect_end(server)
        together(
            lambda: (server.sendall(payload(300_000, 11)), server.shutdown(socket.SHUT_WR)),
            lambda: (expect(client, payload(300_000, 11)), expect_end(client)),
        )


def server_finishes_first(lane: Lane) -> None:
    """Half-close the other way: the client goes on after the server's end of file."""
    with lane.connected() as (client, server):
        server.sendall(payload(1000))
        server.shutdown(socket.SHUT_WR)
        expect(client, payload(1000))
        expect_end(client)
        together(
            lambda: (client.sendall(payload(300_000, 13)), client.close()),
            lambda: (expect(server, payload(300_000, 13)), expect_end(server)),
        )


def four_mebibytes(lane: Lane) -> None:
    """More than pipes and buffers hold, both ways at once: sinks block and pipes are lent."""
    with lane.connected() as (client, server):
        together(
            lambda: (client.sendall(payload(4 * MIB)), client.shutdown(socket.SHUT_WR)),
            lambda: (server.sendall(payload(4 * MIB, 17)), server.shutdown(socket.SHUT_WR)),
            lambda: (expect(server, payload(4 * MIB)), expect_end(server)),
            lambda: (expect(client, payload(4 * MIB, 17)), expect_end(client)),
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
    """Two hundred connections, one after the other: pools are refilled on the way."""
    with lane.listening() as server:
        for index in range(200):
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


LANE_CHECKS: tuple[Callable[[Lane], None], ...] = (
    echo,
    client_finishes_first,
    server_finishes_first,
    four_mebibytes,
    resets,
    urgent_byte,
    refusal,
    short_connections,
)


# --- the program under test -----------------------------------------------------------------------


class Instance:
    """A hardsplice in the foreground."""

    def __init__(self, *arguments: str, user: int | None = None, stdout: int | None = None) -> None:
        self._messages = tempfile.TemporaryFile()
        self._ready, told = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hardsplice", "-f", "-d", f"--ready-fd={told}", *arguments],
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=self._messages, pass_fds=[told],
                user=user, group=user, extra_groups=None if user is None else [],
            )  # fmt: skip
        finally:
            os.close(told)

    def wait_ready(self) -> None:
        """Until it says so."""
        readable, _, _ = select.select([self._ready], [], [], PATIENCE)
        assert readable, self._told("it is not ready")
        assert os.read(self._ready, 1), self._told("it ended before it was ready")

    def processes(self) -> dict[str, int]:
        """Its processes by name."""
        parents = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="ascii") as stat:
                parents[int(name)] = int(stat.read().rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        names = {}
        for pid in found:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8") as comm:
                names[comm.read().strip()] = pid
        return {name: pid for name, pid in names.items() if name.startswith("hs-")}

    def end(self, wanted: int) -> None:
        """It ends by itself, or was asked to: with this status, and nothing stays behind."""
        family = self.processes().values()
        try:
            status = self.process.wait(PATIENCE)
            assert status == wanted, self._told(f"it ended with {status} instead of {wanted}")
            left = [pid for pid in family if os.path.exists(f"/proc/{pid}/exe")]
            eventually(lambda: not any(map(_runs, left)), self._told("it left processes behind"))
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._ready)

    def _told(self, what: str) -> str:
        said = os.pread(self._messages.fileno(), 1 << 16, 0).decode(errors="replace")
        return f"{what}; it said:\n{said}"


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Poll for a state of another process that has no event to wait for."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def is_locked_down(instance: Instance, names: set[str]) -> None:
    """What /proc says of each process: a filter, no way to new privileges, no capability.

    PID 1 of a command may signal what became another user's.
    """
    family = instance.processes()
    assert set(family) == names, f"processes: {sorted(family)}"
    for name, pid in family.items():
        with open(f"/proc/{pid}/status", encoding="utf-8") as lines:
            fields = (line.partition(":") for line in lines)
            status = {key: value.strip() for key, _, value in fields}
        assert status["Seccomp"] == "2", f"{name} has no filter"
        assert status["NoNewPrivs"] == "1", f"{name} may gain privileges"
        held = {key: int(value, 16) for key, value in status.items() if key.startswith("Cap")}
        assert len(held) == 5, f"capability sets: {sorted(held)}"
        permitted = 1 << _CAP_KILL if name == "hs-init" else 0
        assert not any(value & ~permitted for value in held.values()), f"{name} holds {held}"


def calls_are(instance: Instance, arch: str) -> None:
    """A waiting relay's system call has this architecture's number.

    That tells an i686 process on an x86-64 kernel apart: epoll_wait is 256 there, here 232.
    """
    known = numbers.of(arch)
    waits = {known[name] for name in ("epoll_wait", "epoll_pwait") if name in known}
    path = f"/proc/{instance.processes()['hs-relay-in']}/syscall"

    def waiting() -> bool:
        with open(path, encoding="ascii") as file:
            number = file.read().split()[0]
        return number.isdigit() and int(number) in waits

    eventually(waiting, f"the relay never waits in epoll_wait as {arch} numbers it")


def restart(instance: Instance, lane: Lane) -> None:
    """A relay that was killed is replaced, and no client is refused meanwhile."""
    before = instance.processes()[lane.relay]
    os.kill(before, signal.SIGKILL)
    echo(lane)
    assert instance.processes()[lane.relay] != before, "the killed relay is still there"


_COMMAND = """
import socket, sys
with socket.create_server(("127.0.0.1", 8080)) as server:
    print("listening", flush=True)
    with server.accept()[0] as peer:
        peer.sendall(peer.recv(100).upper())
sys.exit(7)
"""


def command(user: int | None) -> None:
    """COMMAND in namespaces of its own: reached through a port, its status passed on."""
    command = [sys.executable, "-c", _COMMAND]
    instance = Instance(
        "-t", "127.0.0.1/19090:8080", "--", *command, user=user, stdout=subprocess.PIPE
    )
    try:
        instance.wait_ready()
        assert instance.process.stdout is not None
        assert instance.process.stdout.readline() == b"listening\n"
        is_locked_down(instance, {"hs-host", "hs-target", "hs-relay-in", "hs-init"})
        with socket.create_connection(("127.0.0.1", 19090), PATIENCE) as client:
            client.sendall(b"hello")
            expect(client, b"HELLO")
            expect_end(client)
    finally:
        instance.end(7)


def run(report: Writer, arch: str) -> None:
    """All of it."""
    native = seccomp.native_arch()
    report.fact("arch", native)
    report.check("the policy is this architecture's", lambda: _same(native, arch))
    inside = Namespace()
    families = [socket.AF_INET]
    if os.path.exists("/proc/net/if_inet6"):
        families.append(socket.AF_INET6)
    inbound = ("inbound", 18080, 8080, "hs-relay-in", _here, inside.socket)
    outbound = ("outbound", 15432, 5432, "hs-relay-out", inside.socket, _here)
    lanes = [
        Lane(f"{name} IPv{4 if family == socket.AF_INET else 6}", family, *rest)
        for name, *rest in (inbound, outbound)
        for family in families
    ]
    instance = Instance("-t", "18080-18081:8080-8081", "-T", "15432-15433:5432-5433", str(inside.pid))
    report.check("ready", instance.wait_ready)
    names = {"hs-host", "hs-target", "hs-relay-in", "hs-relay-out"}
    report.check("locked down", lambda: is_locked_down(instance, names))
    report.check("system calls by their numbers", lambda: calls_are(instance, arch))
    for lane in lanes:
        for check in LANE_CHECKS:
            name = check.__name__.replace("_", " ")
            report.check(f"{lane.name}: {name}", lambda check=check, lane=lane: check(lane))
    for lane in lanes[:: len(families)]:
        report.check(f"{lane.name}: restart", lambda lane=lane: restart(instance, lane))
    report.check("still locked down", lambda: is_locked_down(instance, names))
    instance.process.terminate()
    report.check("SIGTERM ends it", lambda: instance.end(0))
    inside.close()
    report.check("a command, as root", lambda: command(None))
    report.check("a command, as an ordinary user", lambda: command(1000))


def _same(found: str, wanted: str) -> None:
    assert found == wanted, f"{found} instead of {wanted}"
