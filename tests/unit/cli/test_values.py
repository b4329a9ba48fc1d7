# SPDX-License-Identifier: GPL-2.0-or-later
"""Values of options: what a text stands for. What is wrong with one: unit/app/test_options.py."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from hardsplice.cli import values
from hardsplice.model.errors import HardspliceError
from hardsplice.model.identity import RunAs


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("5000", 5000),
        ("4k", 4096),
        ("64K", 65536),
        ("2m", 2 << 20),
        ("3G", 3 << 30),
    ],
)
def test_log_size_has_units_of_1024(text: str, size: int) -> None:
    assert values.size(text) == size


@pytest.mark.parametrize(("processors", "workers"), [(1, 1), (3, 3), (64, 64), (500, 64)])
def test_workers_auto_is_the_processors_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, processors: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    assert values.workers("auto") == workers


def test_runas_takes_logins_and_numbers() -> None:
    user = pwd.getpwuid(0)
    group = grp.getgrgid(user.pw_gid)
    primary = RunAs(0, user.pw_gid)
    assert values.runas(user.pw_name) == primary
    assert values.runas("0") == primary
    assert values.runas(f"0:{group.gr_name}") == RunAs(0, group.gr_gid)
    assert values.runas(f"{user.pw_name}:4242") == RunAs(0, 4242)
    assert values.runas("4242:4343") == RunAs(4242, 4343)


def test_a_uid_without_an_account_needs_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_has_it(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody_has_it)
    with pytest.raises(HardspliceError, match="write 4242:GID"):
        values.runas("4242")
