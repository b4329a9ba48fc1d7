# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of a filter that hardsplice writes itself, against the meaning of what it is given."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardsplice.kernel.syscalls import ARCHITECTURES, DIRECT, Architecture
from hardsplice.sandbox.policy.model import Alternatives, Comparison, Operator
from hardsplice.sandbox.policy.prelude import HOT, build, serves
from tests.policy.bpf import ALLOW, KILL_PROCESS, NOTIFY, Call, Filter

PASSED_ON = 0x7FF00123  # what the rest of the filter would answer
NUMBERS = {"close": 11, "connect": 12, "munmap": 13, "pidfd_getfd": 14, "splice": 15, "bind": 16}
WORD = 2**32 - 1

targets = st.sampled_from(sorted(ARCHITECTURES)).map(ARCHITECTURES.__getitem__)
# Numbers on both sides of what tells halves of a register apart.
words = st.sampled_from([0, 1, 15, 16, 17, 2**31 - 1, 2**31, WORD - 1, WORD]) | st.integers(0, WORD)
registers = st.builds(lambda high, low: high << 32 | low, words, words) | words


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    index = draw(st.integers(0, 5))
    operators: tuple[Operator, ...] = ("==", ">=", "<")
    operator = draw(st.sampled_from(operators))
    if operator == "==":
        mask = draw(st.none() | registers)
        value = draw(registers)
        return Comparison(index, mask, value if mask is None else value & mask)
    return Comparison(index, None, draw(registers), operator, is_int=draw(st.booleans()))


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Alternatives]:
    """Ways to make some calls."""
    ways = st.lists(st.lists(comparisons(), max_size=3).map(tuple), min_size=1, max_size=4)
    calls = draw(st.lists(st.sampled_from(sorted(NUMBERS)), unique=True, max_size=4))
    return {call: tuple(draw(ways)) for call in calls}


def with_prelude(
    allowed: dict[str, Alternatives], target: Architecture, notified: frozenset[str] = frozenset()
) -> Filter:
    """The prelude, and behind it something that answers PASSED_ON."""
    order = ">" if target.byte_order == "big" else "<"
    rest = struct.pack(f"{order}HBBI", 0x06, 0, 0, PASSED_ON)
    return Filter(build(allowed, notified, NUMBERS, target) + rest, target.byte_order)


def holds(item: Comparison, arguments: tuple[int, ...], target: Architecture) -> bool:
    """What a comparison means, without a thought for words and byte orders."""
    bits = 32 if item.is_int or target.bits == 32 else 64
    everything: int = (1 << bits) - 1
    found, value = arguments[item.argument] & everything, item.value & everything
    if item.operator == ">=":
        return found >= value
    if item.operator == "<":
        return found < value
    mask = everything if item.mask is None else item.mask & everything
    return found & mask == value


def meant(
    allowed: dict[str, Alternatives],
    notified: frozenset[str],
    number: int,
    arguments: tuple[int, ...],
    target: Architecture,
) -> int:
    for call, ways in allowed.items():
        if NUMBERS[call] == number and serves(call, ways, target):
            if any(all(holds(item, arguments, target) for item in way) for way in ways):
                return NOTIFY if call in notified else ALLOW
            return KILL_PROCESS
    return PASSED_ON


@settings(max_examples=400)
@given(policies(), st.sets(st.sampled_from(sorted(NUMBERS))), targets, st.data())
def test_the_prelude_answers_what_the_comparisons_mean(
    allowed: dict[str, Alternatives], asked: set[str], target: Architecture, data: st.DataObject
) -> None:
    program = with_prelude(allowed, target, frozenset(asked))
    mentioned = [
        value & (2**target.bits - 1)
        for ways in allowed.values()
        for item in itertools.chain(*ways)
        for value in (item.value, item.value - 1, item.value + 1, item.value ^ (1 << 32))
        if value >= 0
    ]
    register = registers.map(lambda value: value & (2**target.bits - 1))
    values = st.sampled_from(mentioned) | register if mentioned else register
    for number in (*NUMBERS.values(), 99):
        for _ in range(3):
            arguments = tuple(data.draw(values) for _ in range(6))
            call = Call(number, target.audit, arguments)
            assert program.answer(call) == meant(
                allowed, frozenset(asked), number, arguments, target
            )


@given(comparisons(), targets, st.data())
def test_one_comparison_by_itself(
    item: Comparison, target: Architecture, data: st.DataObject
) -> None:
    """In a hot call, so that the prelude serves it whatever it compares."""
    program = with_prelude({"close": ((item,),)}, target)
    everything = 2**target.bits - 1
    near = st.sampled_from([item.value + by for by in (-1, 0, 1, 1 << 32, -(1 << 32))])
    for _ in range(4):
        arguments = [data.draw(registers) & everything for _ in range(6)]
        arguments[item.argument] = data.draw(near | registers) & everything
        expected = ALLOW if holds(item, tuple(arguments), target) else KILL_PROCESS
        assert program.answer(Call(11, target.audit, tuple(arguments))) == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_int_is_compared_by_its_low_half(name: str) -> None:
    """(1 << 32) | 3 is descriptor 3 to the kernel."""
    target = ARCHITECTURES[name]
    program = with_prelude({"close": ((Comparison(0, None, 16, ">=", is_int=True),),)}, target)
    wide = with_prelude({"close": ((Comparison(0, None, 16, ">="),),)}, target)
    if target.bits == 64:
        sly = Call(11, target.audit, ((1 << 32) | 3, 0, 0, 0, 0, 0))
        assert (program.answer(sly), wide.answer(sly)) == (KILL_PROCESS, ALLOW)
    for fd, answer in ((15, KILL_PROCESS), (16, ALLOW), (WORD, ALLOW)):
        assert program.answer(Call(11, target.audit, (fd, 0, 0, 0, 0, 0))) == answer


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_call_with_more_ways_than_a_comparison_can_skip(name: str) -> None:
    """A jump of a comparison is a byte (struct sock_filter)."""
    target = ARCHITECTURES[name]
    ways = tuple((Comparison(0, None, number), Comparison(1, None, 7)) for number in range(200))
    program = with_prelude({"close": ways, "connect": ((Comparison(0, None, 3),),)}, target)
    assert len(program) > 256 + len(ways)
    for number, arguments, answer in (
        (11, (0, 7), ALLOW),
        (11, (199, 7), ALLOW),
        (11, (199, 8), KILL_PROCESS),
        (11, (200, 7), KILL_PROCESS),
        (12, (3, 0), ALLOW),
        (12, (0, 7), KILL_PROCESS),
        (99, (0, 7), PASSED_ON),
    ):
        assert program.answer(Call(number, target.audit, (*arguments, 0, 0, 0, 0))) == answer


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_another_architecture_s_calls_are_killed_first(name: str) -> None:
    target = ARCHITECTURES[name]
    program = with_prelude({"close": ((Comparison(0, None, 0, ">="),),)}, target)
    for other in ARCHITECTURES.values():
        if other is not target:
            for number in (11, 99):
                assert program.answer(Call(number, other.audit)) == KILL_PROCESS


@pytest.mark.parametrize(
    ("call", "ways", "served"),
    [
        ("close", ((),), False),
        ("splice", ((),), False),
        ("splice", ((Comparison(5, None, 3),),), False),
        ("splice", ((Comparison(5, None, 3),), (Comparison(5, None, 4, "<"),)), True),
        ("splice", ((Comparison(5, None, 3),), ()), False),
        *((call, ((Comparison(0, None, 3),),), True) for call in HOT),
    ],
)
def test_a_call_that_may_be_made_with_any_arguments_is_left_to_the_kernel_s_cache(
    call: str, ways: Alternatives, served: bool
) -> None:
    target = ARCHITECTURES["arm64"]
    assert serves(call, ways, target) is served
    program = build({call: ways}, frozenset(), dict.fromkeys([call], 7), target)
    rest = struct.pack("<HBBI", 0x06, 0, 0, PASSED_ON)
    answer = Filter(program + rest, "little").answer(Call(7, target.audit, (1, 1, 1, 1, 1, 1)))
    assert (answer != PASSED_ON) is served


@pytest.mark.parametrize("name", DIRECT)
def test_socket_calls_with_a_second_door_are_kept_from_libseccomp(name: str) -> None:
    target = ARCHITECTURES[name]
    anyhow: Alternatives = ((),)
    for call in ("accept4", "socket", "sendmsg"):
        assert serves(call, anyhow, target)
    assert not serves("splice", anyhow, target)
    program = with_prelude({"bind": anyhow}, target)
    assert program.answer(Call(16, target.audit, (1, 1, 1, 1, 1, 1))) == ALLOW
    assert program.answer(Call(102, target.audit, (2, 0, 0, 0, 0, 0))) == PASSED_ON
