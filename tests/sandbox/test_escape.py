# SPDX-License-Identifier: GPL-2.0-or-later
"""No way out: attempts of attempts.py by each process of the real product at lock-down, and without it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator

import pytest

from hardsplice import seccomp
from tests.policy import oracle
from tests.policy.bpf import ALLOW, Call, Filter
from tests.sandbox.attempts import REACHES, ROWS, SIGSYS, WORKS, X32, Row
from tests.sandbox.captured import Captured, Surroundings
from tests.sandbox.job import DONE, ROLES, Outcome
from tests.support.netns import Identity

pytestmark = [
    pytest.mark.usefixtures("nothing_left_behind"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86_64's"),
]
NATIVE, INT80 = range(601), range(470)


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


def rows_of(role: str) -> list[Row]:
    return [row for row in ROWS.values() if role in row.roles]


def tried(captured: Captured, identity: Identity, role: str, *, bare: bool) -> dict[str, str]:
    """What comes of each row that this role has."""
    rows = rows_of(role)
    outcomes = Surroundings(captured, identity).attempt(
        role,
        [f"row:{row.name}" for row in rows],
        bare=bare,
        clients=sum(row.clients for row in rows),
    )
    return {row.name: said(outcome) for row, outcome in zip(rows, outcomes, strict=True)}


@pytest.mark.parametrize("role", ROLES)
def test_no_attempt_succeeds(captured: Captured, identity: Identity, role: str) -> None:
    found = tried(captured, identity, role, bare=False)
    assert found == {row.name: row.expected(role) for row in rows_of(role)}


@pytest.mark.parametrize("role", ROLES)
def test_without_the_sandbox_they_do(captured: Captured, identity: Identity, role: str) -> None:
    """Else the sandbox would get the credit for somebody else's refusal."""
    found = tried(captured, identity, role, bare=True)
    wanted = {row.name: row.bare for row in rows_of(role)}
    wrong = {
        name: (found[name], bare)
        for name, bare in wanted.items()
        if found[name] != bare and (bare != REACHES or found[name] == SIGSYS)
    }
    assert wrong == {}
