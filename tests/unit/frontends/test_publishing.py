# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program takes for the server of its ports, and how long it waits for one that hears
nobody.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hardsplice.frontends import packets, publishing
from hardsplice.model.errors import HardspliceError


@pytest.mark.parametrize("mode", [0o777, 0o750, 0o701])
def test_a_folder_that_others_may_use_is_refused(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "hardsplice"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(HardspliceError, match="not for its user alone"), locked(folder):
        pass


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "hardsplice"
    with locked(folder):
        pass
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(HardspliceError, match="not for its user alone"), locked(folder):
        pass


def test_a_server_that_accepts_nobody_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "SECONDS", 0.05)
    path = str(tmp_path / "1.sock")
    with packets.listen(path, 0), packets.connect(path):
        with pytest.raises(HardspliceError, match="does not answer") as raised:
            publishing._connected(path)
        assert "kill -KILL PID, of: ps -C hs-host" in str(raised.value.hint)
        os.utime(path, (0, 0))
        publishing._forget_ended(str(tmp_path))
        assert os.path.exists(path)


def test_sockets_of_who_was_killed_are_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("ended", "ended.sock", "serves", "young", "file", "folder", "link")
    made = {name: packets.listen(str(tmp_path / name), 1) for name in names[:4]}
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in names:
        if name not in ("young", "link"):
            os.utime(tmp_path / name, (0, 0))
    for name in ("ended", "ended.sock", "young"):
        made[name].close()
    with made["serves"]:
        publishing._forget_ended(str(tmp_path), ".sock")
        assert {one.name for one in tmp_path.iterdir()} == {*names} - {"ended.sock"}
        publishing._forget_ended(str(tmp_path / "nothing"))
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        publishing._forget_ended(str(tmp_path))
        monkeypatch.undo()
        assert (tmp_path / "ended").exists(), "it is another user's"
        publishing._forget_ended(str(tmp_path))
        assert {one.name for one in tmp_path.iterdir()} == {*names[2:]}


def locked(folder: Path) -> AbstractContextManager[None]:
    return publishing._locked(str(folder))
