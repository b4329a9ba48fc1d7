# SPDX-License-Identifier: GPL-2.0-or-later
"""How often a program that waits as a shell is started again, and by which command line."""

from __future__ import annotations

import sys
import syslog
import types
from ipaddress import ip_address

import pytest

from hardsplice.frontends import docker_proxy, rootlessport, stub
from hardsplice.frontends.stub import AGAIN_MAX, AGAIN_SECONDS, Again
from hardsplice.model.errors import HardspliceError
from tests.support.clock import FakeClock

GIVEN = ["/usr/bin/python3", "-I", "-X", "hardsplice=/x", "isolated.py", "m", "-proto", "tcp"]


def test_servers_that_end_one_after_the_other_are_not_replaced_for_ever() -> None:
    again, now = Again(), 100.0
    for _ in range(AGAIN_MAX):
        again = again.next(now)
        now += AGAIN_SECONDS / AGAIN_MAX / 2
        assert not again.is_too_often
    assert again.next(now).is_too_often


def test_one_that_ends_now_and_then_always_is() -> None:
    again, now = Again(), 100.0
    for _ in range(10 * AGAIN_MAX):
        again = again.next(now)
        now += AGAIN_SECONDS + 1
    assert not again.is_too_often


def test_the_command_line_stays_what_it_was_and_says_how_often() -> None:
    once = stub.command(GIVEN, Again(1, 100.4), range(10, 12), has_moves=True)
    told = ["-X", "hardsplice-again=1,100", "-X", "hardsplice-listeners=10,2,1"]
    assert once == [GIVEN[0], *told, *GIVEN[1:]]
    # The shell adds the address.
    once[1:1] = ["-X", "hardsplice-address=10.89.0.2"]
    twice = stub.command(once, Again(2, 100), range(10, 10), has_moves=False)
    told = ["-X", "hardsplice-again=2,100", "-X", "hardsplice-listeners=10,0,0"]
    assert twice == [GIVEN[0], *told, *GIVEN[1:]]


def test_it_knows_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stub.take_kept() == stub.Kept()
    monkeypatch.setattr(sys, "_xoptions", {"hardsplice-listeners": "10,2,1"})
    assert stub.take_kept() == stub.Kept(range(10, 12), 12)
    assert stub.take_kept() == stub.Kept(), "it is taken once"


def test_it_knows_the_address_that_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("", "10.89.0", "10.89.0.2 -x", "10.89.0.2/8", "localhost", "$(id)")
    told = {"10.89.0.2": "10.89.0.2", "fd00::2": "fd00::2", **dict.fromkeys(wrong)}
    for text, found in told.items():
        monkeypatch.setattr(sys, "_xoptions", {"hardsplice-address": text})
        assert stub.address() == (found and ip_address(found))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(stub, "time", clock)
    return clock


def failing(times: int) -> list[HardspliceError]:
    return [HardspliceError("listen on", f"port {at}", "in use") for at in range(times)]


def attempt(failures: list[HardspliceError]) -> int:
    def once() -> int:
        if failures:
            raise failures.pop()
        return 7

    return stub.attempted(once)


def test_what_an_engine_has_started_is_tried_once(clock: FakeClock) -> None:
    with pytest.raises(HardspliceError):
        attempt(failing(1))
    assert attempt([]) == 7
    assert clock.now == 1000


def test_what_was_started_again_is_tried_for_a_while(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "_xoptions", {"hardsplice-again": "1,100"})
    assert attempt(failing(len(stub.PAUSES))) == 7
    assert clock.now == 1000 + sum(stub.PAUSES)


@pytest.mark.parametrize("times", [1, AGAIN_MAX + 1])
def test_at_last_it_is_given_up(
    times: int, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "_xoptions", {"hardsplice-again": f"{times},100"})
    reason = "port 93: in use" if times == 1 else "servers end too often"
    with pytest.raises(HardspliceError, match=reason):
        attempt(failing(99))
    assert clock.now - 1000 == (sum(stub.PAUSES) if times == 1 else 0)


@pytest.mark.parametrize("module", [docker_proxy, rootlessport])
def test_why_it_is_given_up_is_in_the_systems_log(
    module: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(syslog, "syslog", lambda _, text: said.append(text))
    failure = HardspliceError("listen on", "port 80", "in use", "use another one")

    def fail(_: object) -> None:
        raise failure

    for name in ("read", "serve"):
        monkeypatch.setattr(module, name, fail, raising=False)
    monkeypatch.setattr(module, "write_all", lambda *_: None)
    assert module.main() == failure.status
    assert said == [], "whoever started it is told"
    monkeypatch.setattr(sys, "_xoptions", {"hardsplice-again": "1,100"})
    assert module.main() == failure.status
    line = "hardsplice: cannot listen on port 80: in use; use another one"
    assert said == [f"{line}; restart the container to have its ports again"]
