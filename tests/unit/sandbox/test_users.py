# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections.abc import Callable

import pytest

from hardsplice.kernel import ids
from hardsplice.model.errors import HardspliceError
from hardsplice.model.identity import OWN, RunAs
from hardsplice.sandbox import users

SOMEBODY = RunAs(1000, 100)
Start = Callable[..., None]


@pytest.fixture
def started_by(monkeypatch: pytest.MonkeyPatch) -> Start:
    def start(uid: int, *, all_ids: bool = True, mapped: bool = True) -> None:
        monkeypatch.setattr("os.geteuid", lambda: uid)
        monkeypatch.setattr(users, "may_change", lambda: uid == 0)
        monkeypatch.setattr(ids, "owns_all_ids", lambda: all_ids)
        monkeypatch.setattr(users, "is_mapped", lambda _: mapped)

    return start


@pytest.mark.parametrize(
    ("uid", "all_ids", "asked", "becomes", "keeps_root"),
    [
        (0, True, None, users.NOBODY, False),
        (0, True, SOMEBODY, SOMEBODY, False),
        (0, True, RunAs(0, 0), RunAs(0, 0), True),
        (0, False, None, None, False),  # root of a user namespace stays what it is
        (0, False, RunAs(0, 0), RunAs(0, 0), False),
        (1000, True, None, None, False),
        (1000, True, SOMEBODY, SOMEBODY, False),
    ],
)
def test_whom_it_becomes(
    started_by: Start,
    uid: int,
    all_ids: bool,
    asked: RunAs | None,
    becomes: RunAs | None,
    keeps_root: bool,
) -> None:
    started_by(uid, all_ids=all_ids)
    assert users.own_user(asked) == becomes
    assert users.keeps_root(becomes) == keeps_root


def test_one_of_its_own_is_another_one_each_time(started_by: Start) -> None:
    """Some limits are counted by user, and nobody has such an id."""
    started_by(0)
    found = [users.own_user(OWN) for _ in range(20)]
    assert len({*found}) == 20
    for one in found:
        assert one is not None
        assert one.uid == one.gid
        assert 0x7800_0000 <= one.uid < 0x7C00_0000


def test_where_such_ids_are_not_mapped_it_is_nobody(
    started_by: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with 65536 ids."""
    started_by(0, all_ids=False)
    monkeypatch.setattr(users, "is_mapped", lambda user: user.uid < 65536)
    assert users.own_user(OWN) == users.NOBODY
    started_by(1001)
    with pytest.raises(HardspliceError, match="only root may"):
        users.own_user(OWN)


def test_only_root_becomes_somebody_else(started_by: Start) -> None:
    started_by(1001)
    with pytest.raises(HardspliceError, match="only root may"):
        users.own_user(SOMEBODY)


def test_nor_whom_the_user_namespace_does_not_know(started_by: Start) -> None:
    started_by(0, all_ids=False, mapped=False)
    with pytest.raises(HardspliceError, match="does not map it"):
        users.own_user(SOMEBODY)
