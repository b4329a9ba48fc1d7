# SPDX-License-Identifier: GPL-2.0-or-later
"""The interpreter of BPF itself: each instruction, both byte orders, and programs that are none."""

from __future__ import annotations

import struct

import pytest

from tests.policy.bpf import Call, Filter, InvalidProgramError

ORDERS = ("little", "big")

LOAD, AND, JUMP, RETURN = 0x20, 0x54, 0x05, 0x06
EQUAL, GREATER, AT_LEAST, ANY_BIT = 0x15, 0x25, 0x35, 0x45
NUMBER, ARCHITECTURE = 0, 4

Instruction = tuple[int, int, int, int]


def assemble(order: str, *program: Instruction) -> bytes:
    mark = "<" if order == "little" else ">"
    return b"".join(struct.pack(f"{mark}HBBI", *instruction) for instruction in program)


def ask(order: str, call: Call, *program: Instruction) -> int:
    return Filter(assemble(order, *program), order).answer(call)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("code", "operand", "expected"),
    [
        (EQUAL, 5, {4: 2, 5: 1, 6: 2}),
        (GREATER, 5, {4: 2, 5: 2, 6: 1}),
        (AT_LEAST, 5, {4: 2, 5: 1, 6: 1}),
        (ANY_BIT, 6, {1: 2, 2: 1, 4: 1, 9: 2}),
    ],
)
def test_a_conditional_jump_goes_where_its_condition_says(
    order: str, code: int, operand: int, expected: dict[int, int]
) -> None:
    program = ((LOAD, 0, 0, NUMBER), (code, 0, 1, operand), (RETURN, 0, 0, 1), (RETURN, 0, 0, 2))
    answers = {number: ask(order, Call(number, 0), *program) for number in expected}
    assert answers == expected


@pytest.mark.parametrize("order", ORDERS)
def test_a_jump_skips_what_is_between(order: str) -> None:
    program = ((JUMP, 0, 0, 1), (RETURN, 0, 0, 1), (RETURN, 0, 0, 2))
    assert ask(order, Call(0, 0), *program) == 2


@pytest.mark.parametrize("order", ORDERS)
def test_and_masks_what_was_loaded(order: str) -> None:
    program = (
        (LOAD, 0, 0, ARCHITECTURE),
        (AND, 0, 0, 0xF0),
        (EQUAL, 0, 1, 0x30),
        (RETURN, 0, 0, 1),
        (RETURN, 0, 0, 2),
    )
    assert ask(order, Call(0, 0x1234), *program) == 1


@pytest.mark.parametrize(("order", "low", "high"), [("little", 0, 4), ("big", 4, 0)])
def test_the_halves_of_an_argument_lie_in_the_order_of_the_machine(
    order: str, low: int, high: int
) -> None:
    arguments = (0, 0, 0x1111_2222_3333_4444, 0, 0, 0)
    for offset, word in ((low, 0x3333_4444), (high, 0x1111_2222)):
        program = (
            (LOAD, 0, 0, 16 + 8 * 2 + offset),
            (EQUAL, 0, 1, word),
            (RETURN, 0, 0, 1),
            (RETURN, 0, 0, 2),
        )
        assert ask(order, Call(0, 0, arguments), *program) == 1


def test_a_negative_number_is_seen_as_unsigned() -> None:
    program = (
        (LOAD, 0, 0, NUMBER),
        (EQUAL, 0, 1, 0xFFFF_FFFF),
        (RETURN, 0, 0, 1),
        (RETURN, 0, 0, 2),
    )
    assert ask("little", Call(-1, 0), *program) == 1


@pytest.mark.parametrize(
    "program",
    [
        pytest.param((), id="empty"),
        pytest.param(((LOAD, 0, 0, NUMBER),), id="no return"),
        pytest.param(((LOAD, 0, 0, 2), (RETURN, 0, 0, 1)), id="unaligned load"),
        pytest.param(((LOAD, 0, 0, 64), (RETURN, 0, 0, 1)), id="load beyond seccomp_data"),
        pytest.param(((JUMP, 0, 0, 1), (RETURN, 0, 0, 1)), id="jump beyond the end"),
        pytest.param(((EQUAL, 1, 0, 0), (RETURN, 0, 0, 1)), id="conditional jump beyond the end"),
        pytest.param(((0x30, 0, 0, 0), (RETURN, 0, 0, 1)), id="byte load"),
        pytest.param(((RETURN, 0, 0, 1),) * 4097, id="too long"),
    ],
)
def test_what_the_kernel_would_refuse_is_refused(program: tuple[Instruction, ...]) -> None:
    with pytest.raises(InvalidProgramError):
        Filter(assemble("little", *program), "little")


def test_half_an_instruction_is_refused() -> None:
    with pytest.raises(InvalidProgramError):
        Filter(assemble("little", (RETURN, 0, 0, 1)) + b"\0\0\0\0", "little")
