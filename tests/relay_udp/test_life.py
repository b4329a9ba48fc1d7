# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports of UDP in a running hardsplice: at the start, at run time and by `auto`; what is shown of
them; and the processes that serve them, from their late start to their end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hardsplice.ctl import show
from hardsplice.ctl.client import Client, RefusedError
from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, free_ports
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
Launch = Callable[..., Instance]
RELAYS = {"inbound": "hs-udp-in", "outbound": "hs-udp-out"}
OPTIONS = {"inbound": ("-t", "-u"), "outbound": ("-T", "-U")}
SHORT = 0.3  # seconds for an answer that may not come


class Echo:
    """A server that answers each datagram with the same behind its own name."""

    def __init__(self, place: Namespace | None, port: int, name: str = "") -> None:
        self.socket = udp(place)
        self.socket.bind(("127.0.0.1", port))
        self.name = name.encode()
        self.heard: list[bytes] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            data, client = self.socket.recvfrom(65535)
            if data == b"\0":
                return
            self.heard.append(data)
            with contextlib.suppress(OSError):
                self.socket.sendto(self.name + data, client)

    def close(self) -> None:
        self.socket.sendto(b"\0", self.socket.getsockname())
        self.thread.join(PATIENCE)
        self.socket.close()

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def udp(place: Namespace | None) -> socket.socket:
    if place is not None:
        return place.datagram_socket(socket.AF_INET)
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def asked(place: Namespace | None, port: int, data: bytes = b"ping") -> bytes | None:
    """The answer to a new client's datagram; None where there is none."""
    with udp(place) as client:
        client.settimeout(SHORT)
        client.connect(("127.0.0.1", port))
        try:
            client.send(data)
            return client.recv(65535)
        except (TimeoutError, ConnectionRefusedError):
            return None


def answers(place: Namespace | None, port: int, wanted: bytes = b"ping") -> None:
    """A new client gets its answer, be it after a while."""
    eventually(lambda: asked(place, port) == wanted, f"port {port} is not forwarded")


def names(instance: Instance) -> list[str]:
    """The names of its processes, COMMAND left out."""
    found = procfs.names(instance.pid).values()
    return sorted(name for name in found if name.startswith("hs-"))


def relays_shown(client: Client) -> dict[str, tuple[int, int]]:
    """How many relays each direction has, of TCP and of UDP; those of both are the sum."""
    shown = client.get("/v1/status")["directions"]
    found = {}
    for direction, of in shown.items():
        found[direction] = of["protocols"]["tcp"]["relays"], of["protocols"]["udp"]["relays"]
        assert of["relays"] == sum(found[direction])
    return found


@pytest.fixture
def start(launch: Launch, identity: Identity, namespace: Namespace) -> Callable[..., Instance]:
    """Start an instance for the namespace."""

    def start(*arguments: str) -> Instance:
        return launch(identity, "-f", *arguments, str(namespace.pid)).wait_ready()

    return start


@pytest.fixture
def port() -> int:
    return free_ports(2)


@pytest.fixture
def control(user_directory: Path) -> str:
    """The path of a control socket."""
    return str(user_directory / "control")


@pytest.fixture
def client(control: str) -> Iterator[Client]:
    with contextlib.closing(Client(control)) as made:
        yield made


def ends(direction: str, namespace: Namespace) -> tuple[Namespace | None, Namespace | None]:
    """Where clients and servers of a direction are."""
    return (None, namespace) if direction == "inbound" else (namespace, None)


# --- at the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_udp_has_a_relay_of_its_own_and_nothing_of_tcp_s(
    start: Callable[..., Instance], namespace: Namespace, port: int, direction: str
) -> None:
    clients, servers = ends(direction, namespace)
    with Echo(servers, port + 1):
        instance = start(OPTIONS[direction][1], f"127.0.0.1/{port}:{port + 1}")
        assert asked(clients, port) == b"ping"
        assert names(instance) == sorted(["hs-host", "hs-namespace", RELAYS[direction]])


def test_without_udp_there_is_no_process_for_it(
    start: Callable[..., Instance], port: int, control: str, client: Client
) -> None:
    """Nor where a port may come at run time, nor does anything show one."""
    instance = start("-t", f"127.0.0.1/{port}:80", "--control", control)
    assert names(instance) == ["hs-host", "hs-namespace", "hs-relay-in", "hs-relay-out"]
    assert relays_shown(client) == {"inbound": (1, 0), "outbound": (1, 0)}
    assert not any(
        "UDP" in line or " udp" in line for line in show.status(client.get("/v1/status"))
    )
    assert 'protocol="udp"' not in client.text("/metrics")


def test_one_number_is_two_ports(
    start: Callable[..., Instance], namespace: Namespace, port: int
) -> None:
    both = (f"127.0.0.1/{port}:{port + 1}",) * 2
    instance = start("-t", both[0], "-u", both[1])
    with Echo(namespace, port + 1), namespace.socket(socket.AF_INET) as server:
        server.bind(("127.0.0.1", port + 1))
        server.listen()
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
            assert asked(None, port) == b"ping"
    assert names(instance) == ["hs-host", "hs-namespace", "hs-relay-in", "hs-udp-in"]


def test_a_port_that_is_taken_is_said_with_what_finds_the_taker(
    launch: Launch, identity: Identity, namespace: Namespace, port: int
) -> None:
    with udp(None) as taker:
        taker.bind(("127.0.0.1", port))
        instance = launch(identity, "-f", "-u", f"127.0.0.1/{port}:53", str(namespace.pid))
        assert instance.wait() == 1
    said = instance.messages()
    assert f"cannot listen on 127.0.0.1 UDP port {port} on the host" in said
    assert f"ss -lunp 'sport = :{port}'" in said


@pytest.mark.parametrize("workers", [2, 3])
def test_each_port_is_one_relay_s(
    start: Callable[..., Instance], namespace: Namespace, port: int, workers: int
) -> None:
    """A relay that would have none isn't there."""
    with Echo(namespace, 53):
        spec = f"127.0.0.1/{port}:53,{port + 1}:53"
        instance = start("-u", spec, "--workers", str(workers))
        assert asked(None, port) == asked(None, port + 1) == b"ping"
    assert names(instance).count("hs-udp-in") == 2


# --- at run time ----------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_a_port_comes_and_goes(
    start: Callable[..., Instance],
    namespace: Namespace,
    port: int,
    client: Client,
    control: str,
    direction: str,
) -> None:
    """With the first one comes its relay."""
    clients, servers = ends(direction, namespace)
    instance = start("--control", control)
    first, second = (port, port + 1) if direction == "inbound" else (port + 1, port)
    request: dict[str, object] = {
        "proto": "udp", "parentIP": "127.0.0.1", "parentPort": first, "childIP": "127.0.0.1",
        "childPort": second, "direction": direction,
    }  # fmt: skip
    with Echo(servers, port + 1):
        for _ in range(3):
            added = client.add(request)
            shown = {**added["spec"], "direction": added["direction"]}
            assert shown == request
            answers(clients, port)
            assert names(instance).count(RELAYS[direction]) == 1
            assert relays_shown(client)[direction] == (1, 1)
            assert f'direction="{direction}",protocol="udp"' in client.text("/metrics")
            client.remove(int(str(added["id"])), reset_flows=False)
            eventually(lambda: asked(clients, port) is None, "it is still forwarded")


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_a_port_that_was_removed_can_be_had_again_at_once(
    start: Callable[..., Instance], client: Client, control: str, port: int, direction: str
) -> None:
    """Although the relay that has its socket is told of it by a record."""
    start("--control", control)
    request = {"proto": "udp", "parentPort": port, "childPort": port, "direction": direction}
    for _ in range(100):
        client.remove(int(client.add(request)["id"]), reset_flows=False)


def test_what_the_port_api_calls_udp4_is_of_ipv4(
    start: Callable[..., Instance], client: Client, control: str, port: int
) -> None:
    start("--control", control)
    assert "udp6" in client.get("/v1/info")["portDriver"]["protos"]
    added = client.add({"proto": "udp4", "parentPort": port, "childPort": 53})
    assert added["spec"]["proto"] == "udp4"
    with udp(None) as other, pytest.raises(OSError, match="in use"):
        other.bind(("0.0.0.0", port))
    with pytest.raises(RefusedError, match="already"):
        client.add({"proto": "udp4", "parentPort": port, "childPort": 54})
    client.add({"proto": "tcp", "parentPort": port, "childPort": 53})


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_auto_follows_sockets_that_are_bound(
    start: Callable[..., Instance], namespace: Namespace, port: int, direction: str
) -> None:
    clients, servers = ends(direction, namespace)
    with Echo(servers, port):
        start(OPTIONS[direction][1], f"auto,{port}-{port + 1}")
        assert asked(clients, port) == b"ping", "it was there at the start"
        with Echo(servers, port + 1, "late "):
            answers(clients, port + 1, b"late ping")

    def is_free() -> bool:
        with udp(clients) as one, contextlib.suppress(OSError):
            one.bind(("0.0.0.0", port + 1))
            return True
        return False

    eventually(is_free, "it is still listened on")


# --- what is shown --------------------------------------------------------------------------------


def test_flows_and_counters_say_that_they_are_of_udp(
    start: Callable[..., Instance], namespace: Namespace, port: int, client: Client, control: str
) -> None:
    instance = start(
        "-u", f"127.0.0.1/{port}:53", "-t", f"127.0.0.1/{port}:53", "--control", control,
        "--log-flows", "--udp-stream-timeout", "1",
    )  # fmt: skip
    with Echo(namespace, 53, "re: "):
        assert asked(None, port) == b"re: ping"

        def flow() -> tuple[Any, ...]:
            (one,) = client.get("/v1/flows")["flows"]
            return tuple(
                one[name]
                for name in ("protocol", "state", "direction", "bytesToTarget", "bytesToClient")
            )

        # An answer is counted once it was sent, so that its client may have it a little earlier.
        expected = ("udp", "established", "inbound", 4, 8)
        eventually(lambda: flow() == expected, "it isn't shown as answered")
    counters = client.get("/v1/status")["directions"]["inbound"]["counters"]
    assert (counters["datagrams_to_target"], counters["datagrams_to_client"]) == (1, 1)
    text = client.text("/metrics")
    assert 'datagrams_total{namespace="' in text
    assert 'protocol="tcp",relay="0",to="target"} 1' not in text
    eventually(lambda: ", expired" in instance.messages(), "its end isn't in the log")
    assert f"inbound, 127.0.0.1 UDP port {port}: 127.0.0.1:" in instance.messages()
    assert client.get("/v1/flows")["flows"] == []


# --- the relay's life -----------------------------------------------------------------------------


def test_while_a_relay_is_replaced_datagrams_wait(
    start: Callable[..., Instance], namespace: Namespace, port: int
) -> None:
    instance = start("-u", f"127.0.0.1/{port}:53")
    with Echo(namespace, 53) as echo, udp(None) as client:
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", port))
        client.send(b"one")
        assert client.recv(9) == b"one"
        found = procfs.names(instance.pid).items()
        (relay,) = (pid for pid, name in found if name == "hs-udp-in")
        os.kill(relay, signal.SIGSTOP)
        client.send(b"two")
        time.sleep(0.1)
        assert echo.heard == [b"one"]
        os.kill(relay, signal.SIGKILL)
        assert client.recv(9) == b"two", "by a flow of the next relay's"
    assert "inbound UDP: the relay was started again: killed by SIGKILL" in instance.messages()


@pytest.mark.parametrize("seconds", ["0", "5"])
def test_it_ends_when_told_to(
    start: Callable[..., Instance], namespace: Namespace, port: int, seconds: str
) -> None:
    """With --drain, once no flow is left."""
    more = ("--drain", seconds, "--udp-stream-timeout", "1") if seconds != "0" else ()
    instance = start("-u", f"127.0.0.1/{port}:53", *more)
    with Echo(namespace, 53):
        with udp(None) as client:
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", port))
            client.send(b"one")
            assert client.recv(9) == b"one"
            began = time.monotonic()
            os.kill(instance.pid, signal.SIGTERM)
            if more:
                eventually(lambda: "ending: " in instance.messages(), "it isn't ending")
                client.send(b"two")
                assert client.recv(9) == b"two", "a flow that is there goes on"
        assert instance.wait() == 0
    assert time.monotonic() - began < 4
    ended = (1, 0) if more else (0, 1)
    assert (
        "ended; flows of UDP that finished meanwhile: {}, that were broken off: {}".format(*ended)
        in instance.messages()
    )
