# SPDX-License-Identifier: GPL-2.0-or-later
"""Where what engines started is kept, and that calls for one container wait for each other."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from hardsplice.frontends import folders, instances
from hardsplice.frontends.folders import runtime_folder
from hardsplice.frontends.instances import Instances
from hardsplice.model.errors import HardspliceError

REAL, OF_A_USER = "0 0 4294967295\n", "         0       1000          1\n         1 100000 65536\n"


@pytest.fixture
def some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instances:
    monkeypatch.setattr("hardsplice.kernel.ids.is_real_root", lambda: False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return Instances("oci")


def test_the_folder_of_root_is_no_users() -> None:
    assert runtime_folder({"XDG_RUNTIME_DIR": "/x"}, REAL, is_real_root=True) == "/run"


def test_the_folder_of_a_user() -> None:
    given = {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert runtime_folder(given, OF_A_USER, is_real_root=False) == "/run/user/7"


def test_the_folder_without_variables_is_of_who_is_root_in_the_user_namespace() -> None:
    assert runtime_folder({}, OF_A_USER, is_real_root=False) == "/run/user/1000"
    own = f"/run/user/{os.geteuid()}"
    assert runtime_folder({"XDG_RUNTIME_DIR": "x"}, REAL, is_real_root=False) == own


def test_only_the_owner_sees_what_is_there(some: Instances, tmp_path: Path) -> None:
    assert some.folder == f"{tmp_path}/hardsplice/oci"
    assert os.stat(some.folder).st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made(some: Instances, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{some.folder}/missing")
    with pytest.raises(HardspliceError, match="No such file") as caught:
        Instances("oci")
    assert "XDG_RUNTIME_DIR" in (caught.value.hint or "")


def test_roots_folder_has_nothing_to_do_with_that_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hardsplice.kernel.ids.is_real_root", lambda: True)
    monkeypatch.setattr(folders, "RUN", f"{tmp_path}/missing")
    with pytest.raises(HardspliceError, match="No such file") as caught:
        Instances("oci")
    assert caught.value.hint is None


def test_nothing_is_left_of_what_did_not_begin(some: Instances) -> None:
    with pytest.raises(ZeroDivisionError), some.locked("web"):
        raise ZeroDivisionError
    assert os.listdir(some.folder) == []


def test_a_note(some: Instances) -> None:
    with some.locked("web") as instance:
        assert instance.read_note() is None
        instance.write_note(b"one")
        instance.write_note(b"2")
        assert instance.read_note() == b"2"
    assert some.names() == ["web"]
    with some.locked("web") as instance:
        instance.end()
    assert (some.names(), os.listdir(some.folder)) == ([], [])


def test_a_pid_file_that_nobody_has_locked_says_nothing(some: Instances) -> None:
    with some.locked("web") as instance:
        Path(instance.pid_file).write_text(f"{os.getpid()}\n")
        assert not instance.runs()
        instance.end()  # and not us
        assert not instance.has_files()


def test_a_second_call_waits(some: Instances) -> None:
    order = []

    def second() -> None:
        with some.locked("web"):
            order.append("second")

    other = threading.Thread(target=second)
    with some.locked("web"):
        other.start()
        with some.locked("another"):
            order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert os.listdir(some.folder) == []


def test_a_second_call_does_not_wait_forever(
    some: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "LOCK_SECONDS", 0.0)
    with (
        some.locked("web"),
        pytest.raises(HardspliceError, match="cannot lock"),
        some.locked("web"),
    ):
        pass
