# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of roles says what is: policies, steps and names, each once."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from hardsplice.model.roles import (
    GUARD,
    HOST,
    INBOUND_RELAY,
    INIT,
    NAMESPACE,
    OUTBOUND_RELAY,
    POLICIES,
    ROLES,
    Role,
)
from hardsplice.sandbox.seccomp import policy_directory
from tests.support.sources import PACKAGE, parsed

COMM_LENGTH = 15  # bytes of a process's name (TASK_COMM_LEN, linux/sched.h)
ALL = pytest.mark.parametrize("role", ROLES.values(), ids=ROLES.keys())
# Where each role's lock-down is written down.
LOCKED_DOWN_IN = {
    HOST: ("app",),
    NAMESPACE: ("net/joining.py", "monitor"),
    GUARD: ("command/guard.py",),
    INIT: ("command/init.py",),
    INBOUND_RELAY: ("relay",),
    OUTBOUND_RELAY: ("relay",),
}


def steps_in(places: tuple[str, ...]) -> Iterator[str]:
    """The functions of sandbox/steps.py that give steps and are called in there, as they stand."""
    for place in places:
        path = PACKAGE / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            for node in ast.walk(parsed(file)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    of = node.func.value
                    is_of_steps = isinstance(of, ast.Name) and of.id == "steps"
                    if is_of_steps and node.func.attr.endswith(("_steps", "_step")):
                        yield node.func.attr


@ALL
def test_a_role_takes_the_steps_that_are_written_beside_it(role: Role) -> None:
    assert sorted(steps_in(LOCKED_DOWN_IN[role])) == sorted(role.steps)


@ALL
def test_a_name_is_one_that_the_kernel_keeps_whole(role: Role) -> None:
    assert len(role.name) <= COMM_LENGTH
    assert role is HOST or role.parent in ROLES


def test_every_policy_is_a_role_s_but_the_one_that_others_include() -> None:
    files = {path.stem for path in policy_directory().glob("*.toml")}
    assert files - set(POLICIES) == {"runtime"}
    assert set(POLICIES) <= files


def test_the_policy_is_that_of_what_options_ask_for() -> None:
    assert HOST.policy_for(is_dynamic=False) == "monitor-fixed"
    assert HOST.policy_for(is_dynamic=True) == "monitor-host"
    assert HOST.policy_for(is_dynamic=True, has_control=True) == "monitor-control"
    assert NAMESPACE.policy_for(is_dynamic=True, has_control=True) == "monitor-ports"
    assert GUARD.policy_for(is_dynamic=True) == "guard"
