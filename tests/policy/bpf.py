# SPDX-License-Identifier: GPL-2.0-or-later
"""An interpreter of classic BPF as seccomp uses it: what a filter answers to a system call.

Written from linux/bpf_common.h, linux/seccomp.h and the checks in the kernel's seccomp_check_filter
and bpf_check_classic, and from nothing of libseccomp's, whose work it judges. It knows the
instructions that a filter may have and refuses any other.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from dataclasses import dataclass

KILL_PROCESS = 0x80000000  # SECCOMP_RET_KILL_PROCESS
ALLOW = 0x7FFF0000  # SECCOMP_RET_ALLOW
NOTIFY = 0x7FC00000  # SECCOMP_RET_USER_NOTIF

_LONGEST = 4096  # BPF_MAXINSNS
_WORD = 0xFFFFFFFF

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP = 0x05  # BPF_JMP | BPF_JA
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_GREATER = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_JUMP_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_HOLDS: dict[int, Callable[[int, int], object]] = {
    _JUMP_EQUAL: operator.eq,
    _JUMP_GREATER: operator.gt,
    _JUMP_AT_LEAST: operator.ge,
    _JUMP_ANY_BIT: operator.and_,
}
_CONDITIONAL = tuple(_HOLDS)
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data


class InvalidProgramError(Exception):
    """The kernel would not take this program as a filter."""


@dataclass(frozen=True, slots=True)
class Call:
    """struct seccomp_data: the call's number, its architecture and the six arguments."""

    number: int
    architecture: int
    arguments: tuple[int, ...] = (0,) * 6
    instruction_pointer: int = 0


class Filter:
    """A seccomp filter, in the byte order of its architecture."""

    def __init__(self, program: bytes, byte_order: str) -> None:
        self._mark = {"little": "<", "big": ">"}[byte_order]
        if len(program) % 8 or not 0 < len(program) <= 8 * _LONGEST:
            raise InvalidProgramError(f"{len(program)} bytes are no program")
        self._program = tuple(struct.iter_unpack(f"{self._mark}HBBI", program))
        for at, (code, when_true, when_false, operand) in enumerate(self._program):
            self._check(at, code, when_true, when_false, operand)
        if self._program[-1][0] != _RETURN:
            raise InvalidProgramError("the last instruction does not return")

    def __len__(self) -> int:
        return len(self._program)

    def _check(self, at: int, code: int, when_true: int, when_false: int, operand: int) -> None:
        left = len(self._program) - at - 1
        if code == _LOAD:
            valid = operand % 4 == 0 and operand < 64  # sizeof(struct seccomp_data)
        elif code == _JUMP:
            valid = operand < left
        elif code in _CONDITIONAL:
            valid = when_true < left and when_false < left
        else:
            valid = code in (_RETURN, _AND)
        if not valid:
            raise InvalidProgramError(
                f"instruction {at}: {code:#x} {when_true} {when_false} {operand}"
            )

    def path(self, call: Call) -> tuple[int, list[int]]:
        """What the filter answers, and what it looks at for that: offsets in struct seccomp_data,
        in order; -1 for each instruction that looks at nothing.
        """
        looks: list[int] = []
        accumulator = at = 0
        data = self._words(call)
        while True:
            code, when_true, when_false, operand = self._program[at]
            looks.append(operand if code == _LOAD else -1)
            at += 1
            if code == _LOAD:
                accumulator = data[operand >> 2]
            elif code == _AND:
                accumulator &= operand
            elif code == _RETURN:
                return int(operand), looks
            elif code == _JUMP:
                at += operand
            else:
                at += when_true if _HOLDS[code](accumulator, operand) else when_false

    def is_constant(self, call: Call) -> bool:
        """Whether the kernel allows the call without running the filter, as it works out when the
        filter is installed: seccomp_is_const_allow, kernel/seccomp.c.
        """
        answer, looks = self.path(call)
        return answer == ALLOW and set(looks) <= {-1, _NUMBER, _ARCHITECTURE}

    def _words(self, call: Call) -> tuple[int, ...]:
        return struct.unpack(
            f"{self._mark}16I",
            struct.pack(
                f"{self._mark}IIQ6Q",
                call.number & _WORD,
                call.architecture,
                call.instruction_pointer,
                *call.arguments,
            ),
        )

    def answer(self, call: Call) -> int:
        """What the filter answers: SECCOMP_RET_* with its data."""
        data = self._words(call)
        program = self._program
        accumulator = at = 0
        while True:
            code, when_true, when_false, operand = program[at]
            at += 1
            if code == _LOAD:
                accumulator = data[operand >> 2]
            elif code == _JUMP_EQUAL:
                at += when_true if accumulator == operand else when_false
            elif code == _JUMP_AT_LEAST:
                at += when_true if accumulator >= operand else when_false
            elif code == _JUMP_GREATER:
                at += when_true if accumulator > operand else when_false
            elif code == _JUMP_ANY_BIT:
                at += when_true if accumulator & operand else when_false
            elif code == _RETURN:
                return int(operand)
            elif code == _JUMP:
                at += operand
            else:
                accumulator &= operand
