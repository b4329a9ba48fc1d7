# SPDX-License-Identifier: GPL-2.0-or-later
"""One PID file, one instance: started, killed, started again, and all at once."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports, run
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

Launch = Callable[..., Instance]


def gone(pids: list[int]) -> None:
    def all_gone() -> bool:
        procfs.reap()
        return not any(os.path.exists(f"/proc/{pid}") for pid in pids)

    eventually(all_gone, "it goes on")


@pytest.mark.parametrize("form", ["-f", "-q"])
def test_a_second_instance_is_refused_and_the_first_one_goes_on(
    program: Program,
    launch: Launch,
    identity: Identity,
    namespace: Namespace,
    user_directory: Path,
    form: str,
) -> None:
    path = user_directory / "pid"
    first = launch(
        identity, "-f", "-P", str(path), "-t", str(free_ports()), str(namespace.pid)
    ).wait_ready()
    port = free_ports()
    again = run(program, identity, form, "-P", str(path), "-t", str(port), str(namespace.pid))
    assert again.returncode == 1
    assert again.stderr.splitlines() == [
        f"hardsplice: cannot write PID file {path}: another instance has it, process {first.pid}",
        "hardsplice: give each instance a file of its own, or end the other one",
    ]
    assert path.read_text() == f"{first.pid}\n"
    first.stop()
    assert path.read_text() == f"{first.pid}\n"
    second = launch(identity, "-f", "-P", str(path), str(namespace.pid)).wait_ready()
    assert path.read_text() == f"{second.pid}\n"
    second.stop()


def test_one_that_was_killed_is_no_obstacle(
    launch: Launch, identity: Identity, namespace: Namespace, user_directory: Path
) -> None:
    path = user_directory / "pid"
    port = free_ports()
    words = ("-f", "-P", str(path), "-t", str(port), str(namespace.pid))
    first = launch(identity, *words).wait_ready()
    all_of_it = first.processes()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    gone(all_of_it)
    second = launch(identity, *words).wait_ready()
    assert path.read_text() == f"{second.pid}\n"
    second.stop()


def test_of_many_at_once_one_runs(
    program: Program, identity: Identity, namespace: Namespace, user_directory: Path
) -> None:
    path = user_directory / "pid"
    argv, environment = program.argv(identity)
    starting = [
        subprocess.Popen(
            [*argv, "-P", str(path), str(namespace.pid)], env=environment, cwd="/",
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(6)
    ]  # fmt: skip
    said = [one.communicate(timeout=2 * PATIENCE)[1] for one in starting]
    assert sorted(one.returncode for one in starting) == [0, 1, 1, 1, 1, 1], said
    assert sum("another instance has it" in text for text in said) == 5, said
    pid = int(path.read_text())
    os.kill(pid, signal.SIGTERM)
    gone([pid])


def test_who_can_read_the_file_can_not_keep_it_from_starting(
    launch: Launch, identity: Identity, namespace: Namespace, user_directory: Path
) -> None:
    path = user_directory / "pid"
    path.write_text("1\n")
    if identity.uid is not None:
        os.chown(path, identity.uid, identity.uid)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_SH)
        instance = launch(identity, "-f", "-P", str(path), str(namespace.pid)).wait_ready()
    assert path.read_text() == f"{instance.pid}\n"
    instance.stop()


def link_of(pid: int, fd: str) -> str | None:
    """What a descriptor leads to, if it is still there."""
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except FileNotFoundError:
        return None


def test_nobody_who_is_locked_down_can_write_it(
    launch: Launch, identity: Identity, namespace: Namespace, user_directory: Path
) -> None:
    path = user_directory / "pid"
    instance = launch(
        identity, "-f", "-P", str(path), "-t", str(free_ports()), "-T", "1", str(namespace.pid)
    ).wait_ready()
    holders = []
    for pid in instance.processes():
        for fd in os.listdir(f"/proc/{pid}/fd") if os.geteuid() == 0 else ():
            if link_of(pid, fd) == str(path):
                flags = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split("flags:\t")[1].split()[0]
                assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY
                holders.append(pid)
    assert holders in ([instance.pid], [])
    instance.stop()
