# SPDX-License-Identifier: GPL-2.0-or-later
"""Listeners that a relay is given while it runs: real processes ask, under a filter that passes
just that call on, and this one answers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest

from hardsplice.ipc.loop import Loop
from hardsplice.kernel import unotify
from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.monitor import placing
from hardsplice.monitor.placing import Placing
from hardsplice.sandbox.policy.model import Comparison
from hardsplice.sandbox.policy.prelude import build
from hardsplice.sandbox.seccomp import native_arch
from tests.policy import oracle
from tests.support import procfs
from tests.support.stream import eventually

pytestmark = pytest.mark.usefixtures("nothing_left_open")

PLACE, OTHER = 200, 201  # numbers in the relay
ALLOW = 0x7FFF0000


def program() -> bytes:
    """Passes pidfd_getfd on to whoever reads the questions, and lets everything else through."""
    arch = ARCHITECTURES[native_arch()]
    ways = {"pidfd_getfd": ((Comparison(1, None, 0, ">=", is_int=True),),)}
    numbers = {"pidfd_getfd": oracle.numbers(arch.name)["pidfd_getfd"]}
    order = ">" if arch.byte_order == "big" else "<"
    rest = struct.pack(f"{order}HBBI", 0x06, 0, 0, ALLOW)
    return build(ways, frozenset(ways), numbers, arch) + rest


class Relay:
    """A process that asks for places when it is told to, and says what it got."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            with suppress(BaseException):
                self._live(theirs)
            os._exit(1)
        theirs.close()
        _, (self.questions,), _, _ = socket.recv_fds(self.ours, 1, 1)

    def _live(self, monitor: socket.socket) -> None:
        self.ours.close()
        null = os.open(os.devnull, os.O_RDWR)
        for place in (PLACE, OTHER):
            os.dup2(null, place)
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        questions = unotify.set_filter(program())
        socket.send_fds(monitor, [b"x"], [questions])
        os.close(questions)
        while order := monitor.recv(16):
            (place,) = struct.unpack("q", order)
            monitor.send(bytes([unotify.request_descriptor(place)]))
        os._exit(0)

    def ask(self, place: int) -> None:
        self.ours.send(struct.pack("q", place))

    def got(self) -> bool:
        """Whether it got a listener."""
        return bool(self.ours.recv(1)[0])

    def has(self, place: int) -> str:
        return procfs.descriptors(self.pid)[place]

    def flags(self, place: int) -> int:
        with open(f"/proc/{self.pid}/fdinfo/{place}") as file:
            words = dict(line.split(None, 1) for line in file if ":" in line)
        return int(words["flags:"], 8)

    def kill(self) -> None:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def close(self) -> None:
        self.kill()
        self.ours.close()
        with suppress(OSError):
            os.close(self.questions)


@pytest.fixture
def relay() -> Iterator[Relay]:
    made = Relay()
    yield made
    made.close()


class Stand:
    """A relay and its monitor's side: which ports there are, and where, a test decides."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.loop = Loop()
        self.there: set[tuple[int, int]] = set()
        self.breaches: list[str] = []
        self.placing = Placing(
            self.loop,
            lambda port, place: (port, place) in self.there,
            lambda call: call(),
            self._breach,
        )
        self.placing.begin(relay.questions)
        relay.questions = -1

    def _breach(self, why: str) -> None:
        self.breaches.append(why)
        self.relay.kill()

    def tell(self, place: int, port: int | None) -> None:
        if port is not None:
            self.there.add((port, place))
        self.placing.record_sent(place, port or 0, is_added=port is not None)

    def serve(self, until: Callable[[], object]) -> None:
        """Run the loop until something is so."""

        def look() -> None:
            if until():
                self.loop.stop(0)
            else:
                self.loop.after(0.001, look)

        self.loop.status = None
        look()
        self.loop.run()

    def answered(self) -> bool:
        """Serve the relay's question: whether it got a listener."""
        self.serve(lambda: select.select([self.relay.ours], [], [], 0)[0])
        return self.relay.got()


@pytest.fixture
def stand(relay: Relay) -> Iterator[Stand]:
    made = Stand(relay)
    yield made
    made.placing.forget()
    made.loop._epoll.close()


@pytest.fixture
def here() -> Iterator[dict[int, str]]:
    """Listeners at their places in this process, and what they are called."""
    names = {}
    for place in (PLACE, OTHER):
        with socket.create_server(("127.0.0.1", 0)) as one:
            os.dup2(one.fileno(), place, inheritable=False)
        names[place] = os.readlink(f"/proc/self/fd/{place}")
    yield names
    for place in names:
        os.close(place)


# --- what is due ----------------------------------------------------------------------------------


def test_a_relay_gets_the_listener_at_the_number_that_its_monitor_chose(
    stand: Stand, here: dict[int, str]
) -> None:
    relay = stand.relay
    assert relay.has(PLACE) == os.devnull
    stand.tell(PLACE, 7)
    relay.ask(PLACE)
    assert stand.answered()
    assert relay.has(PLACE) == here[PLACE]
    assert relay.flags(PLACE) & os.O_CLOEXEC
    assert stand.breaches == []


def test_what_goes_is_replaced_by_dev_null_and_the_next_one_takes_its_place(
    stand: Stand, here: dict[int, str]
) -> None:
    """The number is never free in between: dup2 is one call."""
    relay = stand.relay
    for port in (7, 8):
        stand.tell(PLACE, port)
        relay.ask(PLACE)
        assert stand.answered()
        stand.there.clear()
        stand.tell(PLACE, None)
        relay.ask(PLACE)
        assert not stand.answered()
        assert relay.has(PLACE) == os.devnull


def test_two_that_are_due_come_in_their_order(stand: Stand, here: dict[int, str]) -> None:
    relay = stand.relay
    stand.tell(PLACE, 7)
    stand.tell(OTHER, 8)
    for place in (PLACE, OTHER):
        relay.ask(place)
        assert stand.answered()
        assert relay.has(place) == here[place]


def test_one_that_was_removed_before_the_relay_asked_is_dev_null(
    stand: Stand, here: dict[int, str]
) -> None:
    """Its place may be another port's by then: that comes with a record of its own."""
    relay = stand.relay
    stand.tell(PLACE, 7)
    stand.there.clear()
    stand.tell(PLACE, None)
    stand.tell(PLACE, 8)
    for expected in (False, False, True):
        relay.ask(PLACE)
        assert stand.answered() is expected
        assert relay.has(PLACE) == (here[PLACE] if expected else os.devnull)


# --- what is not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [None, OTHER])
@pytest.mark.parametrize("asked", [PLACE, 0, 3, 2**31 - 1, -1])
def test_a_relay_that_asks_for_what_is_not_due_is_ended(
    stand: Stand, here: dict[int, str], told: int | None, asked: int
) -> None:
    if told is not None:
        stand.tell(told, 7)
    stand.relay.ask(asked)
    stand.serve(lambda: stand.breaches)
    assert "which is nothing" in stand.breaches[0]
    assert len(stand.breaches) == 1


def test_asking_once_more_than_it_was_told_ends_it(stand: Stand, here: dict[int, str]) -> None:
    stand.tell(PLACE, 7)
    stand.relay.ask(PLACE)
    assert stand.answered()
    stand.relay.ask(PLACE)
    stand.serve(lambda: stand.breaches)
    assert stand.breaches


def tell_removal(stand: Stand, port: int) -> list[float]:
    """Tell the relay that a port is removed; when that has been waited for, in seconds from now."""
    went_on: list[float] = []
    began = time.monotonic()
    stand.placing.when_let_go(port, lambda: went_on.append(time.monotonic() - began))
    stand.placing.record_sent(PLACE, port, is_added=False)
    return went_on


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "LET_GO_SECONDS", 0.1)
    monkeypatch.setattr(placing, "KEPT_SECONDS", 0.2)


@pytest.mark.usefixtures("impatience")
@pytest.mark.parametrize("slow", [0.0, 0.2])
def test_a_removal_waits_for_the_relay_to_let_go_but_not_for_long(
    stand: Stand, here: dict[int, str], slow: float
) -> None:
    went_on = tell_removal(stand, 7)
    stand.loop.after(slow, lambda: stand.relay.ask(PLACE))
    end = time.monotonic() + 0.5
    stand.serve(lambda: time.monotonic() > end)
    assert not stand.relay.got()
    assert len(went_on) == 1
    assert (went_on[0] >= 0.1) == (slow > 0)
    assert stand.breaches == []


@pytest.mark.usefixtures("impatience")
def test_a_relay_that_keeps_what_was_removed_is_ended(stand: Stand, here: dict[int, str]) -> None:
    went_on = tell_removal(stand, 7)
    stand.serve(lambda: stand.breaches)
    assert len(went_on) == 1
    assert stand.breaches == ["it keeps a listener that was removed"]


@pytest.mark.usefixtures("impatience")
@pytest.mark.parametrize("late", [0.0, 0.2])
def test_what_a_relay_kept_is_no_fault_of_its_successor_s(
    stand: Stand, here: dict[int, str], late: float
) -> None:
    went_on = tell_removal(stand, 7)
    began = time.monotonic()
    stand.serve(lambda: time.monotonic() > began + late)
    stand.placing.forget()
    assert len(went_on) == 1
    stand.serve(lambda: time.monotonic() > began + 0.5)
    assert stand.breaches == []


# --- those who are gone ---------------------------------------------------------------------------


def waits(pid: int) -> bool:
    """In seccomp_do_user_notification, with whoever could read why; asleep, else."""
    return procfs.stat(pid)[0] == "S"


def test_a_relay_that_is_killed_while_it_waits_leaves_its_monitor_as_it_was(
    stand: Stand, here: dict[int, str]
) -> None:
    stand.tell(PLACE, 7)
    stand.relay.ask(PLACE)
    poller = select.poll()
    poller.register(stand.placing._fd, select.POLLIN)
    assert poller.poll(5000)
    stand.relay.kill()
    eventually(
        lambda: not dict(poller.poll(0)).get(stand.placing._fd, 0) & select.POLLIN,
        "its question is still there",
    )
    stand.placing._on_question()
    assert stand.breaches == []
    assert list(stand.placing._due) == [(PLACE, 7, True)], "nobody got it"


def test_an_answer_that_nobody_waits_for_any_more_is_no_error(
    relay: Relay, here: dict[int, str]
) -> None:
    relay.ask(PLACE)
    question = unotify.next_question(relay.questions)
    assert question is not None
    identity, place = question
    assert place == PLACE
    relay.kill()
    assert unotify.answer(relay.questions, identity, PLACE) is False
    with pytest.raises(OSError, match="No such file") as caught:
        unotify.put(relay.questions, identity, PLACE, PLACE)
    assert caught.value.errno == errno.ENOENT


def test_a_monitor_with_nobody_left_to_ask_sleeps(stand: Stand) -> None:
    """Where the last relay that could ask is gone, the descriptor is ready for ever (EPOLLHUP)."""
    stand.relay.kill()
    called: list[int] = []
    question = stand.placing._on_question
    stand.loop.remove(stand.placing._fd)

    def on_question() -> None:
        called.append(1)
        question()

    stand.loop.add(stand.placing._fd, on_question)
    stand.loop.after(0.2, lambda: stand.loop.stop(0))
    stand.loop.run()
    assert len(called) <= 1
    assert stand.breaches == []


def test_what_a_relay_was_told_is_not_its_successor_s(relay: Relay, here: dict[int, str]) -> None:
    stand = Stand(relay)
    stand.tell(PLACE, 7)
    stand.placing.forget()
    stand.placing.forget()
    following = Relay()
    stand.placing.begin(following.questions)
    following.questions = -1
    stand.relay = following
    following.ask(PLACE)
    stand.serve(lambda: stand.breaches)
    assert stand.breaches
    stand.placing.forget()
    stand.loop._epoll.close()
    following.close()


def test_a_signal_that_stops_a_relay_and_lets_it_go_on_costs_it_nothing(
    stand: Stand, here: dict[int, str]
) -> None:
    """It may ask again then, and gets it once."""
    relay = stand.relay
    stand.tell(PLACE, 7)
    relay.ask(PLACE)
    eventually(lambda: waits(relay.pid), "the relay doesn't wait")
    os.kill(relay.pid, signal.SIGSTOP)
    os.kill(relay.pid, signal.SIGCONT)
    assert stand.answered()
    assert relay.has(PLACE) == here[PLACE]
    assert stand.breaches == []
    assert not stand.placing._due


# --- beginning ------------------------------------------------------------------------------------


def test_what_can_not_be_asked_by_is_an_error_and_is_closed() -> None:
    loop = Loop()
    placing = Placing(loop, lambda *_: False, lambda call: call(), lambda _: None)
    for fd in (os.open(os.devnull, os.O_RDWR), *os.pipe()):
        with pytest.raises(OSError, match="ioctl"):
            placing.begin(fd)
    placing.forget()
    loop._epoll.close()


def test_a_kernel_that_can_not_do_it_is_noticed_before_anything_is_promised(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.9 the request is unknown: EINVAL."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(unotify, "put", refuse)
    loop = Loop()
    placing = Placing(loop, lambda *_: False, lambda call: call(), lambda _: None)
    with pytest.raises(OSError, match="Invalid"):
        placing.begin(os.dup(relay.questions))
    loop._epoll.close()


def test_that_a_listener_was_let_go_is_told_once_and_after_its_call(stand: Stand) -> None:
    told: list[int] = []
    stand.tell(PLACE, 7)
    stand.placing.when_let_go(7, lambda: told.append(7))
    stand.placing._has_let_go(7)
    stand.placing._has_let_go(7)
    assert told == [7]


def test_a_relay_that_is_gone_has_let_go_of_all(stand: Stand) -> None:
    told: list[int] = []
    for port in (7, 8):
        stand.placing.when_let_go(port, partial(told.append, port))
    stand.placing.forget()
    assert told == [7, 8]
