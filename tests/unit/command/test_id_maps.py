# SPDX-License-Identifier: GPL-2.0-or-later
"""Subordinate ids: what /etc/subuid gives, and the maps that come of it."""

from __future__ import annotations

import pytest

from hardsplice.command.id_maps import IdMap, first_free, helper_hint, of_command, parse
from hardsplice.model.identity import RunAs


@pytest.mark.parametrize(
    ("lines", "ranges"),
    [
        ((), ()),
        (("me:100:5",), ((100, 5),)),
        (("1000:100:5", "you:7:8", "me:200:9"), ((100, 5), (200, 9))),
        (("me:100:5", "me:100:5\n"), ((100, 5),)),
        (("mes:1:2", "me", "me:", "me:1", "me:1:", "me:-1:5", "me:1:0", "# me:1:2", ""), ()),
        (("me:1:2:3", "me:1:99999999999", "me:\uff11:2"), ()),
    ],
)
def test_the_ranges_of_a_user_by_name_or_number(
    lines: tuple[str, ...], ranges: tuple[tuple[int, int], ...]
) -> None:
    assert parse(lines, {"me", "1000"}) == ranges


@pytest.mark.parametrize(
    ("lines", "first"),
    [
        ([], 100_000),
        (["low:1000:500"], 100_000),
        (["a:100000:65536", "b:165536:65536", "c:200000:1"], 231_072),
    ],
)
def test_ids_to_be_given_are_nobodys_yet(lines: list[str], first: int) -> None:
    assert first_free(lines) == first


def test_ids_inside_follow_each_other() -> None:
    made = IdMap(((1000, 1), (100_000, 10), (500_000, 20)))
    assert made.text == "0 1000 1\n1 100000 10\n11 500000 20"
    assert made.same_below == "0 0 1\n1 1 10\n11 11 20"


def test_without_subordinate_ids_there_is_root_alone() -> None:
    ids = of_command(RunAs(12, 34), with_subordinate=False)
    assert (ids.uids.text, ids.gids.text, ids.takes_helpers) == ("0 12 1", "0 34 1", False)


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("newuidmap: write to uid_map failed: Operation not permitted", "set-user-ID"),
        ("newuidmap: Could not set caps", "set-user-ID"),
        ("newgidmap: Target process 7 is owned by a different user: uid:1 pw_uid:1", "group"),
        ("newuidmap: uid range [1-9) -> [5-13) not allowed", None),
        ("newuidmap: write to uid_map failed: Invalid argument", None),
    ],
)
def test_a_hint_is_given_where_one_is_known(said: str, hint: str | None) -> None:
    found = helper_hint(said)
    assert (hint in found) if hint and found else (found is hint)
