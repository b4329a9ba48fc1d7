# SPDX-License-Identifier: GPL-2.0-or-later
"""Namespaces: which are served, and the ID maps of a new one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hardsplice.kernel import linux
from hardsplice.kernel.ids import owns_all_ids
from hardsplice.model.errors import HardspliceError
from hardsplice.net import namespaces
from hardsplice.net.namespaces import Served, open_path, open_process
from hardsplice.sandbox.user_namespace import write_id_maps
from tests.support.netns import Identity, Namespace
from tests.support.stream import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left_open")


# --- ID maps ---


@contextmanager
def in_new_user_namespace() -> Iterator[int]:
    """A child in a user namespace of its own, whose maps nobody has written yet."""
    asked, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            linux.unshare(linux.CLONE_NEWUSER)
            os.write(told, b"+")
            os.closerange(told, told + 1)
            os.execvp("sleep", ["sleep", "1000"])
        except OSError as error:
            os.write(told, str(error.errno).encode())
        finally:
            os._exit(1)
    os.close(told)
    try:
        answer = os.read(asked, 100)
        if answer != b"+":
            pytest.skip(f"no user namespaces here: {os.strerror(int(answer or b'0'))}")
        yield pid
    finally:
        os.close(asked)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def read_proc(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/{name}").read_text().split()


@pytest.mark.parametrize("deny", [True, False])
def test_id_maps_are_written_as_given(deny: bool) -> None:
    if not deny and os.geteuid() != 0:
        pytest.skip("needs root: others must deny setgroups")
    uid, gid = os.geteuid(), os.getegid()
    with in_new_user_namespace() as pid:
        write_id_maps(pid, f"0 {uid} 1", f"7 {gid} 1", deny_setgroups=deny)
        assert read_proc(pid, "uid_map") == ["0", str(uid), "1"]
        assert read_proc(pid, "gid_map") == ["7", str(gid), "1"]
        assert read_proc(pid, "setgroups") == ["deny" if deny else "allow"]


def test_an_id_map_that_the_kernel_refuses_is_an_error() -> None:
    with in_new_user_namespace() as pid:
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            write_id_maps(pid, "nonsense", "0 0 1", deny_setgroups=True)
        assert read_proc(pid, "gid_map") == [], "nothing after it was written"


def test_whether_all_ids_are_ours_is_read_from_the_map() -> None:
    of_all = Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    assert owns_all_ids() == of_all


# --- refusals, after which the program ends and closes what it had opened ---


def test_ones_own_namespace_is_no_target() -> None:
    with pytest.raises(HardspliceError, match="hardsplice runs in") as caught:
        open_path("/proc/self/ns/net", None, netns_only=True)
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/run/netns/nosuch-namespace", os.strerror(errno.ENOENT)),
        ("/etc/passwd", "not a network namespace"),
        ("/proc/self/ns/user", "not a network namespace"),
    ],
)
def test_what_is_no_network_namespace_is_said(path: str, reason: str) -> None:
    with pytest.raises(HardspliceError, match=reason):
        open_path(path, None, netns_only=True)


def test_a_process_that_is_gone_is_said() -> None:
    pid = os.posix_spawnp("true", ["true"], os.environ)
    os.waitpid(pid, 0)
    with pytest.raises(HardspliceError, match="no such process"):
        open_process(pid, netns_only=False)


def test_one_that_has_ended_but_nobody_waited_for_is_no_other() -> None:
    pid = os.posix_spawnp("true", ["true"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        with pytest.raises(HardspliceError, match="no such process"):
            open_process(pid, netns_only=False)
    finally:
        os.waitpid(pid, 0)


@pytest.fixture
def other() -> Iterator[Namespace]:
    """A process with namespaces of its own."""
    try:
        made = Namespace(Identity("who runs the tests"), new_user=True)
    except RuntimeError as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.mark.parametrize(
    "find",
    [
        lambda pid: open_process(pid, netns_only=False),
        lambda pid: open_process(pid, netns_only=True),
        lambda pid: open_path(f"/proc/{pid}/ns/net", None, netns_only=False),
        lambda pid: open_path(f"/proc/{pid}/task/{pid}/ns/net", None, netns_only=True),
    ],
    ids=["process", "process, netns only", "path", "path of a thread, netns only"],
)
def test_a_number_that_is_used_again_is_noticed(
    find: Callable[[int], Served], other: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends once it was found, and what is opened by its number is another's."""
    process = subprocess.Popen(["sleep", "1000"])
    open_namespace = namespaces._open_namespace

    def open_late(path: str, kind: int, name: str, pid: int | None = None) -> int:
        process.kill()
        process.wait()
        return open_namespace(path.replace(str(process.pid), str(other.pid)), kind, name, pid)

    monkeypatch.setattr(namespaces, "_open_namespace", open_late)
    with pytest.raises(HardspliceError, match="no such process"):
        find(process.pid)


# --- paths ---


def test_links_are_followed_up_to_proc(tmp_path: Path) -> None:
    """Those of /proc lead to no path, and a number in there is a process."""
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("/proc/1/ns/net")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "file").touch()
    assert namespaces._real(str(tmp_path / "one")) == "/proc/1/ns/net"
    assert namespaces._real("/proc/1/ns/net") == "/proc/1/ns/net"
    assert namespaces._real(str(tmp_path / "file")) == str(tmp_path / "file")
    assert namespaces._real(str(tmp_path / "round")) == str(tmp_path / "round")


# --- a user namespace of one's own ---

_ENTERED = """
import os, sys
from hardsplice.model.identity import RunAs
from hardsplice.sandbox import user_namespace
user = RunAs(int(sys.argv[1]), int(sys.argv[1])) if sys.argv[1:] else None
user_namespace.enter_own_user_namespace(user)
if user:
    os.setresgid(*[user.gid] * 3)
    os.setresuid(*[user.uid] * 3)
print(os.getuid(), *open("/proc/self/uid_map").read().split())
"""


@pytest.mark.parametrize("user", [None, pytest.param("65534", marks=pytest.mark.root)])
def test_its_users_are_whom_the_process_is_and_may_become(
    user: str | None, other: Namespace
) -> None:
    """``other`` skips where there can be none."""
    words = [sys.executable, "-c", _ENTERED, *([user] if user else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE)
    uid = str(os.geteuid())
    known = [uid, uid, "1"] + ([user, user, "1"] if user else [])
    assert done.stdout.split() == [user or uid, *known]
