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
        with pytest.raises(HardspliceError, match="does not answer"):
            publishing._connected(path)
        publishing._forget_others(str(tmp_path))
        assert os.path.exists(path)


def locked(folder: Path) -> AbstractContextManager[None]:
    return publishing._locked(str(folder))
