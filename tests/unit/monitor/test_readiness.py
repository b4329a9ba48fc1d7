# SPDX-License-Identifier: GPL-2.0-or-later
"""Phases come in their order, each when all that the one before waits for are there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hardsplice.monitor.readiness import Phase, Readiness

NAMES = ("namespace", "relays", "auto", "command")


def test_a_phase_begins_when_everybody_is_there() -> None:
    begun: list[str] = []
    phases = [
        Phase("serve", lambda: begun.append("serve"), ["namespace", "relays"]),
        Phase("prepare", lambda: begun.append("prepare"), ["command"]),
        Phase("say", lambda: begun.append("say")),
        Phase("run", lambda: begun.append("run")),
    ]
    readiness = Readiness(phases)
    assert begun == []
    readiness.start()
    assert begun == ["serve"]
    assert readiness.awaits("namespace")
    assert not readiness.awaits("command")
    readiness.arrived("relays")
    assert begun == ["serve"]
    readiness.arrived("namespace")
    assert begun == ["serve", "prepare"]
    assert not readiness.awaits("namespace")
    assert not readiness.is_complete
    readiness.arrived("namespace")  # again: nobody waits for it
    assert begun == ["serve", "prepare"]
    readiness.arrived("command")
    assert begun == ["serve", "prepare", "say", "run"]
    assert readiness.is_complete


def test_nobody_to_wait_for_is_no_wait() -> None:
    begun: list[str] = []
    readiness = Readiness([Phase("serve", lambda: None), Phase("say", lambda: begun.append("say"))])
    readiness.start()
    assert begun == ["say"]
    assert readiness.is_complete


def test_what_is_done_as_soon_as_it_begins_goes_on_in_order() -> None:
    begun: list[str] = []
    readiness: Readiness

    def at_once() -> None:
        begun.append("auto")
        readiness.arrived("auto")
        begun.append("still auto")

    readiness = Readiness(
        [Phase("auto", at_once, ["auto"]), Phase("say", lambda: begun.append("say"))]
    )
    readiness.start()
    assert begun == ["auto", "still auto", "say"]


@given(
    st.lists(st.lists(st.sampled_from(NAMES), unique=True), max_size=4),
    st.lists(st.sampled_from(NAMES), max_size=20),
)
def test_no_phase_begins_before_the_one_before_is_over(
    waits: list[list[str]], arrivals: list[str]
) -> None:
    begun: list[int] = []
    seen: list[set[str]] = []  # who arrived in each phase

    def begin(number: int) -> None:
        begun.append(number)
        seen.append(set())

    def phase(number: int, whom: list[str]) -> Phase:
        return Phase(str(number), lambda: begin(number), whom)

    readiness = Readiness([phase(number, whom) for number, whom in enumerate(waits)])
    readiness.start()
    for who in arrivals:
        if seen:
            seen[-1].add(who)
        readiness.arrived(who)
    assert begun == list(range(len(begun)))
    for number in begun[:-1]:
        assert set(waits[number]) <= seen[number]
    assert readiness.is_complete == (len(begun) == len(waits))
