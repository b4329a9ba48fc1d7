# SPDX-License-Identifier: GPL-2.0-or-later
"""What a start reads of the policies is what their files say."""

from __future__ import annotations

import pytest

from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.model.roles import POLICIES
from hardsplice.sandbox.policy.files import load_policy
from hardsplice.sandbox.policy.model import Rule, notified, resolve
from hardsplice.sandbox.policy.table import policy_of


def without_texts(rule: Rule) -> Rule:
    return rule._replace(why="", where=(), source=None, risk=None)


@pytest.mark.parametrize("role", POLICIES)
def test_a_policy_is_that_of_its_file_without_the_texts(role: str) -> None:
    written = load_policy(role)
    rules = tuple(map(without_texts, written.rules))
    assert policy_of(role) == written._replace(summary="", notes={}, rules=rules)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("role", POLICIES)
def test_it_allows_the_same_in_numbers(role: str, arch: str) -> None:
    quick, written = policy_of(role), load_policy(role)
    assert resolve(quick, arch) == resolve(written, arch)
    assert notified(quick, arch) == notified(written, arch)
