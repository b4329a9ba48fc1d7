# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of roles says what is: policies, steps and names, each once."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from hardsplice.model.direction import Direction, GroupKey
from hardsplice.model.protocol import Protocol
from hardsplice.model.roles import (
    GUARD,
    HOST,
    INIT,
    NAMESPACE,
    POLICIES,
    RELAYS,
    ROLES,
    Role,
)
from hardsplice.sandbox.policy.files import policy_directory
from tests.support.sources import PACKAGE, parsed

COMM_LENGTH = 15  # bytes of a process's name (TASK_COMM_LEN, linux/sched.h)
ALL = pytest.mark.parametrize("role", ROLES.values(), ids=ROLES.keys())
# Where each role's lock-down is written down.
LOCKED_DOWN_IN = {
    HOST: ("app",),
    NAMESPACE: ("net/joining.py", "monitor"),
    GUARD: ("command/guard.py",),
    INIT: ("command/init.py",),
    **dict.fromkeys(RELAYS.values(), ("relay",)),
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


def test_with_udp_the_policy_is_another_one() -> None:
    assert HOST.policy_for(is_dynamic=False, has_udp=True) == "monitor-fixed-udp"
    assert HOST.policy_for(is_dynamic=True, has_udp=True) == "monitor-host-udp"
    control = HOST.policy_for(is_dynamic=True, has_control=True, has_udp=True)
    assert control == "monitor-control-udp"
    assert NAMESPACE.policy_for(is_dynamic=False, has_udp=True) == "monitor-udp"
    assert NAMESPACE.policy_for(is_dynamic=True, has_udp=True) == "monitor-ports-udp"
    assert INIT.policy_for(is_dynamic=True, has_udp=True) == "init"


_IN, _OUT = ((direction, Protocol.UDP) for direction in Direction)
_TCP = tuple((direction, Protocol.TCP) for direction in Direction)


@pytest.mark.parametrize(
    ("groups", "dynamic", "host", "namespace"),
    [
        (_TCP, _TCP, False, False),
        ((*_TCP, _IN), _TCP, False, True),
        ((*_TCP, _OUT), (), True, False),
        ((*_TCP, _IN), (_IN,), True, True),
        ((*_TCP, _OUT), (_OUT,), True, True),
        ((_IN, _OUT), (), True, True),
    ],
)
def test_a_monitor_has_to_do_with_udp_where_it_forks_its_relays_or_its_ports_change(
    groups: tuple[GroupKey, ...], dynamic: tuple[GroupKey, ...], host: bool, namespace: bool
) -> None:
    assert HOST.may_have_udp(groups, dynamic) is host
    assert NAMESPACE.may_have_udp(groups, dynamic) is namespace
    assert not INIT.may_have_udp((), ())
