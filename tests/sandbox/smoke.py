# SPDX-License-Identifier: GPL-2.0-or-later
"""The smoke run: short, and all that hardsplice does once it is locked down happens in it.

There are nine: serving a namespace (`serve`), ports that change (`ports`), the control socket
(`control`), datagrams (`datagrams`, `datagram_ports`), a COMMAND (`command`), one at a terminal
(`terminal`), starting in the background (`background`), and a namespace by its path (`path`, which
takes root). Each ends with hardsplice's own end. What must be true in between is asserted; a
process that its filter kills is told apart from any other failure (`Killed`).
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from ctypes import c_long
from pathlib import Path

from hardsplice.ipc.descriptors import FIRST_LISTENER
from hardsplice.kernel import linux
from tests.sandbox.captured import Captured, end
from tests.sandbox.job import VARIABLE, Job
from tests.support import procfs
from tests.support.netns import Identity, Namespace, mounted, unmount
from tests.support.product import Instance, Program, free_ports
from tests.support.stream import Violation, eventually, reset

SHORT = 1.5  # seconds that a step may take; after that something is wrong
LOG_SIZE = 16384
ELSEWHERE = "10.9.9.9"  # an address that might be another machine's
PIDFD_GETFD = 438  # asm-generic/unistd.h, and the same everywhere
SO_TIMESTAMPING, TX_SOFTWARE = 37, 2  # asm-generic/socket.h, linux/net_tstamp.h


def set_loopback(namespace: Namespace, state: str) -> None:
    """Set it up or down, as root."""
    enter = ["nsenter", f"--net={namespace.net_path}"]
    subprocess.run([*enter, "ip", "link", "set", "lo", state], check=True, timeout=SHORT)


_users = itertools.count(60_001 + os.getpid() % 3000)


# As a shell that people type at has its jobs: in the foreground, in groups of their own.
_JOB = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.exit(128 - status if status < 0 else status)
"""


class AtTerminal(Program):
    """A program that is a job at a terminal, its standard input."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def argv(self, identity: Identity) -> tuple[list[str], dict[str, str]]:
        argv, environment = self.program.argv(identity)
        return ["/usr/bin/python3", "-I", "-c", _JOB, *argv], environment


class Killed(Exception):
    """A process was ended by SIGSYS; the text says what is known of it."""


class Smoke:
    """One run's surroundings: a namespace, a folder, and the product."""

    def __init__(
        self, program: Captured, identity: Identity, namespace: Namespace, folder: Path,
        environment: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.program, self.identity, self.namespace = program, identity, namespace
        self.folder = folder
        self.log, self.pid_file = folder / "log", folder / "pid"
        self.notify = folder / "notify"
        self.socket = folder / "control"
        self.environment = environment or {}
        # A user that nobody else is: what users may have of pipes is counted for each.
        user = next(_users)
        self.runas = ["--runas", f"{user}:{user}"] if identity.is_root else []

    # --- what is known ----------------------------------------------------------------------------

    def told(self, instance: Instance) -> str:
        """Everything that it has told so far."""
        log = self.log.read_text(errors="replace").lstrip("-") if self.log.exists() else ""
        return instance.messages() + log

    def killed(self, instance: Instance) -> str:
        """Whether SIGSYS ended a process, as its parent says."""
        status = instance.process.poll()
        if status in (-signal.SIGSYS, 128 + signal.SIGSYS):
            return f"status {status}"
        return next((line for line in self.told(instance).splitlines() if "SIGSYS" in line), "")

    @contextlib.contextmanager
    def judged(self, instance: Instance) -> Iterator[None]:
        """Turn whatever goes wrong into Killed where that is the reason."""
        try:
            yield
        except (OSError, AssertionError) as error:
            with contextlib.suppress(Violation):
                raise Killed(eventually(lambda: self.killed(instance), "", within=SHORT)) from error
            raise AssertionError(f"{error!r}; {self.told(instance)}") from error
        if told := self.killed(instance):
            raise Killed(told)

    def start(self, job: Job, *arguments: str, **more: str) -> Instance:
        """The product."""
        environment = {**self.environment, VARIABLE: job.dump(), **more}
        return Instance(self.program, self.identity, list(arguments), environment=environment)

    # --- serving a namespace ----------------------------------------------------------------------

    def serve(self, job: Job, use: Callable[[Instance], None] | None = None) -> None:
        """Both directions with everything that happens to connections, and to relays."""
        with contextlib.ExitStack() as stack:
            port = free_ports(4)
            inside = stack.enter_context(self.namespace.socket(socket.AF_INET))
            inside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            inside.bind(("127.0.0.1", 80))
            inside.listen()
            inside.settimeout(SHORT)
            self.namespace.add_address(ELSEWHERE)
            elsewhere = stack.enter_context(self.namespace.socket(socket.AF_INET))
            elsewhere.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            elsewhere.bind((ELSEWHERE, 81))
            elsewhere.listen()
            elsewhere.settimeout(SHORT)
            outside = stack.enter_context(socket.create_server(("127.0.0.1", port + 2)))
            outside.settimeout(SHORT)
            notify = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            self.notify.unlink(missing_ok=True)
            notify.bind(str(self.notify))
            self.notify.chmod(0o777)
            notify.settimeout(SHORT)
            # Room for one line, be it the last one; the second one starts it over.
            self.log.write_bytes(b"-" * (LOG_SIZE - 151) + b"\n")
            self.log.chmod(0o666)
            instance = self.start(
                job, "-f", *self.runas, "--drain", "1",
                "-l", str(self.log), "--log-size", str(LOG_SIZE), "-t", f"127.0.0.1/{port}:80",
                "-t", f"127.0.0.1/{port + 3}:{ELSEWHERE}/81", "-t", f"127.0.0.1/{port + 1}:79",
                "-T", f"127.0.0.1/82:{port + 2}", str(self.namespace.pid),
                NOTIFY_SOCKET=str(self.notify),
            )  # fmt: skip
            stack.callback(end, instance)
            with self.judged(instance):
                instance.wait_ready()
                notified = notify.recv(100)
                assert notified.startswith(b"READY=1")
            steps: list[Callable[[], None]] = [
                lambda: exchange(self.connect(port), inside),
                lambda: exchange(self.inside_out(), outside),
                lambda: exchange(self.connect(port + 3), elsewhere),
                lambda: urgent(self.connect(port), inside),
                lambda: refused(lambda: self.connect(port + 1)),
                lambda: blocked(self.connect(port), inside),
                lambda: broken(self.connect(port), inside),
                lambda: self.refill(port, inside),
                lambda: self.crowd(instance, port, inside),
                lambda: self.replace_relay(instance),
                lambda: exchange(self.connect(port), inside),
            ]
            for step in steps:
                with self.judged(instance):
                    step()
            if use:
                use(instance)
            with self.judged(instance):
                for pid in instance.relays():  # so that it does not leave by itself
                    os.kill(pid, signal.SIGSTOP)
                instance.process.terminate()
                assert instance.wait(2 * SHORT) == 0
                assert self.log.stat().st_size < LOG_SIZE, "the log was not started over"

    def connect(self, port: int) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=SHORT)

    def inside_out(self) -> socket.socket:
        """A client in the namespace."""
        client = self.namespace.socket(socket.AF_INET)
        client.settimeout(SHORT)
        client.connect(("127.0.0.1", 82))
        return client

    def refill(self, port: int, server: socket.socket) -> None:
        """More connections than a pool has sockets."""
        for _ in range(40):
            exchange(self.connect(port), server)

    def crowd(self, instance: Instance, port: int, listener: socket.socket) -> None:
        """Clients that read nothing, so many that their bytes need more pipes than are kept
        ready, and larger ones than the user's allowance has room for (pipe-user-pages-soft: 64 of
        1 MiB)."""
        with contextlib.ExitStack() as stack:
            for _ in range(70):
                client = stack.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.settimeout(SHORT)
                client.connect(("127.0.0.1", port))
                server = stack.enter_context(listener.accept()[0])
                server.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    for _ in range(64):
                        server.send(bytes(1 << 16))

            def most_pipes() -> int:
                held = [procfs.descriptors(pid).values() for pid in instance.relays()]
                return max(sum(what.startswith("pipe:") for what in one) for one in held)

            # Others than root may not look; then it is left to chance that this was long enough.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                eventually(lambda: most_pipes() > 2 * 68, "no further pipe was made", within=SHORT)

    def replace_relay(self, instance: Instance) -> None:
        """A relay dies, and another takes its place."""
        before = instance.relays()
        os.kill(before[0], signal.SIGKILL)
        eventually(
            lambda: len(instance.relays()) == len(before) and before[0] not in instance.relays(),
            "the relay was not replaced",
            within=SHORT,
        )
        eventually(lambda: "started again" in self.told(instance), "no word of it", within=SHORT)

    # --- ports that change ------------------------------------------------------------------------

    def ports(self, job: Job) -> None:
        """Servers in the namespace and on the host come and go, which auto follows: at an IPv4
        address, at an interface, and at an IPv6 address.
        """
        first = free_ports(4)
        instance = self.start(
            job, "-f", *self.runas, "-t", f"127.0.0.1/auto,{first}", "-t", f"%lo/auto,{first + 1}",
            "-T", f"127.0.0.1/auto,{first + 2}", "-t", f"::1/auto,{first + 3}",
            str(self.namespace.pid),
        )  # fmt: skip
        with contextlib.ExitStack() as stack:
            stack.callback(end, instance)
            with self.judged(instance):
                instance.wait_ready()
            ours, theirs = None, self.namespace
            sides = [
                (theirs, ours, "127.0.0.1"), (theirs, ours, "127.0.0.1"),
                (ours, theirs, "127.0.0.1"), (theirs, ours, "::1"),
            ]  # fmt: skip
            for number, (servers, clients, address) in enumerate(sides):
                with self.judged(instance):
                    self.follow(first + number, servers, clients, address)
            with self.judged(instance):
                instance.process.terminate()
                assert instance.wait(2 * SHORT) == 0

    def follow(
        self, port: int, servers: Namespace | None, clients: Namespace | None, address: str
    ) -> None:
        """A server comes, is reached, and goes."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def connected() -> socket.socket | None:
            made = clients.socket(family) if clients else socket.socket(family)
            made.settimeout(SHORT)
            try:
                made.connect((address, port))
            except ConnectionError:
                made.close()
                return None
            return made

        with servers.socket(family) if servers else socket.socket(family) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            server.listen()
            server.settimeout(SHORT)
            exchange(eventually(connected, "it is not forwarded", within=SHORT), server)

        def is_closed() -> bool:
            made = connected()
            if made is not None:
                made.close()
            return made is None

        eventually(is_closed, "it is forwarded still", within=SHORT)

    # --- the control socket -----------------------------------------------------------------------

    def control(self, job: Job) -> None:
        """Requests of all kinds, and a port that comes and goes."""
        instance = self.start(
            job, "-f", *self.runas, "--control", str(self.socket), str(self.namespace.pid)
        )
        first = free_ports(2)
        inbound = {"proto": "tcp", "parentIP": "127.0.0.1", "parentPort": first, "childPort": 80}
        outbound = {"proto": "tcp", "direction": "outbound", "parentPort": first, "childPort": 8080}
        with contextlib.ExitStack() as stack:
            stack.callback(end, instance)
            with self.judged(instance):
                instance.wait_ready()
            for method, path, body, status in (
                ("GET", "/v1/status", None, 200),
                ("GET", "/metrics", None, 200),
                ("POST", "/v1/ports", inbound, 201),
                ("POST", "/v1/ports", outbound, 201),
                ("POST", "/v1/ports", outbound, 400),
                ("DELETE", "/v1/ports/1", None, 200),
                ("DELETE", "/v1/ports/2?flows=reset", None, 200),
                ("GET", "/nowhere", None, 404),
            ):
                with self.judged(instance):
                    assert ask(self.socket, method, path, body) == status, path
            with self.judged(instance):
                instance.process.terminate()
                assert instance.wait(2 * SHORT) == 0

    # --- datagrams --------------------------------------------------------------------------------

    def datagrams(self, job: Job) -> None:
        """Both directions, single datagrams and many at once, a server that comes late, and relays
        that die. The host monitor has no changing ports.
        """
        port = free_ports(3)
        with contextlib.ExitStack() as stack:
            inside = stack.enter_context(self.namespace.datagram_socket(socket.AF_INET))
            inside.bind(("127.0.0.1", 80))
            outside = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            outside.bind(("127.0.0.1", port + 1))
            instance = self.start(
                job, "-f", *self.runas, "-u", f"127.0.0.1/{port}:80", "-u", f"::1/{port}:80",
                "-u", f"127.0.0.1/{port + 2}:79", "-U", f"127.0.0.1/82:{port + 1}",
                "--udp-timeout", "1", str(self.namespace.pid),
            )  # fmt: skip
            stack.callback(end, instance)
            with self.judged(instance):
                instance.wait_ready()
            steps: list[Callable[[], None]] = [
                lambda: answered(self.datagram_client("127.0.0.1", port), inside),
                lambda: answered(self.datagram_client("::1", port), inside),
                lambda: answered(self.datagram_client("127.0.0.1", 82, inside=True), outside),
                lambda: unanswered(self.datagram_client("127.0.0.1", port + 2)),
                lambda: self.many_clients(port, inside),
                lambda: self.batches(instance, port, inside),
                lambda: self.report(instance),
                lambda: self.replace_datagram_relays(instance),
                lambda: answered(self.datagram_client("127.0.0.1", port), inside),
                lambda: answered(self.datagram_client("127.0.0.1", 82, inside=True), outside),
            ]
            for step in steps:
                with self.judged(instance):
                    step()
            with self.judged(instance):
                instance.process.terminate()
                assert instance.wait(2 * SHORT) == 0

    def datagram_client(self, address: str, port: int, *, inside: bool = False) -> socket.socket:
        """A socket that is connected to a port, here or in the namespace."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = (
            self.namespace.datagram_socket(family)
            if inside
            else socket.socket(family, socket.SOCK_DGRAM)
        )
        made.settimeout(SHORT)
        made.connect((address, port))
        return made

    def many_clients(self, port: int, server: socket.socket) -> None:
        """More than a pool has sockets; and flows that end by their lifetime."""
        for _ in range(2):
            for _ in range(40):
                answered(self.datagram_client("127.0.0.1", port), server)

    def batches(self, instance: Instance, port: int, server: socket.socket) -> None:
        """Datagrams of one size that the relay finds waiting for it."""
        relay = datagram_relay(instance, "hs-udp-in")
        with self.datagram_client("127.0.0.1", port) as client:
            client.send(b"first")
            _, peer = server.recvfrom(100)
            for sender, receiver in (
                (client.send, server),
                (lambda data: server.sendto(data, peer), client),
            ):
                os.kill(relay, signal.SIGSTOP)
                eventually(lambda: procfs.stat(relay)[0] in "Tt", "it goes on", within=SHORT)
                for _ in range(8):
                    sender(bytes(1000))
                os.kill(relay, signal.SIGCONT)
                for _ in range(8):
                    assert len(receiver.recv(2000)) == 1000

    def report(self, instance: Instance) -> None:
        """A listener has something in its error queue, as only somebody who was taken over leaves
        there.
        """
        if os.geteuid() != 0:  # others can't get at a listener
            return
        with socket.socket(fileno=descriptor_of(instance.pid, FIRST_LISTENER)) as listener:
            poller = select.poll()
            poller.register(listener, 0)
            when = struct.pack("=I", TX_SOFTWARE)
            wish = [(socket.SOL_SOCKET, SO_TIMESTAMPING, when)]
            listener.sendmsg([b"?"], wish, socket.MSG_DONTWAIT, ("127.0.0.1", 9))
            eventually(lambda: not poller.poll(0), "nobody takes it", within=SHORT)

    def replace_datagram_relays(self, instance: Instance) -> None:
        """Both die, and others take their places."""
        for name in ("hs-udp-in", "hs-udp-out"):
            before = datagram_relay(instance, name)
            os.kill(before, signal.SIGKILL)

            def is_replaced(name: str = name, before: int = before) -> bool:
                with contextlib.suppress(KeyError):
                    return datagram_relay(instance, name) != before
                return False

            eventually(is_replaced, "the relay was not replaced", within=SHORT)
            eventually(lambda: "started again" in self.told(instance), "no word", within=SHORT)

    def datagram_ports(self, job: Job) -> None:
        """Ports of UDP that come and go: by auto, and by the control socket."""
        first = free_ports(4)
        instance = self.start(
            job, "-f", *self.runas, "-u", f"127.0.0.1/auto,{first}", "-u", f"::1/auto,{first + 1}",
            "-U", f"127.0.0.1/auto,{first + 2}", "--control", str(self.socket),
            str(self.namespace.pid),
        )  # fmt: skip
        port = {"proto": "udp4", "parentIP": "127.0.0.1", "parentPort": first + 3, "childPort": 80}
        with contextlib.ExitStack() as stack:
            stack.callback(end, instance)
            with self.judged(instance):
                instance.wait_ready()
            for number, inside, address in (
                (0, False, "127.0.0.1"), (1, False, "::1"), (2, True, "127.0.0.1"),
            ):  # fmt: skip
                with self.judged(instance):
                    self.follow_datagrams(first + number, address, inside=inside)
            for method, path, body, status in (
                ("POST", "/v1/ports", port, 201),
                ("GET", "/v1/ports", None, 200),
                ("GET", "/v1/status", None, 200),
            ):
                with self.judged(instance):
                    assert ask(self.socket, method, path, body) == status, path
            with self.judged(instance):
                instance.process.terminate()
                assert instance.wait(2 * SHORT) == 0

    def follow_datagrams(self, port: int, address: str, *, inside: bool) -> None:
        """A server comes on the other side of a client, is reached, and goes."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = (
            socket.socket(family, socket.SOCK_DGRAM)
            if inside
            else self.namespace.datagram_socket(family)
        )
        with server:
            server.bind((address, port))

            def is_forwarded() -> bool:
                with contextlib.suppress(BlockingIOError):  # what came when it was too late
                    server.setblocking(False)
                    while server.recv(100):
                        pass
                with contextlib.suppress(OSError):
                    answered(self.datagram_client(address, port, inside=inside), server, within=0.5)
                    return True
                return False

            eventually(is_forwarded, "it is not forwarded", within=3 * SHORT)

        def is_closed() -> bool:
            with self.datagram_client(address, port, inside=inside) as client:
                client.settimeout(0.1)
                client.send(b"late")
                with contextlib.suppress(TimeoutError):
                    try:
                        client.recv(10)
                    except ConnectionRefusedError:
                        return True
            return False

        eventually(is_closed, "it is forwarded still", within=3 * SHORT)

    # --- COMMAND ----------------------------------------------------------------------------------

    def command(self, job: Job, use: Callable[[Instance], None] | None = None) -> None:
        """A COMMAND that is sent a signal, has orphans to be reaped, and ends with a status of
        its own.
        """
        # Of two that wait the kernel gives the one with the lower number first.
        traps = "trap : USR1; trap 'exit 7' USR2"
        script = f"{traps}; (sleep 0.05 &); echo up; while :; do sleep 0.05; done"
        read, write = os.pipe()
        with open(read, "rb", buffering=0) as output, contextlib.ExitStack() as stack:
            environment = {**self.environment, VARIABLE: job.dump()}
            arguments = ["-f", "-t", f"127.0.0.1/{free_ports()}:80", "--", "/bin/sh", "-c", script]
            try:
                instance = Instance(
                    self.program, self.identity, arguments, stdout=write, environment=environment
                )
            finally:
                os.close(write)
            stack.callback(end, instance)
            with self.judged(instance):
                instance.wait_ready()
                assert output.read(2) == b"up"
                eventually(lambda: is_locked(instance), "PID 1 is not locked down", within=SHORT)
                if use:
                    use(instance)
                os.killpg(instance.pid, signal.SIGUSR1)
                instance.process.send_signal(signal.SIGUSR2)
                assert instance.wait(2 * SHORT) == 7

    def terminal(self, job: Job, *more: str) -> None:
        """A shell that people type at; the terminal comes back from it."""
        master, slave = pty.openpty()
        if self.identity.uid is not None:
            os.fchown(slave, self.identity.uid, -1)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, master)
            try:
                instance = Instance(
                    AtTerminal(self.program), self.identity, ["-f", *more, "--", "/bin/sh"],
                    stdin=slave, environment={**self.environment, VARIABLE: job.dump()},
                )  # fmt: skip
            finally:
                os.close(slave)
            stack.callback(end, instance)
            with self.judged(instance):
                instance.wait_ready()
                names = {name: pid for pid, name in procfs.names(instance.pid).items()}
                host = names["hs-host"]
                eventually(lambda: os.tcgetpgrp(master) != host, "no shell", within=SHORT)
                (shell,) = procfs.tree(os.tcgetpgrp(master))
                os.kill(shell, signal.SIGSTOP)
                eventually(lambda: procfs.stat(host)[0] in "Tt", "it goes on", within=SHORT)
                os.write(master, b"exit 7\n")
                os.kill(host, signal.SIGCONT)  # and the shell by it
                assert instance.wait(2 * SHORT) == 7

    def terminal_of_changing_ports(self, job: Job) -> None:
        """The same where the host monitor has another policy."""
        self.terminal(job, "-t", f"127.0.0.1/auto,{free_ports()}")

    # --- a namespace's path -----------------------------------------------------------------------

    def path(self, job: Job) -> None:
        """The namespace's loopback interface goes down, of which a client is told; its path goes,
        and hardsplice with it.
        """
        with mounted(self.namespace, self.folder / "net") as path, contextlib.ExitStack() as stack:
            port = free_ports()
            spec = f"127.0.0.1/{port}:[::1]/80"
            instance = self.start(job, "-f", "-t", spec, "--netns", str(path))
            stack.callback(end, instance)
            with self.judged(instance):
                instance.wait_ready()
                stack.callback(set_loopback, self.namespace, "up")
                set_loopback(self.namespace, "down")
                with contextlib.suppress(ConnectionResetError):
                    socket.create_connection(("127.0.0.1", port), SHORT).close()
                down = "the loopback interface is down"
                eventually(lambda: down in self.told(instance), "it isn't told", within=SHORT)
                unmount(path)
                assert instance.wait(2 * SHORT) == 0

    # --- the background ---------------------------------------------------------------------------

    def background(self, job: Job) -> None:
        """Start in the background, and end by a signal."""
        self.pid_file.unlink(missing_ok=True)
        argv, base = self.program.argv(self.identity)
        port = free_ports()
        subprocess.run(
            [*argv, "-P", str(self.pid_file), "-t", f"127.0.0.1/{port}:80",
            str(self.namespace.pid)], env={**base, **self.environment, VARIABLE: job.dump()},
            cwd="/", check=True, timeout=5, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        pid = int(self.pid_file.read_text())
        family = procfs.tree(pid)
        if family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        try:
            _, status = os.waitpid(pid, 0)  # the tests are its subreaper
        finally:
            eventually(lambda: not any(map(procfs.alive, family)), "processes remain", within=3)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS:
            raise Killed("the process in the background")
        assert status == 0, status


def is_locked(instance: Instance) -> bool:
    """Whether PID 1 of the COMMAND has its filter."""
    return any(
        procfs.status(pid)["Name"] == "hs-init" and procfs.status(pid)["Seccomp"] == "2"
        for pid in instance.processes()
    )


def ask(path: Path, method: str, target: str, body: object) -> int:
    """The status with which a request is answered over the control socket."""
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SHORT)
        client.connect(str(path))
        client.sendall(head.encode() + data)
        answer = client.recv(1 << 16)
        assert answer, "no answer"
        return int(answer.split()[1])


# --- connections ----------------------------------------------------------------------------------


def exchange(client: socket.socket, listener: socket.socket) -> None:
    """Bytes both ways, then a half-close, then the other one."""
    with client:
        server = listener.accept()[0]
        with server:
            server.settimeout(SHORT)
            client.sendall(b"there")
            assert server.recv(5) == b"there"
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
            server.sendall(b"back")
            assert client.recv(4) == b"back"
        assert client.recv(1) == b""


def descriptor_of(pid: int, number: int) -> int:
    """A descriptor of ours for what another process has at that number (pidfd_getfd(2))."""
    there = os.pidfd_open(pid)
    try:
        ours = linux.libc.syscall(*map(c_long, (PIDFD_GETFD, there, number, 0)))
    finally:
        os.close(there)
    assert ours >= 0, os.strerror(ctypes.get_errno())
    return int(ours)


def datagram_relay(instance: Instance, name: str) -> int:
    """Its process; KeyError where there is none."""
    return {name: pid for pid, name in procfs.names(instance.pid).items()}[name]


def answered(client: socket.socket, server: socket.socket, within: float = SHORT) -> None:
    """A datagram and its answer."""
    client.settimeout(within)
    server.settimeout(within)
    with client:
        client.send(b"there")
        data, peer = server.recvfrom(100)
        assert data == b"there"
        server.sendto(b"back", peer)
        assert client.recv(100) == b"back"


def unanswered(client: socket.socket) -> None:
    """Nobody is at the target."""
    with client:
        client.settimeout(0.2)
        client.send(b"there")
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            assert client.recv(10) == b"an answer of nobody's"


def urgent(client: socket.socket, listener: socket.socket) -> None:
    """An urgent byte with others before and after it."""
    with client:
        server = listener.accept()[0]
        with server:
            server.settimeout(SHORT)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            client.send(b"before")
            client.send(b"!", socket.MSG_OOB)
            client.send(b"after")
            client.shutdown(socket.SHUT_WR)
            got = b""
            while piece := server.recv(100):
                got += piece
            assert got == b"before!after", got


def refused(connect: Callable[[], socket.socket]) -> None:
    """Nobody listens at the target: a reset, which may come before connect(2) has returned."""
    with contextlib.suppress(ConnectionResetError), connect() as client:
        assert client.recv(1) != b"", "a clean end"


def blocked(client: socket.socket, listener: socket.socket) -> None:
    """A server that reads late: the bytes wait in a pipe."""
    with client:
        server = listener.accept()[0]
        with server:
            sent = fill(client)
            server.settimeout(SHORT)
            client.settimeout(SHORT)
            client.shutdown(socket.SHUT_WR)
            got = 0
            while piece := server.recv(1 << 20):
                got += len(piece)
            assert got == sent, (got, sent)


def broken(client: socket.socket, listener: socket.socket) -> None:
    """A reset from a client whose bytes the server has not taken."""
    server = listener.accept()[0]
    with server:
        fill(client)
        reset(client)
        server.settimeout(SHORT)
        with contextlib.suppress(ConnectionResetError):
            while server.recv(1 << 20):
                pass


def fill(client: socket.socket) -> int:
    """Send until nothing more fits; how much did."""
    sent = 0
    client.settimeout(0.05)
    with contextlib.suppress(TimeoutError):
        while sent < 1 << 26:
            sent += client.send(bytes(1 << 18))
    return sent
