# SPDX-License-Identifier: GPL-2.0-or-later
"""`auto`: what is wanted, how it is followed, and how often it is looked for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, cast

import pytest

from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Auto, Forward, Source
from hardsplice.model.ports import lay_out
from hardsplice.model.protocol import Protocol
from hardsplice.monitor import loops
from hardsplice.monitor.autoforward import (
    BRISK_FOR,
    BRISK_SECONDS,
    IDLE_SECONDS,
    RETRY_SECONDS,
    SHARE,
    Follower,
    Pace,
    Watch,
    Watched,
    wanted,
)
from hardsplice.monitor.registry import Registry
from hardsplice.net import sockdiag
from hardsplice.net.sockdiag import FoundListener
from tests.unit.monitor.fake_worker import FakeWorker

BOTH = frozenset((4, 6))


def autos(*specs: str, versions: tuple[int, ...] = (4, 6)) -> list[Auto]:
    layout = lay_out(specs, Direction.INBOUND, ephemeral=(32768, 60999), versions=versions)
    return layout.autos


def listening(port: int, address: str = "127.0.0.1", *reached: int) -> FoundListener:
    return FoundListener(ip_address(address), port, frozenset(reached or (4,)))


def forward(port: int, address: str | None = None, target: int = 0) -> Forward:
    at = ip_address(address) if address else None
    return Forward(
        Direction.INBOUND, at, None, port, None, target or port, False, source=Source.AUTO
    )


# --- what is wanted ---


def test_what_is_listened_on_is_wanted_at_the_same_port() -> None:
    found = wanted([listening(80), listening(22)], autos("auto"), BOTH, [])
    assert found == [forward(22), forward(80)]


def test_several_sockets_of_one_port_are_one() -> None:
    several = [listening(80), listening(80, "::1", 6), listening(80, "0.0.0.0")]
    assert wanted(several, autos("auto"), BOTH, []) == [forward(80)]


def test_what_the_loopback_does_not_reach_is_not_wanted() -> None:
    far = FoundListener(ip_address("10.0.0.1"), 80, frozenset())
    assert wanted([far], autos("auto"), BOTH, []) == []


@pytest.mark.parametrize("protocol", Protocol)
def test_what_is_listened_on_is_a_port_of_its_protocol_only(protocol: Protocol) -> None:
    """Nor is what we listen on by one protocol in the way of the same number of another."""
    seen = [listening(53)._replace(protocol=one) for one in Protocol]
    mine = [one._replace(protocol=protocol) for one in autos("auto")]
    (found,) = wanted(seen, mine, BOTH, [])
    assert found == forward(53)._replace(protocol=protocol)
    for one in Protocol:
        ours = forward(53, "127.0.0.1")._replace(protocol=one)
        assert wanted(seen, mine, BOTH, [ours]) == ([] if one is protocol else [found])


def test_one_family_only_is_what_counts() -> None:
    only6 = listening(80, "::1", 6)
    assert wanted([only6], autos("auto"), frozenset((4,)), []) == []
    assert wanted([only6], autos("auto"), BOTH, []) == [forward(80)]


@pytest.mark.parametrize(
    ("ours", "theirs", "left"),
    [
        (forward(80), listening(80, "::", 4, 6), False),
        (forward(80), listening(80, "0.0.0.0"), False),
        (forward(80, "127.0.0.1"), listening(80), False),
        (forward(80, "::1"), listening(80, "::1", 6), False),
        (forward(80, "127.0.0.1"), listening(80, "::1", 6), True),
        (forward(80, "10.0.0.5"), listening(80), True),
        (forward(81), listening(80), True),
        (forward(81, target=80), listening(80), True),
    ],
)
def test_what_we_listen_on_ourselves_does_not_come_back(
    ours: Forward, theirs: FoundListener, left: bool
) -> None:
    assert wanted([theirs], autos("auto"), BOTH, [ours]) == ([forward(80)] if left else [])


def test_ranges_limit_and_map_and_exclusions_exclude() -> None:
    seen = [listening(port) for port in (79, 80, 81, 85, 90, 40000)]

    def ports(*specs: str) -> list[tuple[int, int]]:
        return [(f.port, f.target_port) for f in wanted(seen, autos(*specs), BOTH, [])]

    assert ports("auto,80-89") == [(80, 80), (81, 81), (85, 85)]
    assert ports("auto,80-89,~81") == [(80, 80), (85, 85)]
    assert ports("auto,80-89", "~81") == [(80, 80), (85, 85)]
    assert ports("auto,~80-89") == [(79, 79), (90, 90)]
    assert ports("1080-1089:80-89,auto") == [(1080, 80), (1081, 81), (1085, 85)]
    assert ports("auto,40000") == [(40000, 40000)]
    assert (40000, 40000) not in ports("auto"), "ephemeral ports come and go by themselves"


def test_a_listening_address_is_kept() -> None:
    found = wanted([listening(80)], autos("127.0.0.1/auto", "::1/auto,80"), BOTH, [])
    assert [str(one.address) for one in found] == ["127.0.0.1", "::1"]


# --- following ---


class Worker(FakeWorker):
    """auto never resets a flow."""

    def remove(
        self, forward: Forward, *, reset_flows: bool, done: Callable[[HardspliceError | None], None]
    ) -> None:
        assert not reset_flows
        super().remove(forward, reset_flows=reset_flows, done=done)


class Stand:
    """A follower of a registry."""

    def __init__(self, *there: Forward) -> None:
        self.worker = Worker()
        dynamic = frozenset(itertools.product(Direction, Protocol))
        self.registry = Registry(
            list(there), 100, dynamic, self.worker, lambda _: None, loops.check
        )
        self.said: list[str] = []
        self.outcomes = 0
        self.follower = Follower(
            Direction.INBOUND, self.registry, lambda one: self.said.append(str(one)), self.count
        )

    def count(self) -> None:
        self.outcomes += 1

    def follow(self, *ports: int, now: float = 0.0) -> bool:
        return self.follower.follow([forward(port) for port in ports], now)

    def listed(self) -> list[int]:
        return [port.port for port in self.registry.list()]


def test_of_two_listening_addresses_that_overlap_the_first_one_has_the_port() -> None:
    """The kernel would refuse the second, which is nothing to tell anybody."""
    stand = Stand()
    stand.follower.follow([forward(80), forward(80, "127.0.0.1"), forward(81, "127.0.0.1")], 0.0)
    assert [(one.address, one.port) for one in stand.registry.list()] == [
        (None, 80),
        (ip_address("127.0.0.1"), 81),
    ]
    assert stand.said == []


def test_ports_come_and_go() -> None:
    stand = Stand()
    assert stand.follow(80, 81)
    assert stand.listed() == [80, 81]
    assert {port.source for port in stand.registry.list()} == {Source.AUTO}
    assert not stand.follow(80, 81)
    assert stand.follow(81, 82)
    assert stand.listed() == [81, 82]
    assert stand.follow()
    assert stand.listed() == []


def test_a_port_that_an_option_has_is_left_alone() -> None:
    stand = Stand(forward(80, "127.0.0.1")._replace(id=1, source=Source.OPTION))
    assert not stand.follow(80)
    assert stand.said == []
    assert stand.worker.done == []
    assert not stand.follow()
    assert stand.listed() == [80]


def test_a_port_that_can_not_be_had_is_said_once_and_tried_again_later() -> None:
    stand = Stand()
    stand.worker.taken.add(80)
    assert stand.follow(80, 81, now=0)
    for now in (1.0, 2.0, RETRY_SECONDS, RETRY_SECONDS + 1, 2 * RETRY_SECONDS):
        assert not stand.follow(80, 81, now=now)
    assert stand.said == ["cannot listen on port 80: in use"]
    assert stand.listed() == [81]
    stand.worker.taken.clear()
    stand.follow(80, 81, now=3 * RETRY_SECONDS)
    assert stand.listed() == [81, 80]


def test_one_that_went_meanwhile_is_said_again_when_it_comes_back() -> None:
    stand = Stand()
    stand.worker.taken.add(80)
    for ports in ((80,), (), (80,)):
        assert stand.follow(*ports)
    assert len(stand.said) == 2


def test_one_that_goes_while_it_is_being_added_is_removed_after_that() -> None:
    stand = Stand()
    stand.worker.later = []
    stand.follow(80)
    settled = [stand.follower.is_settled]
    stand.follow()
    stand.follow(80)
    assert len(stand.worker.later) == 1, "it is not asked for twice"
    stand.follow()
    stand.worker.later.pop()()
    assert [*settled, stand.follower.is_settled] == [False, True]
    assert stand.listed() == [80]
    stand.follow()
    assert stand.listed() == []


def test_one_whose_removal_fails_is_there_and_is_removed_at_the_next_look() -> None:
    stand = Stand()
    stand.follow(80)
    stand.worker.fails = HardspliceError(
        "remove", "port 100", "the namespace monitor does not answer"
    )
    before = stand.registry.changes
    stand.follow()
    assert stand.listed() == [80]
    assert stand.registry.changes > before, "so there is a next look"
    stand.worker.fails = None
    stand.follow()
    assert stand.listed() == []
    assert stand.worker.done == [("add", 80), ("remove", 100)]


def test_one_that_somebody_removed_stays_away_until_it_is_listened_on_anew() -> None:
    stand = Stand()
    stand.follow(80)
    (port,) = stand.registry.list()
    stand.registry.remove(port.id, reset_flows=False, done=lambda _: None)
    stand.follow(80)
    assert stand.listed() == []
    stand.follow()
    stand.follow(80)
    assert stand.listed() == [80]


def test_fifty_times_on_and_off_leave_nothing() -> None:
    stand = Stand()
    for _ in range(50):
        stand.follow(80)
        stand.follow()
    assert stand.listed() == []
    assert not stand.follower.asked
    assert not stand.follower.failed
    assert stand.registry.held(Direction.INBOUND) == []


# --- how often ---


def test_after_a_change_it_is_looked_often_and_else_seldom() -> None:
    pace = Pace(100.0)
    assert pace.pause(100.0, changed=False, took=0) == BRISK_SECONDS
    assert pace.pause(100.0 + BRISK_FOR, changed=False, took=0) == IDLE_SECONDS
    assert pace.pause(200.0, changed=True, took=0) == BRISK_SECONDS
    assert pace.pause(199.9 + BRISK_FOR, changed=False, took=0) == BRISK_SECONDS
    assert pace.pause(200.0 + BRISK_FOR, changed=False, took=0) == IDLE_SECONDS
    assert BRISK_SECONDS < 0.25


def test_looking_takes_a_small_part_of_the_time_however_long_it_takes() -> None:
    pace = Pace(0.0)
    assert pace.pause(0.0, changed=True, took=0.1) == SHARE * 0.1
    assert pace.pause(100.0, changed=False, took=10.0) == SHARE * 10.0


class World:
    """Time, a loop and a kernel, none of them real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.answer = b""
        self.sockets: dict[bytes, list[FoundListener]] = {b"": []}
        self.parsed = 0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(sockdiag, "request", lambda *_: self.answer)
        monkeypatch.setattr(sockdiag, "parse", self.parse)

    def parse(self, answer: bytes, _: Protocol) -> list[FoundListener]:
        self.parsed += 1
        return self.sockets[answer]

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, callback))

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers:
            due = min(self.timers, key=lambda timer: timer[0])
            if due[0] > end:
                break
            self.timers.remove(due)
            self.now = due[0]
            due[1]()
        self.now = end


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def watch(world: World, stand: Stand) -> Watch:
    watched: dict[Direction, Watched] = {Direction.INBOUND: Watched(autos("auto"), cast(Any, None))}
    return Watch(watched, (4, 6), stand.registry, cast(Any, world), lambda _: None)


def test_when_nothing_changes_there_is_one_look_a_second(world: World) -> None:
    stand = Stand()
    made = watch(world, stand)
    made.start(lambda: None)
    world.pass_time(BRISK_FOR + 1)
    scans, parsed = made.scans, world.parsed
    assert scans <= BRISK_FOR / BRISK_SECONDS + 3
    world.pass_time(60)
    assert 59 <= made.scans - scans <= 60
    assert world.parsed == parsed, "an answer that is known is not read again"


def test_while_things_change_a_new_port_is_there_within_a_quarter_of_a_second(
    world: World,
) -> None:
    stand = Stand()
    watch(world, stand).start(lambda: None)
    world.pass_time(60)
    for number in range(50):
        world.answer = str(number).encode()
        there = number % 2 == 0
        world.sockets[world.answer] = [listening(80)] if there else []
        world.pass_time(1.0 if number == 0 else 0.25)
        assert stand.listed() == ([80] if there else [])


def test_what_is_there_at_the_start_is_forwarded_before_that_is_said(world: World) -> None:
    stand = Stand()
    stand.worker.later = []
    world.answer = b"one"
    world.sockets[b"one"] = [listening(80)]
    said: list[str] = []
    watch(world, stand).start(lambda: said.append("first"))
    world.pass_time(0.5)
    assert said == []
    stand.worker.later.pop()()
    world.pass_time(0.01)
    assert said == ["first"]
    assert stand.listed() == [80]


def test_a_server_that_ends_before_its_port_was_had_leaves_no_port(world: World) -> None:
    stand = Stand()
    stand.worker.later = []
    watch(world, stand).start(lambda: None)
    world.answer = b"one"
    world.sockets[b"one"] = [listening(80)]
    world.pass_time(1)
    world.answer = b""
    world.pass_time(1)
    stand.worker.later.pop()()
    stand.worker.later = None
    assert stand.listed() == [80]
    world.pass_time(1)
    assert stand.listed() == []


def test_a_port_that_is_free_again_is_had_though_nothing_else_changes(world: World) -> None:
    stand = Stand()
    stand.worker.taken.add(80)
    world.answer = b"one"
    world.sockets[b"one"] = [listening(80)]
    watch(world, stand).start(lambda: None)
    world.pass_time(60)
    stand.worker.taken.clear()
    world.pass_time(RETRY_SECONDS + IDLE_SECONDS)
    assert stand.listed() == [80]


def test_a_kernel_that_does_not_answer_once_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand()
    world.answer = b"one"
    world.sockets[b"one"] = [listening(80)]
    watch(world, stand).start(lambda: None)
    assert stand.listed() == [80]

    def refuse(*_: object) -> bytes:
        raise OSError

    with monkeypatch.context() as patched:
        patched.setattr(sockdiag, "request", refuse)
        world.pass_time(3)
    assert stand.listed() == [80]
    world.answer = b""
    world.pass_time(1)
    assert stand.listed() == []
