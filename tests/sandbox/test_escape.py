# SPDX-License-Identifier: GPL-2.0-or-later
"""No way out: attempts of attempts.py by each process of the real product at lock-down, and
without it.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator

import pytest

from hardsplice.sandbox import seccomp
from hardsplice.sandbox.policy.files import load_policy
from tests.policy import oracle
from tests.policy.bpf import ALLOW, Call, Filter
from tests.sandbox.attempts import MONITORS, REACHES, ROWS, SIGSYS, WORKS, X32, Row
from tests.sandbox.captured import Captured, Surroundings
from tests.sandbox.job import DONE, ROLES, Outcome
from tests.support.netns import Identity

pytestmark = [
    pytest.mark.usefixtures("nothing_left_behind"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86_64's"),
]
NATIVE, INT80 = range(601), range(470)
# uretprobe and uprobe: the kernel lets these past every filter, for the trampolines that it writes
# into probed processes; from elsewhere they get SIGILL or an error (arch/x86/kernel/uprobes.c).
UNFILTERED = {335, 336}


@pytest.fixture(scope="module")
def captured() -> Iterator[Captured]:
    program = Captured()
    yield program
    program.close()


def said(outcome: Outcome) -> str:
    """An outcome in the words of the table."""
    if outcome.signal == signal.SIGSYS:
        return SIGSYS
    if outcome.signal:
        return signal.Signals(outcome.signal).name
    if outcome.state != DONE:
        return f"status {outcome.status}"
    return WORKS if outcome.result >= 0 else errno.errorcode.get(-outcome.result, "?")


def rows_of(role: str, *, server: bool = False) -> list[Row]:
    return [row for row in ROWS.values() if role in row.roles and (server or not row.server)]


def tried(
    captured: Captured,
    identity: Identity,
    role: str,
    *,
    bare: bool,
    dynamic: bool = False,
    udp: bool = False,
    server: bool = False,
) -> dict[str, str]:
    """What comes of each row that this role has."""
    rows = rows_of(role, server=server)
    outcomes = Surroundings(captured, identity).attempt(
        role,
        [f"row:{row.name}" for row in rows],
        bare=bare,
        clients=sum(row.clients for row in rows),
        dynamic=dynamic,
        udp=udp,
        server=sum(row.server for row in rows) if server else None,
    )
    return {row.name: said(outcome) for row, outcome in zip(rows, outcomes, strict=True)}


@pytest.mark.parametrize("role", ROLES)
def test_no_attempt_succeeds(captured: Captured, identity: Identity, role: str) -> None:
    found = tried(captured, identity, role, bare=False)
    assert found == {row.name: row.expected(role) for row in rows_of(role)}


@pytest.mark.parametrize("role", ["relay-in", "udp-in", "namespace", "host"])
def test_nor_where_ports_may_change(captured: Captured, identity: Identity, role: str) -> None:
    found = tried(captured, identity, role, bare=False, dynamic=True)
    assert found == {row.name: row.expected(role, dynamic=True) for row in rows_of(role)}


@pytest.mark.parametrize("dynamic", [False, True], ids=["", "where ports may change"])
@pytest.mark.parametrize("role", ["relay-in", "relay-out", "namespace", "host"])
def test_nor_where_udp_is_forwarded_but_what_is_conceded(
    captured: Captured, identity: Identity, role: str, dynamic: bool
) -> None:
    """To monitors; relays of TCP can do no more by it."""
    found = tried(captured, identity, role, bare=False, dynamic=dynamic, udp=True)
    assert found == {
        row.name: row.expected(role, dynamic=dynamic, udp=True) for row in rows_of(role)
    }


def test_nor_where_many_containers_are_served(captured: Captured, identity: Identity) -> None:
    """By the server of rootlessport and docker-proxy: its host monitor has the filter of those that
    serve a control socket, and clients besides.
    """
    found = tried(captured, identity, "host", bare=False, dynamic=True, udp=True, server=True)
    assert found == {
        row.name: row.expected("host", dynamic=True, udp=True)
        for row in rows_of("host", server=True)
    }


@pytest.mark.parametrize("role", ROLES)
def test_without_the_sandbox_they_do(captured: Captured, identity: Identity, role: str) -> None:
    """Else the sandbox would get the credit for somebody else's refusal."""
    server = role == "host"
    found = tried(captured, identity, role, bare=True, udp=True, server=server)
    wanted = {row.name: row.bare for row in rows_of(role, server=server)}
    wrong = {
        name: (found[name], bare)
        for name, bare in wanted.items()
        if found[name] != bare and (bare != REACHES or found[name] == SIGSYS)
    }
    assert wrong == {}


# --- every number ---------------------------------------------------------------------------------

_MINUS_ONE = (1 << 64) - 1
MACHINE_X86_64 = 0xC000003E  # AUDIT_ARCH_X86_64


def allowed_numbers(role: str) -> set[int]:
    """The calls that the filters of a role let through with every argument -1, and that its
    policy names.
    """
    allowed = set(NATIVE)
    both = {"relay-in": ("monitor", "relay"), "udp-in": ("monitor-udp", "relay-udp")}
    for name in both.get(role, (role,)):
        policy = {"namespace": "monitor", "host": "monitor-fixed"}.get(name, name)
        program = Filter(seccomp.compile_policy(load_policy(policy), "x86_64"), "little")
        named = oracle.allowed_by_number(policy, "x86_64")
        allowed &= {
            number
            for number in named
            if program.answer(Call(number, MACHINE_X86_64, 6 * (_MINUS_ONE,))) == ALLOW
        }
    return allowed


def refused(outcome: Outcome) -> bool:
    """Whether the kernel itself would have none of it."""
    return outcome.signal == signal.SIGILL or (outcome.state == DONE and outcome.result < 0)


def killed(captured: Captured, role: str, kind: str, numbers: range, *, bare: bool) -> set[int]:
    """The numbers that SIGSYS ended a process for, each of which had a process of its own.

    Counted with them are those that the kernel filters for nobody, if it refused them itself.
    """
    outcomes = Surroundings(captured, Identity("root" if os.geteuid() == 0 else "user")).attempt(
        role, [f"{kind}:{number}" for number in numbers], bare=bare, helper=kind == "int80"
    )
    return {
        number
        for number, outcome in zip(numbers, outcomes, strict=True)
        if outcome.signal == signal.SIGSYS
        or (not bare and number in UNFILTERED and refused(outcome))
    }


@pytest.mark.parametrize("role", ["relay-in", "udp-in", "host", "init", "guard"])
def test_every_other_number_kills(captured: Captured, role: str) -> None:
    """All arguments are -1, which does nothing in the few calls that a policy lets through like
    this.
    """
    allowed = allowed_numbers(role)
    assert 0 < len(allowed) < 60
    assert killed(captured, role, "native", NATIVE, bare=False) == set(NATIVE) - allowed


@pytest.mark.parametrize("role", ["relay-in", pytest.param("init", marks=pytest.mark.soak)])
@pytest.mark.parametrize(("kind", "numbers"), [("x32", NATIVE), ("int80", INT80)])
def test_every_number_of_another_convention_kills(
    captured: Captured, role: str, kind: str, numbers: range
) -> None:
    """x32 numbers, and those of a 32-bit program by int 0x80, the allowed calls among them."""
    assert killed(captured, role, kind, numbers, bare=False) == set(numbers)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [("native", NATIVE), ("x32", NATIVE), pytest.param("int80", INT80, marks=pytest.mark.soak)],
)
def test_without_the_sandbox_no_number_kills(captured: Captured, kind: str, numbers: range) -> None:
    """Made by PID 1 of a COMMAND, whose namespaces keep the machine safe from what -1 may do."""
    assert killed(captured, "init", kind, numbers, bare=True) == set()


def test_int_0x80_reaches_the_kernel_as_another_call(captured: Captured) -> None:
    """Number 20 is getpid there and writev here: the helper does what it is there for."""
    identity = Identity("root" if os.geteuid() == 0 else "user")
    (outcome,) = Surroundings(captured, identity).attempt(
        "host", ["int80:20"], bare=True, helper=True
    )
    if outcome.result == -errno.ENOSYS:
        pytest.skip("this kernel has no IA32 emulation")
    assert outcome.result > 0


def test_x32_is_the_same_number_with_a_bit() -> None:
    assert X32 == 1 << 30


def test_only_monitors_are_conceded_something_with_udp() -> None:
    assert {role for row in ROWS.values() for role in row.udp} == set(MONITORS)
    assert {row.name for row in ROWS.values() if row.udp} == {
        "UDP in a monitor: a socket",
        "UDP in a monitor: to any port from a listener",
        "UDP in a monitor: to any port from a socket of its own",
        "UDP in a monitor: connect to the target",
        "UDP in a monitor: receive from a listener",
    }


def test_the_table_tries_what_it_should() -> None:
    """Rows that expect something else than SIGSYS are few, and named here."""
    assert {row.name: dict(row.elsewhere) for row in ROWS.values() if row.elsewhere}.keys() == {
        "kill a process outside",
        "SIGKILL to a process outside, by the one signal call that a monitor has",
        "connect to a target, by its slot",
        "connect to an unused slot",
        "connect to a slot that the book has no memory for",
        "write into the book",
        "write an option's value",
        "a message to an abstract socket",
        "mmap, more memory than any process may have",
        "datagrams: to any port from a listener",
        "datagrams: the same from another local address",
        "datagrams: to the target",
        "datagrams: receive from a listener",
        "datagrams: receive from a listener of TCP",
        "datagrams: from a listener of TCP",
        "server: accept a client",
        "server: ask who a client is",
        "server: take what a client passes",
        "server: tell a client something",
        "server: close what a client has passed",
    }
