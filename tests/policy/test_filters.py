# SPDX-License-Identifier: GPL-2.0-or-later
"""Every filter, on every architecture, answers every system call as the policy's text says.

The filters are asked through an interpreter of our own (bpf.py), the text is read by an oracle of
our own (oracle.py). What this can't show is what a call means to a real kernel: where arguments lie
behind pointers, as in socketcall(2), no filter can say more than which call it is.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import pytest

from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.model.errors import HardspliceError
from hardsplice.sandbox import libseccomp, seccomp
from hardsplice.sandbox.policy import prelude
from hardsplice.sandbox.policy.files import load_policy
from hardsplice.sandbox.policy.model import Alternatives
from hardsplice.sandbox.seccomp import answers, compile_policy, right_answers
from tests.policy import oracle
from tests.policy.bpf import ALLOW, KILL_PROCESS, NOTIFY, Call, Filter

ROLES, ARCHES = oracle.ROLES, oracle.ARCHES
X32 = 0x40000000  # __X32_SYSCALL_BIT
SOCKETCALL = 102  # on i686, ppc64le and s390x

everywhere = pytest.mark.parametrize("arch", ARCHES)
everyone = pytest.mark.parametrize("role", ROLES)


@cache
def program(role: str, arch: str) -> bytes:
    return compile_policy(load_policy(role), arch)


@cache
def filter_of(role: str, arch: str) -> Filter:
    return Filter(program(role, arch), oracle.BYTE_ORDER[arch])


def every_number(arch: str) -> Iterator[int]:
    """All numbers that an architecture has, and more: to 1,100, ARM's private ones, the edges."""
    yield from range(1100)
    yield from range(0xF0000, 0xF0010)
    yield from (0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def common_vectors(arch: str) -> list[tuple[int, ...]]:
    """Arguments that any call is tried with."""
    top = 2 ** oracle.BITS[arch] - 1
    dice = random.Random(arch)
    some = [tuple(dice.choice((0, 1, 3, dice.randint(0, top))) for _ in range(6)) for _ in range(3)]
    return [(0,) * 6, (top,) * 6, *some]


def tries(role: str, arch: str) -> Iterator[Call]:
    """Every number with some arguments; a number that has rules with arguments made from them."""
    ruled = oracle.allowed_by_number(role, arch)
    common = common_vectors(arch)
    for number in every_number(arch):
        for arguments in common:
            yield Call(number, oracle.AUDIT[arch], arguments)
        if number in ruled:
            for arguments in oracle.vectors(ruled[number], arch):
                yield Call(number, oracle.AUDIT[arch], arguments)
        if number == SOCKETCALL:
            for subcall in range(32):
                for rest in ((0,) * 5, (1,) * 5, common[1][1:]):
                    yield Call(number, oracle.AUDIT[arch], (subcall, *rest))


def disagreements(asked: Filter, role: str, arch: str) -> list[tuple[Call, int]]:
    """Calls that the filter answers otherwise than the text says."""
    found = []
    for call in tries(role, arch):
        allowed = oracle.may(role, arch, call.number, call.arguments)
        yes = NOTIFY if call.number in oracle.notified(role, arch) else ALLOW
        answer = asked.answer(call)
        if answer != (yes if allowed else KILL_PROCESS):
            found.append((call, answer))
    return found


@cache
def allowed_calls(role: str, arch: str) -> frozenset[str]:
    """The names of the calls that a filter lets through, with whatever arguments."""
    names = {number: name for name, number in oracle.numbers(arch).items()}
    asked = filter_of(role, arch)
    return frozenset(
        names.get(call.number, f"number {call.number}")
        for call in tries(role, arch)
        if asked.answer(call) in (ALLOW, NOTIFY)
    )


# --- the filter is the policy ---------------------------------------------------------------------


@everyone
@everywhere
def test_a_filter_says_of_every_call_what_its_policy_says(role: str, arch: str) -> None:
    assert disagreements(filter_of(role, arch), role, arch) == []


@everyone
@everywhere
def test_every_rule_lets_something_through(role: str, arch: str) -> None:
    assert allowed_calls(role, arch) == set(oracle.allowed(role, arch))


@everyone
@everywhere
def test_calls_of_another_architecture_are_killed(role: str, arch: str) -> None:
    asked = filter_of(role, arch)
    foreign = [audit for other, audit in oracle.AUDIT.items() if other != arch]
    byte_swapped = struct.unpack("<I", struct.pack(">I", oracle.AUDIT[arch]))[0]
    answers = {
        asked.answer(Call(number, audit, arguments))
        for audit in (*foreign, byte_swapped, 0)
        for number, ways in oracle.allowed_by_number(role, arch).items()
        for arguments in list(oracle.vectors(ways, arch))[:50]
    }
    assert answers == {KILL_PROCESS}


@everyone
def test_x32_calls_are_killed(role: str) -> None:
    asked = filter_of(role, "x86_64")
    answers = {
        asked.answer(Call(X32 + number, oracle.AUDIT["x86_64"], arguments))
        for number in range(1100)
        for arguments in common_vectors("x86_64")
    }
    assert answers == {KILL_PROCESS}


# --- the comparison can fail ----------------------------------------------------------------------


def test_a_filter_that_kills_what_it_should_allow_is_noticed() -> None:
    assert disagreements(filter_of("relay", "x86_64"), "monitor", "x86_64")


def test_a_filter_that_allows_what_it_should_kill_is_noticed() -> None:
    assert disagreements(filter_of("monitor", "arm64"), "relay", "arm64")


def test_a_wrong_constant_is_noticed() -> None:
    changed = program("relay", "riscv64").replace(
        struct.pack("<I", 0x8905), struct.pack("<I", 0x8906), 1
    )  # SIOCATMARK
    assert disagreements(Filter(changed, "little"), "relay", "riscv64")


@pytest.mark.parametrize("arch", ["i686", "ppc64le", "s390x"])
def test_libseccomp_would_open_a_second_door_for_socket_calls(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a rule about `accept4` it also lets socketcall through, and compares the wrong registers;
    so it has none.
    """
    target = ARCHITECTURES[arch]
    library = libseccomp.load()
    order = oracle.BYTE_ORDER[arch]
    anyhow: Alternatives = ((),)
    whole = {"accept4": anyhow, "splice": anyhow}
    assert answers_socketcall(Filter(seccomp._compile(library, whole, target), order), arch) == {
        KILL_PROCESS
    }
    monkeypatch.setattr(prelude, "DIRECT", {})
    monkeypatch.setattr(seccomp, "_check_number", lambda *_: None)
    changed = Changed(library, lambda rules: rules.add_rule)
    bare = Filter(seccomp._compile(changed, whole, target), order)
    assert ALLOW in answers_socketcall(bare, arch)


class Changed:
    """A binding of libseccomp, or a filter of one, that adds a rule in another way."""

    def __init__(self, of: Any, way: Callable[[Any], Callable[..., None]]) -> None:
        self._of, self._way = of, way

    def __getattr__(self, name: str) -> Any:
        return self._way(self._of) if name == "add_rule_exactly" else getattr(self._of, name)

    def SyscallFilter(self, action: int) -> Changed:  # noqa: N802 - the binding's name
        return Changed(self._of.SyscallFilter(action), self._way)


def answers_socketcall(asked: Filter, arch: str) -> set[int]:
    return {
        asked.answer(Call(SOCKETCALL, oracle.AUDIT[arch], (subcall, 0, 0, 0, 0, 0)))
        for subcall in range(32)
    }


# --- what must never be allowed -------------------------------------------------------------------

# Patterns of names; a relay may make none of these calls in any way.
FORBIDDEN_FOR_RELAYS = """
    socket socketpair bind listen accept
    open openat openat2 open_by_handle_at creat name_to_handle_at
    execve execveat clone clone3 fork vfork
    setns unshare mount mount_* move_mount open_tree fsopen fsmount fsconfig fspick umount umount2
    pivot_root chroot ptrace process_vm_* process_m* pidfd_* kcmp
    kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn sigreturn
    prctl seccomp arch_prctl personality set*id* capset
    memfd_* io_uring_* io_setup io_submit bpf userfaultfd perf_event_open keyctl add_key request_key
    read readv pread64 preadv* recvmmsg* sendmmsg write writev pwrite64 pwritev*
    sendfile* tee vmsplice copy_file_range
    dup dup2 dup3 shmat shmget msg* sem* mq_* remap_file_pages pkey_*
    init_module finit_module kexec_* reboot swapon quotactl* fanotify_* inotify_*
    landlock_* modify_ldt ipc
""".split()  # noqa: SIM905 - a table of words, not code


@everywhere
def test_a_relay_may_make_none_of_the_forbidden_calls(arch: str) -> None:
    names = allowed_calls("relay", arch)
    bad = {name for name in names for no in FORBIDDEN_FOR_RELAYS if fnmatchcase(name, no)}
    assert bad == set()


@pytest.mark.parametrize("pattern", FORBIDDEN_FOR_RELAYS)
def test_every_forbidden_pattern_means_some_call(pattern: str) -> None:
    names = {name for arch in ARCHES for name in oracle.numbers(arch)}
    assert any(fnmatchcase(name, pattern) for name in names)


@everyone
@everywhere
def test_no_role_may_make_memory_executable(role: str, arch: str) -> None:
    executable = (0, 4096, 1 | 4, 0x22, 2 ** oracle.BITS[arch] - 1, 0)  # PROT_READ | PROT_EXEC
    calls = {
        name
        for name in ("mmap", "mmap2", "mprotect", "pkey_mprotect", "remap_file_pages", "shmat")
        if name in oracle.numbers(arch)
        and filter_of(role, arch).answer(
            Call(oracle.numbers(arch)[name], oracle.AUDIT[arch], executable)
        )
        == ALLOW
    }
    # There mmap takes a pointer to its arguments: no filter can tell, and the policy says so.
    assert calls == ({"mmap"} if arch == "s390x" else set())


@everyone
@pytest.mark.parametrize("arch", ["i686", "ppc64le", "s390x"])
def test_socketcall_lets_nothing_through(role: str, arch: str) -> None:
    asked = filter_of(role, arch)
    top = 2 ** oracle.BITS[arch] - 1
    answers = {
        asked.answer(Call(SOCKETCALL, oracle.AUDIT[arch], (subcall, *rest)))
        for rest in ((0,) * 5, (top,) * 5, (1,) * 5, (3,) * 5)
        for subcall in (*range(64), top, 1 << 31)
    }
    assert answers == {KILL_PROCESS}


@everyone
@pytest.mark.parametrize("arch", oracle.ARCHES)
def test_a_filter_answers_yes_or_kills_and_nothing_else(role: str, arch: str) -> None:
    """Where ports change, it may also say that the monitor serves a call."""
    program = compile_policy(load_policy(role), arch)
    asks = {NOTIFY} if oracle.notified(role, arch) else set()
    assert answers(program, oracle.BYTE_ORDER[arch]) == {ALLOW, KILL_PROCESS} | asks


def test_an_answer_in_the_wrong_byte_order_is_noticed_and_put_right() -> None:
    """As libseccomp has been seen to write them for s390x, in programs with long jumps."""
    program = compile_policy(load_policy("relay"), "s390x")
    kill = struct.pack(">HBBI", 6, 0, 0, KILL_PROCESS)
    assert kill in program
    broken = program.replace(kill, struct.pack(">HBBI", 6, 0, 0, 0x80))
    assert answers(broken, "big") == {ALLOW, 0x80}
    assert right_answers(broken, "big") == right_answers(program, "big") == program


def test_too_little_memory_for_a_rule_is_a_limit_and_has_its_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It isn't the rule that libseccomp can't express."""

    def add_rule(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    changed = Changed(libseccomp.load(), lambda _: add_rule)
    monkeypatch.setattr(libseccomp, "load", lambda: changed)
    monkeypatch.setattr(seccomp, "next_step", lambda error: error and "more memory")
    with pytest.raises(HardspliceError) as caught:
        compile_policy(load_policy("monitor"), "x86_64")
    assert str(caught.value).endswith(": libseccomp: Cannot allocate memory")
    assert caught.value.hint == "more memory"
