# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that was taken over abuses its channel: whoever listens there must come to no harm.

The one above a relay ends it, holds none of the descriptors that it was sent, and starts a clean
one. What comes from the namespace monitor or from PID 1 of a COMMAND may end hardsplice, but with a
line that says why.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator

import pytest

from tests.sandbox import actions
from tests.sandbox.captured import Captured, end, folder_for
from tests.sandbox.job import VARIABLE, Board, Job
from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture(scope="module")
def captured() -> Iterator[Captured]:
    program = Captured()
    yield program
    program.close()


class Running:
    """A product that serves both directions, one process of which waits for the word."""

    def __init__(
        self,
        instance: Instance,
        board: Board,
        port: int,
        servers: list[socket.socket],
        datagram_server: socket.socket | None = None,
    ) -> None:
        """`datagram_server` is in the namespace, where UDP is forwarded too."""
        self.instance, self.board, self.port = instance, board, port
        self.inside, self.host = servers
        self.datagram_server = datagram_server

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """Through the inbound relay."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        self.inside.settimeout(PATIENCE)
        return client, self.inside.accept()[0]

    def exchange(self) -> None:
        """A connection works. Earlier ones that nobody waits for any more may come first."""
        self.inside.settimeout(PATIENCE)
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as client:
            client.sendall(b"there")
            while True:
                with self.inside.accept()[0] as server:
                    server.settimeout(PATIENCE)
                    with contextlib.suppress(ConnectionResetError):
                        if server.recv(5) == b"there":
                            server.sendall(b"back")
                            assert client.recv(4) == b"back"
                            return

    def exchange_datagrams(self) -> None:
        """A new client's datagram is answered; earlier clients may come first."""
        server = self.datagram_server
        assert server is not None
        server.settimeout(PATIENCE)
        with self._datagram_client(self.port) as client:
            client.settimeout(PATIENCE)
            there = b"there %d" % client.getsockname()[1]
            client.send(there)
            while True:
                data, peer = server.recvfrom(100)
                if data == there:
                    break
            server.sendto(b"back", peer)
            assert client.recv(100) == b"back"

    @staticmethod
    def _datagram_client(port: int) -> socket.socket:
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.connect(("127.0.0.1", port))
        return client

    def forget(self) -> None:
        """Connections that a relay made, and nobody will hear of any more."""
        self.inside.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.inside.accept()[0].close()

    def poke(self) -> None:
        """Make the relay's loop turn, and have it report a refusal."""
        for port in (self.port, self.port + 2):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), timeout=1),
            ):
                pass
            if self.datagram_server is not None:
                with contextlib.suppress(OSError), self._datagram_client(port) as client:
                    client.send(b"poked")

    def go(self) -> None:
        """Say the word, and wait until the process has acted."""
        self.board.go = True

        def acted() -> bool:
            self.poke()
            return bool(self.board.text) or self.instance.process.poll() is not None

        eventually(acted, lambda: f"it did not act; {self.instance.messages()}", within=3)


@contextlib.contextmanager
def running(
    captured: Captured, identity: Identity, role: str, action: str, *more: str,
    descriptors: int | None = None, udp: bool = False,
) -> Iterator[Running]:  # fmt: skip
    """The product with a process that will act; it forwards UDP too where `udp` says so, or the
    process is a relay of that.
    """
    udp = udp or role.startswith("udp")
    board, path = captured.board()
    port = free_ports(3)
    job = Job(board=path, role=role, action=action)
    with contextlib.ExitStack() as stack:
        stack.callback(board.close)
        namespace = stack.enter_context(Namespace(identity))
        inside = stack.enter_context(namespace.socket(socket.AF_INET))
        inside.bind(("127.0.0.1", 80))
        inside.listen()
        host = stack.enter_context(socket.create_server(("127.0.0.1", port + 1)))
        arguments = ["-f", *more]
        datagram_server = None
        for inbound, outbound in (("-t", "-T"), ("-u", "-U")) if udp else (("-t", "-T"),):
            arguments += [inbound, f"127.0.0.1/{port}:80", outbound, f"127.0.0.1/82:{port + 1}"]
            arguments += [inbound, f"127.0.0.1/{port + 2}:79"]  # nobody listens at 79
        arguments += [str(namespace.pid)]
        if udp:
            datagram_server = stack.enter_context(namespace.datagram_socket(socket.AF_INET))
            datagram_server.bind(("127.0.0.1", 80))
        instance = Instance(
            captured,
            identity,
            arguments,
            environment={VARIABLE: job.dump()},
            descriptors=descriptors,
        )
        stack.callback(end, instance)
        instance.wait_ready()
        yield Running(instance, board, port, [inside, host], datagram_server)


def monitors(instance: Instance) -> dict[int, list[str]]:
    """What the processes that keep relays hold, by pid: kinds of descriptors.

    Only root may look, as they are not dumpable; for others the lists are empty.
    """
    family = instance.processes()
    relays = procfs.leaves(family)  # of this very moment: they come and go
    descriptors = procfs.each(held, (pid for pid in family if pid not in relays))
    return {
        pid: sorted(what.partition(":[")[0] for what in found.values())
        for pid, found in descriptors.items()
    }


def kept(instance: Instance) -> dict[int, list[str]]:
    """What they hold while they do nothing; otherwise sockets may be on their way to a relay."""
    eventually(lambda: settled(instance), "they don't settle")
    return monitors(instance)


def held(pid: int) -> dict[int, str]:
    return procfs.descriptors(pid) if os.geteuid() == 0 else {}


# Of a datagram relay's abuse a selection: whoever takes it is the same for both.
_OF_DATAGRAMS = (
    "a record without a byte",
    "a record far too long",
    "a flood of nonsense",
    "a record of kind READY_PLACING",
    "a record of kind OPENED",
    "too many sockets",
    "sockets of no family",
    "orders of both families again and again",
    "a note that is the monitor's own",
    "the end of a flow that nobody asked for",
    "as many descriptors as are taken",
    "a flood of descriptors",
)
_TOLERATED_OF_DATAGRAMS = ("a flood of notes", "a flood of yields", "an escape in a note")


def by_relays(of_tcp: Iterable[str], of_udp: Iterable[str]) -> list[tuple[str, str]]:
    """A relay of each protocol, with what it does."""
    return [*(("relay-in", one) for one in of_tcp), *(("udp-in", one) for one in of_udp)]


@pytest.mark.parametrize(("role", "action"), by_relays(actions.FORBIDDEN, _OF_DATAGRAMS))
def test_a_relay_that_breaks_the_protocol_is_replaced(
    captured: Captured, role: str, action: str
) -> None:
    identity = Identity("root" if os.geteuid() == 0 else "user")
    with running(captured, identity, role, action) as product:
        exchange = product.exchange_datagrams if role == "udp-in" else product.exchange
        exchange()
        before, relays = kept(product.instance), product.instance.relays()
        product.go()
        eventually(
            lambda: (
                len(set(product.instance.relays()) - set(relays)) == 1
                and len(product.instance.relays()) == len(relays)
            ),
            lambda: f"the relay was not replaced; {product.instance.messages()}",
            within=3,
        )
        product.exchange()
        exchange()
        eventually(lambda: monitors(product.instance) == before, "they hold more, or less")
        eventually(
            lambda: "the relay was started again" in product.instance.messages(), "no word of it"
        )
        product.instance.stop()


@pytest.mark.parametrize(("role", "action"), by_relays(actions.TOLERATED, _TOLERATED_OF_DATAGRAMS))
def test_a_relay_that_talks_too_much_harms_nobody(
    captured: Captured, role: str, action: str
) -> None:
    identity = Identity("root" if os.geteuid() == 0 else "user")
    with running(captured, identity, role, action) as product:
        before = product.instance.processes()
        product.go()
        held = monitors(product.instance)
        assert set(held) <= set(before)
        eventually(
            lambda: max(map(len, monitors(product.instance).values())) < 40, "descriptors stay"
        )
        assert "\x1b" not in product.instance.messages()
        assert product.instance.process.poll() is None
        product.instance.stop()


@pytest.mark.parametrize("role", ["relay-in", "udp-in"])
def test_sockets_that_are_asked_for_and_not_fetched(
    captured: Captured, identity: Identity, role: str
) -> None:
    """Descriptors under way in a channel count as their sender's user's, up to its RLIMIT_NOFILE
    (unix(7)).
    """
    action = "orders that are not fetched"
    with running(captured, identity, role, action, descriptors=256) as product:
        before = product.instance.processes()
        product.go()
        eventually(
            lambda: (
                product.instance.process.poll() is not None
                or settled(product.instance, but_relays=True)
            ),
            "it does not settle",
            within=3,
        )
        assert product.instance.process.poll() is None, product.instance.messages()
        assert set(monitors(product.instance)) <= set(before)
        if role == "udp-in":
            product.exchange()
        product.instance.stop()


@pytest.mark.parametrize(
    ("role", "action"),
    by_relays(
        actions.ENDLESS,
        ["orders for ever", "orders for ever, and takes what it gets", "notes for ever"],
    ),
)
def test_a_relay_that_never_stops_talking_keeps_nobody_else_from_service(
    captured: Captured, identity: Identity, role: str, action: str
) -> None:
    """Neither the other relays of its direction, whom the same monitor supplies, nor whoever asks
    at the control socket, nor who ends hardsplice.
    """
    with (
        folder_for(identity) as folder,
        running(
            captured, identity, role, action,
            *("--workers", "2", "--log-flows", "--control", str(folder / "control")),
        ) as product,
    ):  # fmt: skip
        product.exchange()
        product.go()
        product.forget()
        for _ in range(100):  # more than the pools have
            product.exchange()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(folder / "control"))
            client.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(4096).startswith(
                b"HTTP/1.1 "
            )  # root is not heard by an ordinary user's
        product.instance.stop()


def settled(instance: Instance, *, but_relays: bool = False) -> bool:
    """Whether its processes sleep, or all but its relays."""
    with contextlib.suppress(ProcessLookupError):
        family = monitors(instance) if but_relays else instance.processes()
        return procfs.usage(family, 0.1) == procfs.Usage(0, 0)
    return False


def test_a_socket_that_lingers_does_not_hold_the_monitor_up(
    captured: Captured, identity: Identity
) -> None:
    """Whoever closes the last descriptor of a socket with SO_LINGER waits until its bytes are
    gone. No value can be set that would make that long.
    """
    with running(captured, identity, "relay-in", "lingering") as product:
        client, server = product.connection()
        with client, server:
            client.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                while True:  # until nothing more fits between the two
                    client.send(bytes(1 << 16))
            product.go()
            eventually(
                lambda: "the relay was started again" in product.instance.messages(),
                lambda: f"the monitor is held up; {product.instance.messages()}",
                within=3,
            )
        product.instance.stop()


# What is said to the host monitor, by those that it trusts a little: a selection.
_UPWARD = [
    "a record without a byte",
    "a record of one byte",
    "a record that is cut short",
    "a record far too long",
    "an unknown kind",
    "a descriptor beside a note",
    "a descriptor beside READY",
    "a descriptor beside nonsense",
    "more descriptors than are taken",
    "a flood of descriptors",
    "READY again",
    "READY again and again",
    "last words again",
    "last words about something else",
    "last words with a next step of its own",
    "last words of PID 1 with a next step of its own",
    "an answer that nobody asked for",
    "the end of a flow that nobody asked for",
    "a trace that nobody asked for",
    "a flood of notes",
    "a flood of yields",
    "a note with wild numbers",
    "an escape in a note",
    "an escape in a note about UDP",
    "a flood of notes about UDP",
]
# Of these PID 1 may say nothing at all, and the namespace monitor what its relays may.
_UPWARD_TOLERATED = (
    "a flood of notes",
    "an escape in a note",
    "an escape in a note about UDP",
    "a flood of notes about UDP",
)
# What looks like the end of file.
_HANGS_UP = "a record without a byte"


def ended_well(instance: Instance, family: list[int]) -> None:
    """It ended with a line that says why, not with an error that nobody foresaw, and nothing is
    left.
    """
    said = instance.messages()
    assert said.startswith("hardsplice: ")
    assert "Error in " not in said
    assert "MalformedError" not in said
    assert "a line of mine" not in said
    eventually(lambda: not any(map(procfs.alive, family)), "processes remain", within=3)


@pytest.mark.parametrize(
    "action",
    _UPWARD,
)
def test_what_init_says(captured: Captured, action: str) -> None:
    """PID 1 lives beside COMMAND. It may end hardsplice, but leaves nothing in the host monitor's
    hands.
    """
    board, path = captured.board()
    identity = Identity("root" if os.geteuid() == 0 else "user")
    job = Job(board=path, role="init", action=action)
    board.go = True  # it acts as soon as it is locked down
    instance = Instance(
        captured, identity, ["-f", "--", "sleep", "1000"], environment={VARIABLE: job.dump()}
    )
    with contextlib.ExitStack() as stack:
        stack.callback(board.close)
        stack.callback(end, instance)
        eventually(lambda: board.text, lambda: f"it did not act; {instance.messages()}", within=3)
        eventually(
            lambda: instance.process.poll() is not None or settled(instance), "no rest", within=3
        )
        if action == _HANGS_UP:
            instance.process.terminate()  # it has no way left to say that it passes this on
        assert instance.wait(3) == 1
        ended_well(instance, [])


_ANSWERS = [f"a record of kind {kind}" for kind in ("OPENED", "SERVED", "CLOSED", "OPEN", "SERVE")]
_NO_ANSWERS = [*_ANSWERS, "a descriptor beside OPENED", "an unknown kind", "a record of one byte"]
_AUTO = ["-t", "auto,1-2", "-T", "auto,1-2"]


@pytest.mark.parametrize(
    ("action", "more"),
    [
        *((action, []) for action in _UPWARD),
        *((action, _AUTO) for action in _NO_ANSWERS),
    ],
    ids=lambda value: {"[]": "", str(_AUTO): "auto"}.get(str(value), str(value)),
)
def test_what_the_namespace_monitor_says(captured: Captured, action: str, more: list[str]) -> None:
    """It ends hardsplice, with a line and status 1, or does nothing; the host monitor itself
    never stumbles. Where ports may change, answers that nobody waits for are no more believed.
    """
    identity = Identity("root" if os.geteuid() == 0 else "user")
    with running(captured, identity, "namespace", action, *more) as product:
        if not more:  # with auto it scans every now and then, and never settles
            # Until then it may hold sockets that it has made for its relay, and is about to send.
            eventually(lambda: settled(product.instance), "it does not settle", within=3)
        before = monitors(product.instance)[product.instance.pid]
        family = product.instance.processes()
        product.go()
        eventually(
            lambda: product.instance.process.poll() is not None or settled(product.instance),
            "it does not settle",
            within=3,
        )
        status = product.instance.process.poll()
        assert status == 1 or action in (*_UPWARD_TOLERATED, _HANGS_UP)
        if status is None:
            assert monitors(product.instance)[product.instance.pid] == before
            product.instance.stop()
        else:
            assert status == 1
            ended_well(product.instance, family)


@pytest.mark.parametrize("action", [*actions.FORBIDDEN, *actions.TOLERATED])
def test_each_abuse_reaches_whoever_does_not_look(action: str) -> None:
    """A receiver that takes anything gets the very records: they are what their names say."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        {**actions.FORBIDDEN, **actions.TOLERATED}[action](theirs.fileno())
        packet, fds, _, _ = socket.recv_fds(ours, 1 << 20, 253)
        for fd in fds:
            os.close(fd)
        assert packet or "no byte" in action or "without a byte" in action
        assert bool(fds) == ("descriptor" in action)
