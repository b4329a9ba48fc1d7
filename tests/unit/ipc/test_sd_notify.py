# SPDX-License-Identifier: GPL-2.0-or-later
"""What a service manager's environment says, what it is told, and when the watchdog is fed."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.ipc.sd_notify import VARIABLES, Manager, Notifier, Watchdog, forget, manager_of
from hardsplice.kernel.scm import Messages
from hardsplice.model.errors import HardspliceError
from hardsplice.net.inherited import Passed
from tests.support.manager import notify_socket

NOTHING = Manager(None, None, 0, ())


def test_without_a_service_manager_there_is_nothing() -> None:
    assert manager_of({}, 7) == NOTHING
    assert manager_of(dict.fromkeys(VARIABLES, ""), 7) == NOTHING


def test_all_that_a_service_manager_says() -> None:
    environment = {
        "NOTIFY_SOCKET": "/run/notify",
        "WATCHDOG_USEC": "1500000",
        "WATCHDOG_PID": "7",
        "LISTEN_PID": "7",
        "LISTEN_FDS": "2",
        "LISTEN_FDNAMES": "web:hardsplice/inbound/8080",
        "FDSTORE": "64",
    }
    passed = (("web", 3), ("hardsplice/inbound/8080", 4))
    assert manager_of(environment, 7) == Manager("/run/notify", 1.5, 64, passed)
    assert manager_of(environment, 8) == Manager("/run/notify", None, 64, ()), "to somebody else"
    del environment["WATCHDOG_PID"]
    assert manager_of(environment, 8).watchdog == 1.5, "to whoever reads it"


@pytest.mark.parametrize("name", ["MAINPID", "SYSTEMD_EXEC_PID"])
def test_who_is_not_the_main_process_has_nobody_to_tell(name: str) -> None:
    """As after ExecStart= (ExecStartPost=), or started by the process that the manager started."""
    environment = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1500000", "FDSTORE": "64"}
    ours = Manager("/run/notify", 1.5, 64, ())
    assert manager_of({**environment, name: "7"}, 7) == ours
    assert manager_of({**environment, name: ""}, 7) == ours
    for other in ("6", "77", "0", "x"):
        assert manager_of({**environment, name: other}, 7) == NOTHING
    listening = {"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
    assert manager_of({**listening, name: "6"}, 7).passed == (("web", 3),), "it was passed that"


@pytest.mark.parametrize("names", ["", "one", "one:two:three"])
def test_names_that_do_not_fit_are_none(names: str) -> None:
    environment = {"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": names}
    assert manager_of(environment, 7).passed == (("unknown", 3), ("unknown", 4))


@given(st.sampled_from(VARIABLES), st.text(max_size=30))
def test_nonsense_is_nothing(name: str, value: str) -> None:
    """But a number of descriptors, which there would have to be."""
    if name not in ("WATCHDOG_USEC", "FDSTORE", "NOTIFY_SOCKET"):
        assert manager_of({"LISTEN_PID": "x", name: value}, 7) == NOTHING
    manager_of({name: value}, 7)


def test_only_sockets_of_the_file_system_and_abstract_ones_are_known() -> None:
    for path, known in (("@name", True), ("/name", True), ("vsock:2:1", False), ("name", False)):
        assert (manager_of({"NOTIFY_SOCKET": path}, 7).notify is not None) is known


def test_what_is_for_us_alone_is_taken_out() -> None:
    environment = {**dict.fromkeys(VARIABLES, "x"), "HOME": "/"}
    forget(environment)
    assert environment == {"HOME": "/"}


# --- what it is told ---


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with notify_socket(tmp_path) as end:
        yield end


def test_assignments_are_lines_of_one_message(manager: socket.socket) -> None:
    told = Notifier(manager.getsockname())
    told.say("READY=1", "STATUS=x")
    told.status("two\nlines\x1b", "STOPPING=1")
    assert manager.recv(1000) == b"READY=1\nSTATUS=x"
    assert manager.recv(1000) == b"STOPPING=1\nSTATUS=two\\nlines\\x1b"


def test_a_reload_says_since_when(manager: socket.socket) -> None:
    Notifier(manager.getsockname()).reloading()
    reloading, when = manager.recv(1000).decode().split("\n")
    assert reloading == "RELOADING=1"
    assert when.startswith("MONOTONIC_USEC=")
    assert int(when.partition("=")[2]) > 0


def test_descriptors_go_with_their_names(manager: socket.socket) -> None:
    told = Notifier(manager.getsockname())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        told.keep("a name", listener.fileno())
        text, (fd,), _, _ = socket.recv_fds(manager, 1000, 2)
        with socket.socket(fileno=fd) as got:
            assert got.getsockname() == listener.getsockname()
    assert text == b"FDSTORE=1\nFDNAME=a name"
    told.drop("a name")
    assert manager.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=a name"


def test_descriptors_that_can_not_be_sent_are_kept_by_nobody_and_that_is_said(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many of this user are under way: no reason not to start."""
    told = Notifier(manager.getsockname())

    def crowded(*_: object) -> int:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    monkeypatch.setattr(Messages, "sendmsg", crowded)
    assert not told.keep("a name", 0)
    with socket.create_server(("127.0.0.1", 0)) as one:
        current = [("a", one.fileno()), ("b", one.fileno()), ("c", one.fileno())]
        assert Passed((), 64).hand_over(told, current, 2) == (1, 2)


def test_a_manager_that_is_not_there_is_an_error_at_start_only(
    tmp_path: Path, manager: socket.socket
) -> None:
    with pytest.raises(HardspliceError, match="cannot reach the service manager at "):
        Notifier(str(tmp_path / "nobody"))
    told = Notifier(manager.getsockname())
    manager.close()
    told.say("READY=1")


def test_nobody_to_tell_is_no_error() -> None:
    told = Notifier(None)
    told.say("READY=1")
    told.keep("name", 0)
    told.drop("name")
    assert told.settle() == ()


# --- the watchdog ---


class Time:
    """Timers that a test lets run out."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        self.due.append((seconds, callback))

    def pass_by(self) -> None:
        ((_, callback),) = self.due
        self.due.clear()
        callback()


def fed(manager: socket.socket) -> int:
    """How often the watchdog was fed."""
    count = 0
    while True:
        try:
            assert manager.recv(100) == b"WATCHDOG=1"
        except BlockingIOError:
            return count
        count += 1


def test_the_watchdog_is_fed_when_all_have_answered(manager: socket.socket) -> None:
    time, asked = Time(), {"relays", "namespace"}
    watchdog = Watchdog(3.0, Notifier(manager.getsockname()), time.after, lambda: asked)
    watchdog.start()
    assert [seconds for seconds, _ in time.due] == [1.5]
    watchdog.answered("relays")
    watchdog.answered("relays")
    assert fed(manager) == 0
    watchdog.answered("namespace")
    assert fed(manager) == 1
    watchdog.answered("namespace")
    assert fed(manager) == 0, "once a round"
    time.pass_by()
    watchdog.answered("namespace")
    time.pass_by()
    watchdog.answered("relays")
    assert fed(manager) == 0, "each round asks everybody"
    watchdog.answered("namespace")
    assert fed(manager) == 1


def test_where_nothing_depends_on_others_the_loop_is_what_counts(manager: socket.socket) -> None:
    time = Time()
    Watchdog(1.0, Notifier(manager.getsockname()), time.after, set).start()
    assert fed(manager) == 1
    time.pass_by()
    assert fed(manager) == 1
