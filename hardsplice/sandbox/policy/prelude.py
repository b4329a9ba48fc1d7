# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of a filter that goes before libseccomp's: what that can't express, and hot calls. Pure.

libseccomp can't express three things. A descriptor is an int: the kernel uses the low 32 bits of an
argument of which a filter sees 64, so `fd >= 16` has to compare just these, or (1 << 32) | 3 would
pass for 3. One argument can't be compared twice in a rule. And where socket calls can also be made
through socketcall(2), libseccomp adds a rule for that call, too, and compares a register that the
kernel ignores there; so it gets none of the socket calls of these architectures, and socketcall(2)
stays forbidden.

A call that is served here costs a few instructions, in the filter of a relay and again in that of
its monitor, which the relay inherits. A call that may be made with any arguments costs nothing:
the kernel works out beforehand that no filter looks at them (seccomp_cache_prepare, kernel/
seccomp.c), for which all that stands before its answer must look at number and architecture only.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from hardsplice.kernel.syscalls import DIRECT, Architecture
from hardsplice.sandbox.policy.model import Alternatives, Comparison

__all__ = ["ALLOW", "KILL_PROCESS", "NOTIFY", "build", "serves"]

# linux/seccomp.h: SECCOMP_RET_*, what a filter may answer.
ALLOW, NOTIFY, KILL_PROCESS = 0x7FFF0000, 0x7FC00000, 0x80000000

# The order in which a relay makes them most often; the last three are a datagram relay's.
HOT = (
    *("close", "connect", "shutdown", "recvmsg", "sendmsg", "setsockopt"),
    *("recvmmsg", "sendmmsg", "writev"),
)

# linux/bpf_common.h: load a word of seccomp_data, mask it, compare it, answer.
_LOAD, _AND, _EQUAL, _GREATER, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x35, 0x06
_JUMP = 0x05
_FARTHEST = 255  # instructions that a comparison can skip
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in seccomp_data
_WORD = 0xFFFFFFFF

# An instruction; a target of a jump is a number of instructions, or one of these two.
_PASS, _FAIL = -1, -2
_Instruction = tuple[int, int, int, int]


def serves(call: str, alternatives: Alternatives, target: Architecture) -> bool:
    """Whether the prelude decides about a call: libseccomp then has no rule for it."""
    if call in DIRECT.get(target.name, ()):
        return True
    return () not in alternatives and (
        call in HOT or any(item.operator != "==" for way in alternatives for item in way)
    )


def build(
    allowed: Mapping[str, Alternatives],
    notified: frozenset[str],
    numbers: Mapping[str, int],
    target: Architecture,
) -> bytes:
    """The prelude as classic BPF that falls through to what follows it.

    ``notified`` are the calls that the monitor serves; ``numbers`` has those of all calls that the
    prelude serves.
    """
    served = [call for call in allowed if serves(call, allowed[call], target)]
    served.sort(key=lambda call: HOT.index(call) if call in HOT else len(HOT))
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, target.audit),
        (_RETURN, 0, 0, KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for call in served:
        answer = NOTIFY if call in notified else ALLOW
        program += _block(numbers[call], _ways(allowed[call], target, answer))
    layout = ">HBBI" if target.byte_order == "big" else "<HBBI"
    return b"".join(struct.pack(layout, *one) for one in program)


def _block(number: int, body: Sequence[_Instruction]) -> list[_Instruction]:
    """What is done about one number; the accumulator holds it before and, if not taken, after."""
    if len(body) > _FARTHEST:
        return [(_EQUAL, 1, 0, number), (_JUMP, 0, 0, len(body)), *body]
    return [(_EQUAL, 0, len(body), number), *body]


def _ways(alternatives: Alternatives, target: Architecture, answer: int) -> list[_Instruction]:
    """Answer if one of the alternatives holds in full, else kill."""
    body: list[_Instruction] = []
    for way in alternatives:
        tests = [one for item in way for one in _resolved(_test(item, target))]
        # What fails goes to the next alternative, behind this one's answer.
        last = len(tests) + 1
        body += [_landed(one, _FAIL, last - at - 1) for at, one in enumerate(tests)]
        body.append((_RETURN, 0, 0, answer))
    body.append((_RETURN, 0, 0, KILL_PROCESS))
    return body


def _resolved(test: Sequence[_Instruction]) -> list[_Instruction]:
    """A test whose jumps to its own end are numbers."""
    return [_landed(one, _PASS, len(test) - at - 1) for at, one in enumerate(test)]


def _landed(instruction: _Instruction, target: int, distance: int) -> _Instruction:
    """An instruction whose jumps to ``target`` skip so many."""
    code, yes, no, operand = instruction
    return (
        code,
        distance if yes == target else yes,
        distance if no == target else no,
        operand,
    )


def _test(item: Comparison, target: Architecture) -> list[_Instruction]:
    """Instructions that go on at their end if the comparison holds, else to _FAIL."""
    first = _ARGUMENTS + 8 * item.argument
    low, high = (first + 4, first) if target.byte_order == "big" else (first, first + 4)
    low_value, high_value = item.value & _WORD, item.value >> 32
    whole = not item.is_int and target.bits == 64
    if item.operator == "==":
        mask = (1 << 64) - 1 if item.mask is None else item.mask
        test = _equal(low, mask & _WORD, low_value)
        return test + _equal(high, mask >> 32, high_value) if whole else test
    end = [(_LOAD, 0, 0, low), _compare(item.operator, low_value)]
    if not whole:
        return end
    above, same = (_PASS, 0) if item.operator == ">=" else (_FAIL, 0)
    other = _FAIL if item.operator == ">=" else _PASS
    return [
        (_LOAD, 0, 0, high),
        (_GREATER, above, 0, high_value),
        (_EQUAL, same, other, high_value),
        *end,
    ]


def _compare(operator: str, value: int) -> _Instruction:
    return (_AT_LEAST, 0, _FAIL, value) if operator == ">=" else (_AT_LEAST, _FAIL, 0, value)


def _equal(offset: int, mask: int, value: int) -> list[_Instruction]:
    if mask == 0:
        return []
    load: list[_Instruction] = [(_LOAD, 0, 0, offset)]
    if mask != _WORD:
        load.append((_AND, 0, 0, mask))
    return [*load, (_EQUAL, 0, _FAIL, value)]
