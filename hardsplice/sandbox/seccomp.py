# SPDX-License-Identifier: GPL-2.0-or-later
"""Seccomp policies of roles: compiled to a filter for one architecture.

A policy says which system calls a role may make, with which arguments, why, and which function
needs them; whatever it doesn't name kills the process. All of this happens during set-up, in the
process that was started or in one that it forks for that; the others get their filters as bytes.

Compiling is done by libseccomp, except for what it can't express and for the calls that are made
most often: a prelude to its program decides these (sandbox/policy/prelude.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct

from hardsplice.kernel.files import any_size
from hardsplice.kernel.hints import Any
from hardsplice.kernel.syscalls import ARCHITECTURES, DIRECT, Architecture
from hardsplice.model.errors import HardspliceError, reason_of
from hardsplice.model.unforeseen import next_step
from hardsplice.sandbox import libseccomp
from hardsplice.sandbox.policy import prelude
from hardsplice.sandbox.policy.model import Alternatives, Comparison, Policy, notified, resolve
from hardsplice.sandbox.policy.prelude import ALLOW, KILL_PROCESS

__all__ = ["answers", "compile_policy", "native_arch", "right_answers"]

# linux/bpf_common.h: the instruction that answers, the class of jumps, the one without condition
_BPF_RET_K, _BPF_JMP, _BPF_JA = 0x06, 0x05, 0x05
_BINARY_TREE = 2  # SCMP_FLTATR_CTL_OPTIMIZE: logarithmic instead of linear, libseccomp 2.5


def native_arch() -> str:
    """The architecture of this process: an i686 Python on an x86-64 kernel is i686."""
    library = libseccomp.load()
    audit = library.system_arch()
    for arch in ARCHITECTURES.values():
        if arch.audit == audit:
            return arch.name
    raise HardspliceError(
        "choose",
        "a seccomp policy",
        f"there is none for this architecture (AUDIT_ARCH {audit:#x})",
        f"there are policies for {', '.join(ARCHITECTURES)}",
    )


def compile_policy(policy: Policy, arch: str) -> bytes:
    """The policy as a classic BPF program for an architecture, in its byte order.

    What the policy doesn't allow, another architecture's calls and x32 included, kills the process.
    """
    target = ARCHITECTURES[arch]
    allowed, by_monitor = resolve(policy, arch), notified(policy, arch)
    library, hint = libseccomp.load(), None
    try:
        first = prelude.build(allowed, by_monitor, _guarded(library, allowed, target), target)
        program = _compile(library, allowed, target)
    except _UnsupportedError as error:
        reason = str(error)
    except OSError as error:
        is_limit = error.errno == errno.EFBIG  # not libseccomp's error
        reason = reason_of(error) if is_limit else f"libseccomp: {reason_of(error)}"
        hint = next_step(error)
    else:
        program = right_answers(program, target.byte_order)
        if answers(program, target.byte_order) <= {ALLOW, KILL_PROCESS}:
            return first + program
        reason = "libseccomp wrote an answer that is neither to allow nor to kill"
    raise HardspliceError("compile", f"the policy {policy.role} for {arch}", reason, hint) from None


def answers(program: bytes, byte_order: str) -> set[int]:
    """All that a filter can return."""
    layout = _layout(byte_order)
    return {k for code, _, _, k in struct.iter_unpack(layout, program) if code == _BPF_RET_K}


def right_answers(program: bytes, byte_order: str) -> bytes:
    """The program with each answer in its own byte order.

    libseccomp 2.5 writes some in the other one where a filter for a big-endian machine, made on a
    little-endian one, needs long jumps; the kernel would read them as errors. Its jumps are right.
    """
    layout = _layout(byte_order)
    swapped = {
        struct.unpack(">I", struct.pack("<I", answer))[0]: answer
        for answer in (ALLOW, KILL_PROCESS)
    }
    return b"".join(
        struct.pack(layout, code, yes, no, swapped.get(k, k) if code == _BPF_RET_K else k)
        for code, yes, no, k in struct.iter_unpack(layout, program)
    )


def _layout(byte_order: str) -> str:
    """struct sock_filter of linux/filter.h."""
    return ">HBBI" if byte_order == "big" else "<HBBI"


class _UnsupportedError(Exception):
    """A rule that libseccomp can't express on an architecture."""


def _compile(library: Any, allowed: dict[str, Alternatives], target: Architecture) -> bytes:
    native, foreign = library.Arch.NATIVE, getattr(library.Arch, target.token)
    rules = library.SyscallFilter(library.KILL_PROCESS)
    # The native architecture goes first: libseccomp refuses to have two byte orders in one filter.
    rules.remove_arch(native)
    rules.add_arch(foreign)
    # Unless told otherwise, libseccomp kills just the thread that calls as another architecture.
    rules.set_attr(library.Attr.ACT_BADARCH, library.KILL_PROCESS)
    with contextlib.suppress(OSError):
        rules.set_attr(library.Attr.CTL_OPTIMIZE, _BINARY_TREE)
    for call, alternatives in allowed.items():
        if prelude.serves(call, alternatives, target):
            continue
        _check_number(library.resolve_syscall(foreign, call), call, target)
        # libseccomp wants the native number, or its stand-in for a call that is not native.
        number = library.resolve_syscall(native, call)
        for alternative in alternatives:
            try:
                arguments = (_argument(library, item) for item in alternative)
                rules.add_rule_exactly(library.ALLOW, number, *arguments)
            except OSError as error:
                if next_step(error):  # it is not the rule, but a limit of this process
                    raise
                raise _UnsupportedError(f"{call}: libseccomp: {reason_of(error)}") from None
    with open(os.memfd_create("filter", os.MFD_CLOEXEC), "rb") as file, any_size():
        try:
            rules.export_bpf(file)
        except OSError as error:
            if error.errno != errno.ECANCELED:  # it could not write
                raise
        file.seek(0)
        program = file.read()
    if not _is_whole(program, target.byte_order):  # RLIMIT_FSIZE cut it short
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return program


def _is_whole(program: bytes, byte_order: str) -> bool:
    """Whether no jump of a program leads behind its end, where an answer has to be."""
    layout = _layout(byte_order)
    if not program or len(program) % struct.calcsize(layout):
        return False
    code = list(struct.iter_unpack(layout, program))
    ends = [at + 1 + (k if op == _BPF_JA else max(yes, no) if op & 7 == _BPF_JMP else 0)
            for at, (op, yes, no, k) in enumerate(code)]  # fmt: skip
    return code[-1][0] == _BPF_RET_K and all(end < len(code) for end in ends[:-1])


def _argument(library: Any, item: Comparison) -> Any:
    if item.mask is None:
        return library.Arg(item.argument, library.EQ, item.value)
    return library.Arg(item.argument, library.MASKED_EQ, item.mask, item.value)


def _check_number(number: int, call: str, target: Architecture) -> None:
    """Refuse what is no call of an architecture.

    libseccomp's negative numbers: -1 unknown, -100 and below a sub-call of socketcall(2), -200 and
    below one of ipc(2), -10000 and below a call that other architectures have.
    """
    if number == -1:
        raise _UnsupportedError(f"{call}: no system call that this libseccomp knows")
    if number < 0:
        raise _UnsupportedError(f"{call}: {target.name} has no such system call")


def _guarded(
    library: Any, allowed: dict[str, Alternatives], target: Architecture
) -> dict[str, int]:
    """The numbers of the calls that the prelude serves."""
    direct, token = DIRECT.get(target.name, {}), getattr(library.Arch, target.token)
    numbers = {}
    for call, alternatives in allowed.items():
        if prelude.serves(call, alternatives, target):
            number = direct.get(call) or library.resolve_syscall(token, call)
            _check_number(number, call, target)
            numbers[call] = number
    return numbers
