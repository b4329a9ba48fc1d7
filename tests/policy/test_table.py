# SPDX-License-Identifier: GPL-2.0-or-later
"""What a start reads of the policies is what their files say."""

from __future__ import annotations

import pytest

from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.model.roles import POLICIES
from hardsplice.sandbox.policy import forms
from hardsplice.sandbox.policy.files import load_policy
from hardsplice.sandbox.policy.model import notified, resolve, without_texts
from hardsplice.sandbox.policy.rules import FILES
from hardsplice.sandbox.policy.table import policy_of


@pytest.mark.parametrize("role", POLICIES)
def test_a_policy_is_that_of_its_file_without_the_texts(role: str) -> None:
    assert policy_of(role) == without_texts(load_policy(role))


def test_a_table_that_says_something_else_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forms.check(["guard"])[1] == []
    include, capabilities, descriptors, addresses, lines = FILES["guard"]
    changed = (include, capabilities, {**descriptors, "REPORT": 4}, addresses, lines)
    monkeypatch.setitem(FILES, "guard", changed)
    assert forms.check(["guard"])[1] == ["guard: a start reads another one: make generate"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("role", POLICIES)
def test_it_allows_the_same_in_numbers(role: str, arch: str) -> None:
    quick, written = policy_of(role), load_policy(role)
    assert resolve(quick, arch) == resolve(written, arch)
    assert notified(quick, arch) == notified(written, arch)
