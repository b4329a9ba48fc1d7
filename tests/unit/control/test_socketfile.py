# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket's file: who may replace what."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path

import pytest

from hardsplice.control import socketfile
from hardsplice.control.socketfile import SocketFile, remove_if_stale
from hardsplice.model.errors import HardspliceError


def leave_stale(path: Path) -> None:
    """A socket as a process leaves it that was killed."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control"


def refused(path: Path | str) -> HardspliceError:
    with pytest.raises(HardspliceError) as caught:
        SocketFile(str(path))
    return caught.value


@pytest.mark.parametrize("umask", [0, 0o77, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_who_may_connect_does_not_depend_on_the_umask(path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        made = SocketFile(str(path), mode)
        assert os.umask(umask) == umask, "it is as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert not os.get_inheritable(made.fileno())
    made.listener.close()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    leave_stale(path)
    made = SocketFile(str(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    made.listener.close()


def test_a_socket_that_somebody_listens_on_is_not(path: Path) -> None:
    made = SocketFile(str(path))
    failure = refused(path)
    assert str(failure) == f"cannot bind control socket {path}: another process listens there"
    assert failure.hint
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    made.listener.close()


def test_nor_one_whose_backlog_is_full(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        assert "another process listens" in str(refused(path))


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling"])
def test_what_is_no_socket_is_left_alone(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        target = path.with_name("target")
        if kind == "link":
            leave_stale(target)
        path.symlink_to(target)
    assert "something else than a socket is there" in str(refused(path))
    assert path.is_symlink() or path.exists()


@pytest.mark.parametrize(
    ("path", "said"),
    [("/nowhere/at/all", "No such file"), ("/" + "x" * 200, "too long"), ("/proc/x", "")],
)
def test_a_path_where_nothing_can_be_is_an_error(path: str, said: str) -> None:
    failure = refused(path)
    assert said in str(failure)
    assert str(failure).startswith("cannot bind control socket ")


def test_it_removes_what_it_made_and_nothing_else(path: Path) -> None:
    made = SocketFile(str(path))
    made.remove()
    assert not path.exists()
    path.write_text("somebody else's")
    made.remove()
    assert path.exists()
    made.listener.close()


def test_whoever_started_it_removes_what_is_stale_and_nothing_else(path: Path) -> None:
    remove_if_stale(str(path))
    leave_stale(path)
    remove_if_stale(str(path))
    assert not path.exists()
    made = SocketFile(str(path))
    remove_if_stale(str(path))
    assert path.exists()
    made.listener.close()


def test_a_folder_that_somebody_keeps_is_not_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketfile, "LOCK_SECONDS", 0.05)
    supervisor = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(supervisor, fcntl.LOCK_EX)
    file = SocketFile(str(path))
    os.close(supervisor)
    file.listener.close()
    file.remove()
    assert not path.exists()


def test_nothing_stays_open_after_an_error(path: Path) -> None:
    path.write_text("")
    before = len(os.listdir("/proc/self/fd"))
    refused(path)
    assert len(os.listdir("/proc/self/fd")) == before
