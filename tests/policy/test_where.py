# SPDX-License-Identifier: GPL-2.0-or-later
"""Every rule names the function that needs it, and that function exists."""

from __future__ import annotations

import pytest

from hardsplice.policyfile import parse_policy
from hardsplice.policyforms import missing_functions
from hardsplice.seccomp import ROLES, load_policy


@pytest.mark.parametrize("role", ROLES)
def test_the_functions_that_a_policy_names_exist(role: str) -> None:
    assert missing_functions(load_policy(role)) == ()


@pytest.mark.parametrize(
    ("where", "exists"),
    [
        ("hardsplice.seccomp.compile_policy", True),
        ("hardsplice.policymodel.Policy.rules_for", True),
        ("hardsplice.relay.kernel.open_pipe", True),
        ("hardsplice.seccomp.compile_policies", False),
        ("hardsplice.policymodel.Policy.compile_policy", False),
        ("hardsplice.policymodel.Policy", False),
        ("hardsplice.seccomp", False),
        ("hardsplice.nowhere.compile_policy", False),
        ("hardsplice.seccomp.contextlib.suppress", False),
    ],
)
def test_a_function_is_found_exactly_where_it_is_defined(where: str, exists: bool) -> None:
    text = f"""
role = "relay"
summary = "for this test"
capabilities = []
[[rule]]
call = "close"
why = "for this test"
where = "{where}"
"""
    policy = parse_policy(text, "relay", read=lambda _: "")
    assert missing_functions(policy) == (() if exists else (("close", where),))
