# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket's server, on a real loop with real sockets: what hostile peers may send, how
they may be slow, and how many they may be. The host monitor behind it is a fake.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import json
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardsplice.control import server as module
from hardsplice.control.http import BODY_LIMIT, LINE_LIMIT, Request, Response
from hardsplice.control.server import CONNECTIONS, Admission, Respond
from hardsplice.ipc import loop
from hardsplice.kernel import socketcalls
from tests.support.clock import FakeClock
from tests.unit.control.served import ANSWER, PATIENCE, Served

GET = b"GET /v1/audit HTTP/1.1\r\nHost: a\r\n\r\n"
SPEC = json.dumps({"proto": "tcp", "parentPort": 8080, "childPort": 80}).encode()
POST = b"POST /v1/ports HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(SPEC) + SPEC


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Nobody is late before a test says so."""
    clock = FakeClock()
    for name in (module, loop):
        monkeypatch.setattr(name, "time", clock)
    return clock


@pytest.fixture
def served(tmp_path: Path, clock: FakeClock) -> Iterator[Served]:
    made = Served(tmp_path / "control", clock=clock)
    try:
        yield made
        made.large = None
        assert made.ask() == ANSWER  # whatever happened, it serves
    finally:
        made.close()


def read_all(client: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            found += data
    return found


def statuses(data: bytes) -> list[int]:
    """The statuses of the answers in a stream."""
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


def receive(client: socket.socket, number: int) -> list[int]:
    """The statuses of so many answers."""
    data = b""
    while len(statuses(data)) < number or not data.endswith((b"}", b"\r\n\r\n")):
        data += client.recv(65536)
    return statuses(data)


def send_all(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(data)


def send_what_is_taken(client: socket.socket, data: bytes) -> bool:
    """Send as much as there is room for; whether that was all."""
    client.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        while sent < len(data):
            sent += client.send(data[sent : sent + (1 << 16)])
    client.settimeout(PATIENCE)
    return sent == len(data)


def is_leaving(served: Served) -> bool:
    """Whether the only client was refused, and has a moment to take note of it."""
    return all(one.leaving and not one.unwritten for one in served.server.connections.values())


# --- requests -------------------------------------------------------------------------------------


def test_one_connection_serves_many_requests(served: Served) -> None:
    connection = http.client.HTTPConnection("a")
    connection.sock = served.connect()
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("POST", "/v1/ports", SPEC)
            answer = connection.getresponse()
            port = json.loads(answer.read())
            assert answer.status == 201
            connection.request("DELETE", f"/v1/ports/{port['id']}")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"")
        assert len(served.server.connections) == 1


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    with served.connect() as client:
        last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        send_all(client, GET + POST + POST + GET * 200 + last)
        assert statuses(read_all(client)) == [200, 201, 400] + [200] * 201


def test_a_request_byte_by_byte(served: Served) -> None:
    with served.connect() as client:
        for at in range(len(GET)):
            client.sendall(GET[at : at + 1])
        assert receive(client, 1) == [200]


def test_expect_is_answered_at_once(served: Served) -> None:
    with served.connect() as client:
        head = POST.removesuffix(SPEC).replace(b"Host: a", b"Host: a\r\nExpect: 100-continue")
        client.sendall(head)
        assert receive(client, 1) == [100]
        client.sendall(SPEC)
        assert receive(client, 1) == [201]


def test_an_answer_that_comes_later(served: Served) -> None:
    """Meanwhile others are served, and what the same peer sends waits."""
    served.world.ports.worker.later = []
    with served.connect() as client:
        client.sendall(POST)
        served.until(lambda: served.world.ports.worker.later, "nobody asked")
        client.sendall(GET)
        assert served.ask() == ANSWER
        assert not select.select([client], (), (), 0)[0]
        served.run(served.world.ports.worker.later[0])
        assert receive(client, 2) == [201, 200]


def test_an_answer_that_comes_when_nobody_waits_any_more(served: Served) -> None:
    served.world.ports.worker.later = []
    with served.connect() as client:
        client.sendall(POST)
        served.until(lambda: served.world.ports.worker.later, "nobody asked")
    served.until(lambda: not served.server.connections, "it is still there")
    served.run(served.world.ports.worker.later[0])
    served.world.ports.worker.later = None
    assert json.loads(served.ask("GET", "/v1/ports"))  # it was done all the same


def test_a_peer_that_ends_its_own_half_gets_its_answers(served: Served) -> None:
    with served.connect() as client:
        client.sendall(GET * 3)
        client.shutdown(socket.SHUT_WR)
        assert statuses(read_all(client)) == [200] * 3


def test_head_has_no_body(served: Served) -> None:
    with served.connect() as client:
        client.sendall(GET.replace(b"GET", b"HEAD") + GET)
        data = b""
        while not data.endswith(ANSWER):
            data += client.recv(4096)
        assert statuses(data) == [200, 200]
        assert data.count(ANSWER) == 1


def test_the_largest_body_is_taken(served: Served) -> None:
    body = SPEC + b" " * (BODY_LIMIT - len(SPEC))
    assert json.loads(served.ask("POST", "/v1/ports", body))["id"] == 1


# --- who ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "namespace"), [(frozenset({1 << 30}), None), (frozenset({os.geteuid()}), 1)]
)
def test_a_peer_that_is_not_admitted_is_told_so(
    tmp_path: Path, clock: FakeClock, users: frozenset[int], namespace: int | None
) -> None:
    served = Served(tmp_path / "control", Admission(users, namespace), clock)
    with contextlib.closing(served), served.connect() as client:
        data = read_all(client)
        assert statuses(data) == [403]
        assert b"connect as that user" in data or b"network namespace" in data
        assert served.server.refused == 1
        assert served.server.connections, "the answer would be lost"
        served.forward(module.LEAVE_SECONDS)
        assert not served.server.connections


def test_admission() -> None:
    admission = Admission(frozenset({0, 1000}), 7)
    assert admission.objection(1000, 7) is None
    assert admission.objection(0, 7) is None
    assert "user" in (admission.objection(65534, 7) or "")
    assert "namespace" in (admission.objection(1000, 8) or "")
    assert "namespace" in (admission.objection(1000, None) or "")
    assert Admission(frozenset({0}), None).objection(0, None) is None


def test_admission_from_the_namespace() -> None:
    """A third one is refused still, and so is one that the kernel doesn't tell of."""
    admission = Admission(frozenset({1000}), 7, served=8)
    assert admission.objection(1000, 7) is None
    assert admission.objection(1000, 8) is None
    assert "namespace" in (admission.objection(1000, 9) or "")
    assert "namespace" in (admission.objection(1000, None) or "")
    assert "user" in (admission.objection(0, 8) or "")
    assert [admission.is_inside(one) for one in (7, 8, 9, None)] == [False, True, False, False]
    # The host's own namespace, served by its path, is no less the host's.
    assert not Admission(frozenset({1000}), 7, served=7).is_inside(7)


def test_peers_are_known_by_id_and_namespace() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert socketcalls.peer_user(ours.fileno()) == os.geteuid()
        cookies = {socketcalls.namespace_cookie(one.fileno()) for one in (ours, theirs)}
        assert len(cookies) == 1
    assert socketcalls.namespace_cookie(-1) is None
    assert socketcalls.peer_user(-1) == -1


# --- hostile peers --------------------------------------------------------------------------------

_LONG = b"x" * (1 << 20)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n", 400),  # TLS
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", 400),
        (b"hello\n", 400),
        (b"\0" * (LINE_LIMIT + 2), 414),
        (b"GET /" + _LONG, 414),
        (GET[:-2] + b"A: " + _LONG, 431),
        (b"POST /v1/ports HTTP/1.1\r\nHost: a\r\nContent-Length: 999999\r\n\r\n" + _LONG, 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 501),
        (b"POST /v1/ports HTTP/1.1\r\nHost: a\r\n\r\n", 411),
    ],
    ids=["TLS", "SSH", "a line", "NULs", "long path", "long field", "long body", "chunked", "none"],
)
def test_what_is_no_request_is_an_error_and_a_close(
    served: Served, sent: bytes, status: int
) -> None:
    with served.connect() as client:
        if not send_what_is_taken(client, sent):
            served.until(lambda: is_leaving(served), "it was not heard")
            served.forward(module.LEAVE_SECONDS)
        assert statuses(read_all(client)) == [status]
    served.until(lambda: not served.server.connections, "it is still there")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.binary(max_size=300), st.just(GET), st.just(b"\r\n")), max_size=6))
def test_any_bytes_are_answered_or_hung_up_on(served: Served, pieces: list[bytes]) -> None:
    with served.connect() as client:
        for piece in pieces:
            send_all(client, piece)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        assert set(statuses(read_all(client))) <= {200, 400, 404, 405, 411, 413, 414, 431, 501, 505}


def test_a_slow_request_is_hung_up_on(served: Served) -> None:
    with served.connect() as client:
        client.sendall(GET[:-1])
        served.until(lambda: served.server.connections, "it was not heard")
        served.forward(module.REQUEST_SECONDS - 1)
        assert served.server.connections
        served.forward(1)
        assert read_all(client) == b""


def test_an_idle_connection_is_hung_up_on_in_the_end(served: Served) -> None:
    with served.connect() as client:
        client.sendall(GET)
        assert receive(client, 1) == [200]
        served.forward(module.IDLE_SECONDS - 1)
        assert served.server.connections
        served.forward(1)
        assert read_all(client) == b""


def test_a_peer_that_takes_no_answer_is_hung_up_on(served: Served) -> None:
    served.large = Response(200, _LONG)
    with served.connect() as client:
        client.sendall(GET)
        served.until(lambda: is_written_to(served), "it was not heard")
        served.forward(module.REQUEST_SECONDS - 1)
        assert served.server.connections
        served.forward(1)
        assert not served.server.connections
        assert 0 < len(read_all(client)) < len(_LONG)


def is_written_to(served: Served, number: int = 1) -> bool:
    """Whether so many have an answer to take."""
    found = served.server.connections.values()
    return sum(bool(one.unwritten) for one in found) == number


def test_a_large_answer_is_written_as_it_is_taken(served: Served) -> None:
    served.large = Response(200, _LONG * 4)
    with served.connect() as client:
        client.sendall(GET)
        data = client.recv(4096)
        length = data.index(b"\r\n\r\n") + 4 + len(_LONG) * 4
        while len(data) < length:
            data += client.recv(1 << 16)
        served.large = None
        client.sendall(GET)
        assert receive(client, 1) == [200]


def test_what_a_peer_sends_while_it_takes_nothing_is_not_read(served: Served) -> None:
    """So it is the kernel's buffers that fill, not ours."""
    served.large = Response(200, _LONG)
    with served.connect() as client:
        client.sendall(GET)
        served.until(lambda: is_written_to(served), "it was not heard")
        client.setblocking(False)
        sent = 0
        for _ in range(10):
            with contextlib.suppress(BlockingIOError):
                while sent < 100 * len(_LONG):
                    sent += client.send(GET * 1000)
            served.run(lambda: None)
        assert sent < 10 * len(_LONG)
        (connection,) = served.server.connections.values()
        assert len(connection.parser._held) <= module.CHUNK
        assert len(connection.unwritten) <= len(_LONG)


# --- many peers -----------------------------------------------------------------------------------


def test_connections_leave_nothing(served: Served) -> None:
    served.connect_and_leave(4 * CONNECTIONS)


def test_those_who_sit_idle_make_room(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        sitting = [stack.enter_context(served.connect()) for _ in range(4 * CONNECTIONS)]
        assert served.ask() == ANSWER
        assert len(served.server.connections) <= CONNECTIONS
        gone = [one for one in sitting if select.select([one], (), (), 0)[0]]
        assert len(gone) >= 3 * CONNECTIONS
        assert all(read_all(one) == b"" for one in gone)


def test_those_who_were_refused_go_first(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        sitting = [stack.enter_context(served.connect()) for _ in range(CONNECTIONS - 1)]
        for _ in range(3 * CONNECTIONS):
            refused = stack.enter_context(served.connect())
            refused.sendall(b"nonsense\n")
            assert statuses(read_all(refused)) == [400]
        assert not select.select(sitting, (), (), 0)[0]


def begun(served: Served, stack: contextlib.ExitStack, number: int) -> list[socket.socket]:
    """So many connections, each with a request of which the rest doesn't come, in that order."""
    clients = []
    for count in range(1, number + 1):
        client = stack.enter_context(served.connect())
        client.sendall(GET[:5])
        clients.append(client)
        awaited = min(count, CONNECTIONS)

        def heard(awaited: int = awaited) -> bool:
            found = served.server.connections.values()
            return len(found) == awaited and not any(one.is_idle for one in found)

        served.until(heard, "not all have been heard")
        served.forward(0.01)
    return clients


def test_nobody_waits_for_those_who_have_half_sent_their_requests(served: Served) -> None:
    """However many there are, and whatever they are doing: the clock has no part in it."""
    with contextlib.ExitStack() as stack:
        begun(served, stack, 3 * CONNECTIONS)
        for _ in range(2 * CONNECTIONS):
            assert served.ask() == ANSWER
        assert served.ask("POST", "/v1/ports", SPEC)


def test_twenty_half_sent_requests_cost_nobody_his_answer(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        slow = begun(served, stack, 20)
        assert served.ask() == ANSWER
        for one in slow:
            one.sendall(GET[5:])
            assert receive(one, 1) == [200]


def test_of_those_who_are_late_the_one_that_began_first_goes_first(served: Served) -> None:
    """Not the one that was heard last: dripping bytes keeps nobody there."""
    with contextlib.ExitStack() as stack:
        slow = begun(served, stack, CONNECTIONS)
        slow[0].sendall(GET[5:6])
        assert served.ask() == ANSWER
        assert read_all(slow[0]) == b""
        slow[1].sendall(GET[5:])
        assert receive(slow[1], 1) == [200]


def test_nobody_waits_for_those_who_take_no_answer(served: Served) -> None:
    served.large = Response(200, _LONG)
    with contextlib.ExitStack() as stack:
        for _ in range(2 * CONNECTIONS):
            stack.enter_context(served.connect()).sendall(GET)
        served.until(lambda: is_written_to(served, CONNECTIONS), "not all have an answer to take")
        served.large = None
        assert served.ask() == ANSWER


def test_who_waits_for_an_answer_of_ours_is_not_sent_away(served: Served) -> None:
    """Newcomers wait in the backlog until one of them has its answer."""
    later: list[Respond] = []

    def handle(request: Request, respond: Respond) -> None:
        later.append(respond)

    own = served.server.handle
    served.server.handle = handle
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(served.connect()) for _ in range(CONNECTIONS)]
        for one in busy:
            one.sendall(GET)
        served.until(lambda: len(later) == CONNECTIONS, "not all have been heard")
        served.server.handle = own
        late = stack.enter_context(served.connect())
        late.sendall(GET)
        served.until(lambda: not served.server.listening, "it still listens")
        for respond in later:
            served.run(functools.partial(respond, Response(200, ANSWER)))
        for one in (*busy, late):
            assert receive(one, 1) == [200]


def test_without_a_descriptor_somebody_slow_makes_room(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, tries = socketcalls.accept4, [0]

    def accept4(listener: int) -> int:
        tries[0] += 1
        return original(listener) if len(served.server.connections) < 3 else -errno.EMFILE

    with contextlib.ExitStack() as stack:
        slow = begun(served, stack, 3)
        monkeypatch.setattr(socketcalls, "accept4", accept4)
        assert served.ask() == ANSWER
        assert read_all(slow[0]) == b""
    assert tries[0] < 20


def test_without_a_descriptor_it_waits_and_does_not_spin(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    original = socketcalls.accept4

    def accept4(listener: int) -> int:
        tries.append(listener)
        return -errno.EMFILE if len(tries) < 3 else original(listener)

    monkeypatch.setattr(socketcalls, "accept4", accept4)
    with served.connect() as client:
        client.sendall(GET)
        served.until(lambda: tries, "nobody tried")
        for count in (1, 2):
            for _ in range(5):
                served.run(lambda: None)
            assert len(tries) == count
            served.forward(module.RETRY_SECONDS)
        assert receive(client, 1) == [200]


def test_an_error_of_ours_ends_one_connection_only(served: Served) -> None:
    """What monitor/plan.py makes of an exception: an answer, and the connection's end."""
    served.large = Response(500, b"{}", close=True)
    with served.connect() as client:
        client.sendall(GET)
        assert statuses(read_all(client)) == [500]
