# SPDX-License-Identifier: GPL-2.0-or-later
"""Every rule names the function that needs it, and that function exists."""

from __future__ import annotations

import pytest

from hardsplice.model.roles import POLICIES
from hardsplice.sandbox.policy.files import load_policy
from hardsplice.sandbox.policy.format import parse_policy
from hardsplice.sandbox.policy.forms import missing_functions


@pytest.mark.parametrize("role", POLICIES)
def test_the_functions_that_a_policy_names_exist(role: str) -> None:
    assert missing_functions(load_policy(role)) == ()


@pytest.mark.parametrize(
    ("where", "exists"),
    [
        ("hardsplice.sandbox.seccomp.compile_policy", True),
        ("hardsplice.sandbox.policy.model.Policy.rules_for", True),
        ("hardsplice.relay.tcp.seam.open_pipe", True),
        ("hardsplice.sandbox.seccomp.compile_policies", False),
        ("hardsplice.sandbox.policy.model.Policy.compile_policy", False),
        ("hardsplice.sandbox.policy.model.Policy", False),
        ("hardsplice.sandbox.seccomp", False),
        ("hardsplice.nowhere.compile_policy", False),
        ("hardsplice.sandbox.seccomp.contextlib.suppress", False),
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
