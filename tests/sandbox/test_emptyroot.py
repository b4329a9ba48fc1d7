# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing is to be seen from a root of hardsplice's processes, whatever root in the namespace that
they serve has done to prevent that.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hardsplice.kernel import linux
from hardsplice.sandbox import empty_root, user_namespace
from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, free_ports
from tests.support.stream import PATIENCE

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")


# --- what root in the namespace can do about it ---


@pytest.fixture
def of_user(user: Identity) -> Iterator[Namespace]:
    with Namespace(user) as made:
        yield made


def forbid(namespace: Namespace, owner: Identity, kind: str) -> None:
    """Have root in a user namespace allow no more namespaces of a kind there."""
    enter = ["nsenter", "--user", "--preserve-credentials", "-t", str(namespace.pid)]
    write = ["sh", "-c", f"echo 0 >/proc/sys/user/max_{kind}_namespaces"]
    subprocess.run(owner.wrap([*enter, *write]), check=True, timeout=PATIENCE)


@pytest.mark.root  # nobody else may look into processes that aren't dumpable
def test_root_in_the_namespace_can_not_keep_it_from_us(
    identity: Identity, user: Identity, of_user: Namespace, launch: Launch
) -> None:
    forbid(of_user, user, "mnt")
    port = free_ports()
    ports = ("-t", f"127.0.0.1/{port}:80", "-T", f"127.0.0.1/81:{port}")
    instance = launch(identity, "-f", *ports, str(of_user.pid)).wait_ready()
    assert len(instance.processes()) == 4
    for pid in instance.processes():
        assert os.listdir(f"/proc/{pid}/root") == [], procfs.status(pid)["Name"]
        assert os.listdir(f"/proc/{pid}/cwd") == []
    assert "not in force" not in instance.messages()
    instance.stop()


@pytest.mark.parametrize("kind", ["ipc", "uts"])
def test_what_it_can_keep_from_us_ends_the_start(
    kind: str, user: Identity, of_user: Namespace, launch: Launch
) -> None:
    """It isn't passed over as if an older kernel were to blame."""
    forbid(of_user, user, kind)
    instance = launch(user, "-f", "-t", f"127.0.0.1/{free_ports()}:80", str(of_user.pid))
    assert instance.wait() == 1
    said = instance.messages().splitlines()
    assert said[0].startswith("hardsplice: cannot enter a")
    assert f"user.max_{kind}_namespaces" in said[1]


@pytest.mark.root
@pytest.mark.parametrize("kind", ["mnt", "ipc", "uts", "user"])
def test_but_from_roots_hardsplice_it_can_keep_nothing(
    kind: str, user: Identity, of_user: Namespace, launch: Launch
) -> None:
    forbid(of_user, user, kind)
    root = Identity("root")
    instance = launch(root, "-f", "-t", f"127.0.0.1/{free_ports()}:80", str(of_user.pid))
    instance.wait_ready()
    ours = procfs.namespace(os.getpid(), kind)
    for pid in instance.processes():
        stays = procfs.namespace(pid, kind) == ours
        assert stays == (kind == "user"), "it enters no user namespace that others are root in"
    instance.stop()


# --- what can be seen from such a root ---


def seen() -> dict[str, Any]:
    """What a process finds that has every capability in its user namespace, and no filter."""
    found: dict[str, Any] = {}

    def attempt(name: str, try_it: Callable[[], Any]) -> None:
        try:
            found[name] = try_it()
        except OSError as error:
            found[name] = f"no: {error.strerror}"

    def owner() -> list[str]:
        fd = os.open(".", os.O_PATH)
        for _ in range(9):
            fd = os.open("..", os.O_PATH, dir_fd=fd)
        return os.listdir(os.open(".", os.O_RDONLY, dir_fd=fd))

    def chroot_below() -> str:
        os.mkdir("/below")
        return "made"

    def chroot_again() -> list[str]:
        os.chroot("/")
        os.chdir("../../..")
        return os.listdir(".")

    def mount() -> list[str]:
        linux.mount("none", "/", "tmpfs", 0)
        return os.listdir("/")

    attempt("root", lambda: os.listdir("/"))
    attempt("here", lambda: os.listdir("."))
    attempt("owner", owner)
    attempt("below", chroot_below)
    attempt("again", chroot_again)
    attempt("mount", mount)
    for name in ("proc", "proc/self/root", "etc/passwd", "dev/null", "sys"):
        attempt(name, lambda name=name: os.path.lexists(f"/{name}") or os.path.lexists(name))  # type: ignore[misc]
    return found


def in_child(live: Callable[[], Any]) -> Any:
    """What a function of a forked process of an ordinary user's returns."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setresgid(47_001, 47_001, 47_001)
                os.setresuid(47_001, 47_001, 47_001)
                linux.prctl(4, 1)  # PR_SET_DUMPABLE, as after exec
            os.chdir("/")  # the checkout may be out of this user's reach
            os.write(writing, json.dumps(live()).encode())
        except BaseException as error:
            os.write(writing, json.dumps(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        text = answers.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def entered() -> dict[str, Any]:
    """By the folder of a child, as in the namespace monitor of an ordinary user."""
    folder = empty_root.made_by_child()
    user_namespace.enter_own_user_namespace()  # in which it has the rights that it gets by joining
    empty_root.enter(folder)
    return seen()


def left() -> dict[str, Any]:
    """By a mount namespace of its own, as in the host monitor."""
    user_namespace.enter_own_user_namespace()
    empty_root.leave()
    return seen()


def without() -> dict[str, Any]:
    """The unfixed row: the same rights, and the host's root."""
    user_namespace.enter_own_user_namespace()
    return seen()


@pytest.mark.parametrize("way", [entered, left])
def test_nothing_is_to_be_seen(way: Callable[[], dict[str, Any]], user: Identity) -> None:
    found = in_child(way)
    empty = {name: value for name, value in found.items() if value in ([], False)}
    assert set(empty) >= {"root", "here", "owner", "again", "proc", "etc/passwd", "dev/null"}
    assert str(found["below"]).startswith("no: ")
    assert found["mount"] == [] or str(found["mount"]).startswith("no: ")


def test_and_without_it_everything_is(user: Identity) -> None:
    found = in_child(without)
    assert "etc" in found["root"]
    assert "etc" in found["again"]
    assert found["etc/passwd"] is True
