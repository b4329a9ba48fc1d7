# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeping a relay alive, and what it may ask for; a child process stands for it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any, NoReturn, cast

import pytest

from hardsplice.ipc.channel import Channel, Sent, close_all
from hardsplice.ipc.child import Child
from hardsplice.ipc.dialogue import RELAY, Dialogue
from hardsplice.ipc.messages import Kind, Note, Record, encode
from hardsplice.kernel import linux, socketcalls
from hardsplice.model.direction import Direction
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.model.roles import HOST, OUTBOUND_RELAY
from hardsplice.monitor.backoff import DEATHS_MAX
from hardsplice.monitor.notes import BY_RELAYS, BY_SUPERVISORS, BY_TRACED_RELAYS
from hardsplice.monitor.outbox import AGAIN_SECONDS, FULL_SECONDS
from hardsplice.monitor.supervisor import (
    ROWS_A_PASS,
    Supervisor,
)
from hardsplice.monitor.supply import RETRY_SECONDS, open_socket
from hardsplice.net.listener import Listener
from hardsplice.net.listeners import UNSOUND, open_listener, write_bind_address
from hardsplice.relay.main import NOTE_SECONDS, Plan
from hardsplice.relay.pools import POOL_SIZE
from hardsplice.sandbox.address_book import USUAL
from hardsplice.telemetry.counters import COUNTERS, DENIED_RECORDS, RESTARTS, Stats
from hardsplice.telemetry.flow_table import RECORD_SIZE, End, read_record
from tests.support.descriptors import as_socket, open_descriptors
from tests.unit.monitor.fake_owner import Above, Timers


def spawn(*command: str) -> int:
    return os.posix_spawnp(command[0], command, os.environ)


# --- what a relay may ask ---


Stand = tuple[Supervisor, Above, Channel]
FAMILIES = (0,)


def attach(supervisor: Supervisor, pid: int) -> Channel:
    """Have it keep that process as its relay; the relay's end of their channel."""
    ours, theirs = Channel.pair(HOST.name, OUTBOUND_RELAY.name)
    supervisor.child = Child(pid, ours)
    supervisor.outbox.begin(ours)
    return theirs


def pid_of(supervisor: Supervisor) -> int:
    assert supervisor.child is not None
    return supervisor.child.pid


@pytest.fixture
def stand() -> Iterator[Stand]:
    """A supervisor whose relay is a process that does nothing but that it has said READY, and the
    relay's end of the channel.
    """
    above = Above()
    plan = Plan(
        direction=Direction.INBOUND,
        protocol=Protocol.TCP,
        datagrams=None,
        workers=1,
        listeners=(),
        families=FAMILIES,
        pipe_size=4096,
        first_flow=64,
        filter=b"",
        is_dynamic=False,
        stored=frozenset(),
        idle_seconds=0,
        book=USUAL,
        stats=Stats(8),
        trace=False,
        log_flows=True,
        has_ruleset=False,
        strict=False,
    )
    supervisor = Supervisor(plan, cast(Any, Timers()), above)
    pid = spawn("sleep", "1000")
    theirs = attach(supervisor, pid)
    theirs.send(Record(Kind.READY))
    supervisor._on_channel()
    above.said.clear()
    yield supervisor, above, theirs
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if supervisor.child is not None:
        supervisor.child.forget()
    theirs.close()


def test_a_relay_gets_the_sockets_that_it_asks_for(stand: Stand) -> None:
    supervisor, _, relay = stand
    relay.send(Record(Kind.WANT_SOCKETS, 0, detail=3))
    supervisor._on_channel()
    record = relay.receive(wait=False)
    assert record is not None
    assert (record.kind, record.small, len(record.fds)) == (Kind.SOCKETS, 0, 3)
    for fd in record.fds:
        with socket.socket(fileno=fd) as one:
            assert one.family == socket.AF_INET
            assert one.type == socket.SOCK_STREAM
            assert not os.get_blocking(fd)
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize(
    "record",
    [
        Record(Kind.WANT_SOCKETS, 0, detail=0),
        Record(Kind.WANT_SOCKETS, 0, detail=-1),
        Record(Kind.WANT_SOCKETS, 0, detail=POOL_SIZE + 1),
        Record(Kind.WANT_SOCKETS, 1, detail=1),  # a family that the plan has no use for
        Record(Kind.WANT_SOCKETS, 200, detail=1),
        *(Record(Kind.NOTE, kind) for kind in (*BY_SUPERVISORS, *BY_TRACED_RELAYS, 0, 200)),
        Record(Kind.READY),
        Record(Kind.PONG),
        Record(Kind.FLOW, End.FIN),
        Record(Kind.FLOW, End.FIN, text=bytes(RECORD_SIZE)),
        Record(Kind.LISTENERS),
        Record(Kind.SOCKETS),
        Record(Kind.RUN),
        Record(Kind.POLL),
        Record(0),
        Record(255),
    ],
    ids=str,
)
def test_a_relay_that_asks_for_anything_else_is_ended(stand: Stand, record: Record) -> None:
    supervisor, above, relay = stand
    relay.send(record)
    supervisor._on_channel()
    assert supervisor.is_cut_off
    assert "protocol" in supervisor.last_words
    relay.send(Record(Kind.NOTE, Note.REFUSED))
    supervisor._receive_rest()
    assert above.said == [], "what it says after that is not heard"
    assert os.WTERMSIG(os.waitpid(pid_of(supervisor), 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("breach", [True, False])
def test_a_relay_that_breaks_the_rules_is_counted_as_one(stand: Stand, breach: bool) -> None:
    supervisor, above, relay = stand
    if breach:
        relay.send(Record(Kind.RUN))
        supervisor._on_channel()
    else:
        os.kill(pid_of(supervisor), signal.SIGKILL)
    os.waitid(os.P_PID, pid_of(supervisor), os.WEXITED | os.WNOWAIT)
    supervisor._on_exit()
    counted = supervisor.plan.stats.snapshot()
    assert (counted["restarts"], counted["denied_records"]) == (1, int(breach))
    assert counted["denied_calls"] == 0
    assert above.said == ["yields"]
    assert ("protocol" in supervisor.succeeds) == breach


@pytest.mark.parametrize("was_ready", [False, True])
def test_what_to_do_about_a_relay_that_does_not_start_is_a_line_of_its_own(
    stand: Stand, was_ready: bool
) -> None:
    """One that has served is not asked for advice: it may have been taken over."""
    supervisor, above, relay = stand
    lost: list[tuple[str | None, ...]] = []
    above.relay_lost = lambda *words: lost.append(words)  # type: ignore[method-assign]
    supervisor.was_ready = was_ready
    relay.send(Record(Kind.FATAL, text=b"why\nwhat to do"))
    supervisor._on_channel()
    os.kill(pid_of(supervisor), signal.SIGKILL)
    supervisor._on_exit()
    if was_ready:
        assert (lost, supervisor.succeeds) == ([], "why")
    else:
        assert lost == [("it did not start: why", "what to do")]


def test_that_a_relay_was_started_again_is_said_once_it_was(stand: Stand) -> None:
    """And not of each that fails on the way."""
    supervisor, above, _ = stand
    os.kill(pid_of(supervisor), signal.SIGKILL)
    supervisor._on_exit()
    assert above.said == ["yields"]
    for _ in range(2):
        relay = attach(supervisor, os.getpid())
        supervisor.dialogue = supervisor._dialogue()
        relay.send(Record(Kind.READY))
        relay.close()
        supervisor._on_channel()
        assert supervisor.child is not None
        supervisor.child.forget()
        supervisor.child = None
    assert above.said == ["yields", (Note.RESTARTED, 0, 0, b"killed by SIGKILL")]


def test_descriptors_from_a_relay_are_closed_and_end_it(stand: Stand) -> None:
    supervisor, _, relay = stand
    before = open_descriptors()
    relay.send(Record(Kind.READY, fds=(relay.fileno(),) * 3))
    relay.send(Record(Kind.READY, fds=(relay.fileno(),) * 3))
    supervisor._on_channel()
    assert supervisor.is_cut_off
    supervisor._receive_rest()
    assert open_descriptors() == before


def test_descriptors_from_a_relay_are_closed_and_nothing_else(stand: Stand) -> None:
    """It may have sent one that others have too: options would be set for them."""
    supervisor, _, relay = stand
    off = struct.pack("ii", 0, 0)
    with socket.create_server(("127.0.0.1", 0)) as shared:
        for packet in (encode(Record(Kind.ACCEPT_PAUSED)), b"nonsense"):
            with as_socket(relay) as end:
                socket.send_fds(end, [packet], [shared.fileno()])
            supervisor._on_channel()
        supervisor._receive_rest()
        assert shared.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(off)) == off
        assert shared.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def test_nonsense_from_a_relay_ends_it(stand: Stand) -> None:
    supervisor, _, relay = stand
    os.write(relay.fileno(), b"nonsense")
    supervisor._on_channel()
    assert supervisor.is_cut_off
    assert "protocol" in supervisor.last_words


def anew(supervisor: Supervisor) -> None:
    """The relay has just been started."""
    supervisor.dialogue = Dialogue(RELAY)


def test_that_it_is_ready_is_told_of_the_first_relay_only(stand: Stand) -> None:
    supervisor, above, relay = stand
    supervisor.was_ready = False
    for said in (["ready"], ["ready"]):
        anew(supervisor)
        relay.send(Record(Kind.READY))
        supervisor._on_channel()
        assert above.said == said


@pytest.mark.parametrize(
    "record",
    [
        Record(Kind.NOTE, Note.REFUSED),
        Record(Kind.WANT_SOCKETS, 0, detail=1),
        Record(Kind.ACCEPT_PAUSED),
        Record(Kind.PONG),
        Record(Kind.FLOW, End.FIN, text=bytes(RECORD_SIZE)),
    ],
    ids=str,
)
def test_a_relay_that_is_not_ready_has_nothing_else_to_say(stand: Stand, record: Record) -> None:
    supervisor, above, relay = stand
    anew(supervisor)
    relay.send(record)
    supervisor._on_channel()
    assert (supervisor.is_cut_off, above.said) == (True, [])


def test_after_its_last_words_a_relay_has_nothing_to_say(stand: Stand) -> None:
    supervisor, above, relay = stand
    relay.send(Record(Kind.FATAL, text=b"so long"))
    supervisor._on_channel()
    # It ends by itself, and how it does is of interest.
    assert (supervisor.is_cut_off, supervisor.last_words) == (False, "so long")
    relay.send(Record(Kind.ACCEPT_PAUSED))
    supervisor._on_channel()
    assert (supervisor.is_cut_off, above.said) == (True, [])


def test_a_breach_among_the_last_words_of_a_relay_that_is_told_to_leave(stand: Stand) -> None:
    supervisor, above, relay = stand
    relay.send(Record(Kind.ACCEPT_PAUSED))
    relay.send(Record(Kind.RUN))
    relay.send(Record(Kind.ACCEPT_PAUSED))
    os.kill(pid_of(supervisor), signal.SIGKILL)
    supervisor.stop(time.monotonic() + 10)
    assert above.said == ["yields"]


def test_notes_are_passed_on(stand: Stand) -> None:
    supervisor, above, relay = stand
    relay.send(Record(Kind.NOTE, Note.REFUSED, 5, 111, b"text"))
    relay.send(Record(Kind.ACCEPT_PAUSED))
    for _ in range(2):
        supervisor._on_channel()
    assert above.said == [(Note.REFUSED, 111, 5, b"text"), "yields"]


def test_notes_are_passed_on_no_oftener_than_a_relay_makes_them(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a relay could have two monitors do nothing else."""
    supervisor, above, relay = stand
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def flood() -> None:
        for _ in range(10):
            for kind in BY_RELAYS:
                relay.send(Record(Kind.NOTE, kind))
                supervisor._on_channel()

    flood()
    assert sorted(kind for kind, *_ in above.said) == sorted(BY_RELAYS)
    now += NOTE_SECONDS
    flood()
    assert len(above.said) == 2 * len(BY_RELAYS)
    assert not supervisor.is_cut_off


def test_each_flow_is_traced_where_that_was_asked_for(stand: Stand) -> None:
    supervisor, above, relay = stand
    supervisor.plan = supervisor.plan._replace(trace=True)
    for _ in range(3):
        relay.send(Record(Kind.NOTE, Note.OPENED, 5))
        supervisor._on_channel()
    assert above.said == [(Note.OPENED, 0, 5, b"")] * 3


def test_a_second_order_of_sockets_while_one_is_open_is_a_breach(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, _, relay = stand
    monkeypatch.setattr("hardsplice.monitor.supply.open_socket", no_socket)
    for _ in range(2):
        assert not supervisor.is_cut_off
        relay.send(Record(Kind.WANT_SOCKETS, 0, detail=32))
        supervisor._on_channel()
    assert supervisor.is_cut_off
    assert "has not got" in supervisor.last_words


def test_a_relay_that_orders_and_does_not_read_is_ended_soon(stand: Stand) -> None:
    """What is under way to it counts as its user's, whose other instances would go short."""
    supervisor, _, relay = stand
    orders = 0
    while not supervisor.is_cut_off:
        orders += 1
        assert orders <= 8
        relay.send(Record(Kind.WANT_SOCKETS, 0, detail=POOL_SIZE))
        supervisor._on_channel()
    assert len(heard(relay)) == orders - 2, "one was left open, the next one was the breach"


def test_a_relay_that_reads_late_gets_what_it_ordered(stand: Stand) -> None:
    supervisor, _, relay = stand
    timers = cast(Timers, supervisor.loop)
    while not supervisor.supply.owed:
        relay.send(Record(Kind.WANT_SOCKETS, 0, detail=1))
        supervisor._on_channel()
    assert heard(relay)
    ((_, again),) = timers.due
    again()
    assert heard(relay) == [(Kind.SOCKETS, 0)]
    assert not supervisor.supply.owed


def no_socket(*_: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_orders_that_can_not_be_served_are_one_timer(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many families and relays there were."""
    supervisor, above, relay = stand
    supervisor.plan = supervisor.plan._replace(families=(0, 1))
    timers = cast(Timers, supervisor.loop)
    monkeypatch.setattr("hardsplice.monitor.supply.open_socket", no_socket)
    for _ in range(5):
        for family in (0, 1):
            relay.send(Record(Kind.WANT_SOCKETS, family, detail=32))
            supervisor._on_channel()
        supervisor.supply.forget()  # and another relay takes its place
    assert [seconds for seconds, _ in timers.due] == [RETRY_SECONDS]
    assert {kind for kind, *_ in above.said} == {Note.SOCKETS}
    for family in (0, 1):
        relay.send(Record(Kind.WANT_SOCKETS, family, detail=2))
        supervisor._on_channel()
    monkeypatch.undo()
    timers.due.pop()[1]()
    assert heard(relay) == [(Kind.SOCKETS, 0)] * 2
    assert timers.due == []


def test_a_channel_that_stays_full_is_tried_less_and_less(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, _, relay = stand
    timers = cast(Timers, supervisor.loop)
    monkeypatch.setattr(Channel, "send", lambda *_, **__: Sent.FULL)
    os.write(relay.fileno(), encode(Record(Kind.WANT_SOCKETS, 0, detail=1)))
    supervisor._on_channel()
    waited: list[float] = []
    while not waited or waited[-1] < RETRY_SECONDS:
        seconds, again = timers.due.pop()
        waited.append(seconds)
        again()
        assert len(timers.due) == 1
    assert waited == sorted(set(waited))
    assert waited[-1] == RETRY_SECONDS


def test_too_many_descriptors_under_way_are_told_of_and_tried_again(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted per user: the relay is not to blame, and is not taken for deaf."""
    supervisor, above, relay = stand
    timers = cast(Timers, supervisor.loop)
    monkeypatch.setattr(Channel, "send", lambda *_, **__: Sent.CROWDED)
    os.write(relay.fileno(), encode(Record(Kind.WANT_SOCKETS, 0, detail=1)))
    supervisor._on_channel()
    supervisor.add(listener(1))
    later = time.monotonic() + 2 * FULL_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    for _ in range(2):
        due, timers.due = timers.due, []
        assert [seconds for seconds, _ in due] == [RETRY_SECONDS] * 2
        for _, again in due:
            again()
    assert not supervisor.is_cut_off
    assert {said[0] for said in above.said} == {Note.CROWDED}
    assert {said[3] for said in above.said} == {b"sockets", b"listeners"}
    monkeypatch.undo()
    for _, again in timers.due:
        again()
    assert sorted(heard(relay)) == [(Kind.SOCKETS, 0), (Kind.ADD_LISTENER, 1)]


def test_an_answer_is_passed_on_once_for_each_round_of_questions(stand: Stand) -> None:
    """Whoever was slow owes two, and gives them at once."""
    supervisor, above, relay = stand
    for _ in range(2):
        supervisor.ping()
        asked = relay.receive(wait=False)
        assert asked is not None
        assert asked.kind == Kind.PING
    for _ in range(2):
        relay.send(Record(Kind.PONG))
        supervisor._on_channel()
    assert above.said == ["alive"]
    assert not supervisor.is_cut_off
    relay.send(Record(Kind.PONG))
    supervisor._on_channel()
    assert supervisor.is_cut_off, "nobody has asked"


def test_a_relay_that_was_being_replaced_answers_by_being_there(stand: Stand) -> None:
    supervisor, above, relay = stand
    supervisor.was_ready = True
    assert supervisor.child is not None
    supervisor.is_cut_off = True
    supervisor.ping()
    supervisor.is_cut_off = False
    anew(supervisor)
    relay.send(Record(Kind.READY))
    supervisor._on_channel()
    assert above.said == ["alive"]


def flow(stats: Stats) -> int:
    """A row in a relay's table: where it is."""
    assert stats.flows is not None
    at = stats.flows.positions()[0]
    client, target = (bytes(15) + b"\1", 4000), (bytes(15) + b"\1", 80)
    stats.flows.open(at, 3, Protocol.TCP.number, client, target, time.monotonic())
    stats.count[at] = 17
    return at


def test_a_flow_s_end_is_passed_on_as_it_is(stand: Stand) -> None:
    supervisor, above, relay = stand
    stats = supervisor.plan.stats
    assert stats.flows is not None
    row = stats.flows.close(flow(stats), stats.count, time.monotonic())
    relay.send(Record(Kind.FLOW, End.TIMEOUT, text=row))
    supervisor._on_channel()
    assert above.said == [(End.TIMEOUT, row)]


def test_an_end_that_nobody_asked_for_is_a_breach(stand: Stand) -> None:
    supervisor, above, relay = stand
    stats = supervisor.plan.stats
    assert stats.flows is not None
    row = stats.flows.close(flow(stats), stats.count, time.monotonic())
    supervisor.plan = supervisor.plan._replace(log_flows=False)
    relay.send(Record(Kind.FLOW, End.FIN, text=row))
    supervisor._on_channel()
    assert supervisor.is_cut_off
    assert above.said == []


def test_flows_of_a_relay_that_was_killed_are_reported_and_their_bytes_are_kept(
    stand: Stand,
) -> None:
    supervisor, above, _ = stand
    flow(supervisor.plan.stats)
    supervisor.was_ready = True
    os.kill(pid_of(supervisor), signal.SIGKILL)
    supervisor._on_exit()
    end, row = above.said[0]
    assert read_record(end, row).end is End.RELAY_DIED
    assert read_record(end, row).flow.bytes_to_target == 17
    assert supervisor.plan.stats.flows is not None
    assert list(supervisor.plan.stats.flows) == []
    assert supervisor.plan.stats.snapshot()["bytes_to_target"] == 17
    assert supervisor.plan.stats.snapshot()["restarts"] == 1


def test_the_books_of_a_relay_are_closed_a_piece_at_a_time(stand: Stand) -> None:
    """A full table must not hold the others up; the next relay is started after that."""
    supervisor, above, _ = stand
    timers = cast(Timers, supervisor.loop)
    rows = 3 * ROWS_A_PASS
    supervisor.plan = supervisor.plan._replace(stats=Stats(rows))
    table = supervisor.plan.stats.flows
    assert table is not None
    for at in table.positions():
        table.open(at, 3, Protocol.TCP.number, (bytes(16), 1), (bytes(16), 2), 1.0)
    os.kill(pid_of(supervisor), signal.SIGKILL)
    supervisor._on_exit()
    passes = 1
    while timers.due and timers.due[-1][1] != supervisor.start:
        assert len(above.said) <= passes * ROWS_A_PASS
        seconds, again = timers.due.pop()
        assert seconds == 0
        again()
        passes += 1
    assert [again for _, again in timers.due] == [supervisor.start]
    assert len([one for one in above.said if one[0] == End.RELAY_DIED]) == rows
    assert passes == 4


def retire(one: socket.socket) -> None:
    """As the host monitor ends a listener, of which its supervisor hears next."""
    socketcalls.retire(one.fileno())


def _cut_off(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _urgent(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("spoil", [None, retire, _cut_off, _urgent])
def test_no_relay_goes_on_with_a_listener_that_is_not_as_it_was_made(
    stand: Stand,
    spoil: Callable[[socket.socket], None] | None,
    direction: Direction,
    *,
    is_dynamic: bool,
) -> None:
    """Where ports change the host monitor ends those of the host before it says so."""
    supervisor, above, _ = stand
    supervisor.plan = supervisor.plan._replace(direction=direction, is_dynamic=is_dynamic)
    forward = Forward(Direction.INBOUND, IPv4Address("127.0.0.1"), None, 0, None, 80, True)
    write_bind_address(forward, (0,))
    with socket.socket(fileno=open_listener(forward, (0,))) as one:
        supervisor.plan = supervisor.plan._replace(listeners=(Listener(one.fileno(), (), (), 1),))
        supervisor.was_ready = True
        if spoil is not None:
            spoil(one)
        os.kill(pid_of(supervisor), signal.SIGKILL)
        supervisor._on_exit()
    if spoil is None or (spoil is retire and is_dynamic and direction is Direction.INBOUND):
        assert (above.said, supervisor.succeeds) == (["yields"], "killed by SIGKILL")
    else:
        assert above.said == [UNSOUND]


def test_what_a_monitor_counts_is_not_the_relay_s_to_write(stand: Stand) -> None:
    """The largest number there would end the monitor when it adds one."""
    supervisor, _, _ = stand
    stats = supervisor.plan.stats
    stats.count[:] = memoryview(b"\xff" * 8 * len(stats.count)).cast("Q")
    supervisor.is_in_breach = True
    os.kill(pid_of(supervisor), signal.SIGKILL)
    supervisor._on_exit()
    assert (stats.kept[RESTARTS], stats.kept[DENIED_RECORDS]) == (1, 1)
    assert stats.snapshot()["restarts"] == 1
    assert not any(stats.count[: len(COUNTERS)]), "nor would the next relay get anywhere"


@pytest.mark.parametrize("family", [0, 1])
def test_a_pooled_socket_is_ready_to_be_connected(family: int) -> None:
    fd = open_socket(family)
    assert not os.get_inheritable(fd)
    assert not os.get_blocking(fd)
    close_all([fd])


# --- no process to be had ---


def nothing(*_: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_without_a_descriptor_to_spare_it_is_the_same(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, above, _ = stand
    supervisor.was_ready = True
    monkeypatch.setattr(Channel, "pair", nothing)
    supervisor.start()
    assert cast("Timers", supervisor.loop).due[-1] == (RETRY_SECONDS, supervisor.start)
    assert above.said == [(Note.START_DELAYED, errno.EMFILE, 0, b"")]


def no_process() -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.mark.parametrize("was_ready", [False, True])
def test_without_a_process_to_spare_a_relay_is_started_later_or_not_at_all(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, *, was_ready: bool
) -> None:
    """A successor is, for as long as it takes: the crowd may be somebody else's. Both ends of its
    channel are closed.
    """
    supervisor, above, _ = stand
    supervisor.was_ready = was_ready
    timers = cast("Timers", supervisor.loop)
    monkeypatch.setattr(linux, "fork", no_process)
    before = open_descriptors()
    supervisor.start()
    assert open_descriptors() == before
    if not was_ready:
        assert above.said == [os.strerror(errno.EAGAIN)]
        return
    for _ in range(DEATHS_MAX + 1):
        assert timers.due.pop() == (RETRY_SECONDS, supervisor.start)
        supervisor.start()
    assert set(above.said) == {(Note.START_DELAYED, errno.EAGAIN, 0, b"")}


# --- what a relay is told ---


def listener(index: int) -> Listener:
    """A listener at a place of its own."""
    return Listener(100 + index, (), (), index)


def heard(relay: Channel) -> list[tuple[int, int]]:
    """Kind and index of each record that the relay has been sent."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while record := relay.receive(wait=False):
            found.append((record.kind, record.index))
            if record.kind in (Kind.ADD_LISTENER, Kind.REMOVE_LISTENER):
                assert record.fds == (), "the relay asks for it (kernel/unotify.py)"
                assert record.detail == 100 + record.index
            close_all(record.fds)
    return found


def due(supervisor: Supervisor) -> list[tuple[int, int | None]]:
    """What the relay may ask for next: place, and port where a listener comes there."""
    due = supervisor.placing._due
    return [(place, port_id if is_added else None) for place, port_id, is_added in due]


def test_a_relay_and_its_successors_learn_of_listeners(stand: Stand) -> None:
    supervisor, _, relay = stand
    for index in (3, 4):
        supervisor.add(listener(index))
    supervisor.remove(listener(3), reset_flows=False, let_go=None)
    assert heard(relay) == [
        (Kind.ADD_LISTENER, 3),
        (Kind.ADD_LISTENER, 4),
        (Kind.REMOVE_LISTENER, 3),
    ]
    assert [one.port_id for one in supervisor.plan.listeners] == [4]
    assert due(supervisor) == [(103, 3), (104, 4), (103, None)]
    assert [supervisor._has(3, 103), supervisor._has(4, 104), supervisor._has(4, 103)] == [
        False,
        True,
        False,
    ]


def test_what_a_full_channel_does_not_take_is_told_later_in_order(stand: Stand) -> None:
    supervisor, _, relay = stand
    timers = cast(Timers, supervisor.loop)
    count = 0
    while not supervisor.outbox.waiting:
        count += 1
        supervisor.add(listener(count))
    supervisor.add(listener(count + 1))
    # Of the first one the relay has not heard.
    supervisor.remove(listener(count), reset_flows=False, let_go=None)
    supervisor.remove(listener(1), reset_flows=True, let_go=None)
    assert due(supervisor) == [(100 + index, index) for index in range(1, count)]
    told = [(Kind.ADD_LISTENER, index) for index in range(1, count)]
    assert heard(relay) == told
    ((seconds, again),) = timers.due
    assert seconds == AGAIN_SECONDS
    again()
    assert heard(relay) == [(Kind.ADD_LISTENER, count + 1), (Kind.REMOVE_LISTENER, 1)]
    assert not supervisor.outbox.waiting
    assert due(supervisor)[count - 1 :] == [(100 + count + 1, count + 1), (101, None)]


def test_a_relay_that_is_gone_has_nothing_due(stand: Stand) -> None:
    """Its successor learns of all listeners at its start."""
    supervisor, _, _ = stand
    supervisor.add(listener(3))
    assert due(supervisor)
    os.kill(pid_of(supervisor), signal.SIGKILL)
    supervisor.stop(time.monotonic() + 10)
    assert due(supervisor) == []
    supervisor.add(listener(4))
    assert due(supervisor) == []
    assert [one.port_id for one in supervisor.plan.listeners] == [3, 4]


def test_a_relay_hands_over_where_its_questions_are_read_or_is_of_no_use(stand: Stand) -> None:
    """Where listeners may come and go; where they may not, that is a breach already."""
    supervisor, above, relay = stand
    supervisor.plan = supervisor.plan._replace(is_dynamic=True)
    before = open_descriptors()
    read, write = os.pipe()
    for kind, fds in (
        (Kind.READY, ()),
        (Kind.READY_PLACING, ()),
        (Kind.READY_PLACING, (read, read)),
        (Kind.READY_PLACING, (read,)),
    ):
        supervisor.is_cut_off, supervisor.was_ready = False, False
        supervisor.dialogue = supervisor._dialogue()
        relay.send(Record(kind, fds=fds))
        supervisor._on_channel()
        assert supervisor.is_cut_off
        assert above.said == []
    os.close(read)
    os.close(write)
    assert open_descriptors() == before


def test_a_relay_that_does_not_read_is_ended(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its successor learns of all listeners at its start."""
    supervisor, _, _ = stand
    timers = cast(Timers, supervisor.loop)
    while not supervisor.outbox.waiting:
        supervisor.add(listener(len(supervisor.plan.listeners)))
    later = time.monotonic() + FULL_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    timers.due.pop()[1]()
    assert supervisor.is_cut_off
    assert "does not read" in supervisor.last_words
    assert timers.due == []


def test_sockets_that_a_full_channel_does_not_take_are_asked_for_again(stand: Stand) -> None:
    """Otherwise the relay would wait for them for ever."""
    supervisor, _, relay = stand
    timers = cast(Timers, supervisor.loop)
    while not supervisor.outbox.waiting:
        supervisor.add(listener(len(supervisor.plan.listeners)))
    timers.due.clear()
    before = open_descriptors()
    relay.send(Record(Kind.WANT_SOCKETS, 0, detail=2))
    supervisor._on_channel()
    assert open_descriptors() == before
    heard(relay)
    ((_, again),) = timers.due
    again()
    assert [kind for kind, _ in heard(relay)] == [Kind.SOCKETS]
