# SPDX-License-Identifier: GPL-2.0-or-later
"""What COMMAND's process has open while it waits to be started, and whether it is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardsplice.command.init import Charge
from tests.support.stream import eventually

ROOT = Path(__file__).parents[3]
# In a process of its own, whose descriptors are known: /dev/null at 3 is what the caller gave.
FORK = """
import json, os, select, signal, socket, sys
from hardsplice.ipc import descriptors
from hardsplice.command import init
from hardsplice.command.caller import Caller
from hardsplice.ipc.channel import Channel
from hardsplice.command.container import Recipe
from hardsplice.model.roles import HOST, INIT
aside = descriptors.set_aside(7)
ours = [Channel.pair(HOST.name, INIT.name), os.open("/etc/passwd", 0), os.open("/", 0), os.pipe()]
recipe = Recipe(
    ("true",), None, None, True, None, False, Caller(), False, aside, (64, 64), b"", b"", 40, 0,
    False,
)
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD, signal.SIGCONT))
read, write = os.pipe2(os.O_CLOEXEC)
pid = init._fork_command(recipe, write, ())
os.close(write)
folder = f"/proc/{pid}/fd"
while len(os.listdir(folder)) > 5 and select.select([], [], [], 0.01):
    pass
os.kill(pid, signal.SIGCONT)  # not from PID 1
held = {fd: os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)}
name = open(f"/proc/{pid}/comm").read().strip()
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
print(json.dumps([name, held, os.read(read, 100).decode()]))
"""


def test_it_holds_what_the_caller_gave_and_a_way_to_say_why_it_does_not_run() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 3</dev/null', "sh", sys.executable, "-c", FORK],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=20,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    name, held, said = json.loads(done.stdout)
    assert name == "hs-command", "a SIGCONT of anybody's started it"
    assert said == ""
    for fd in "012":
        del held[fd]
    assert sorted(what.partition(":")[0] for what in held.values()) == ["/dev/null", "pipe"]


@pytest.fixture
def child() -> Iterator[int]:
    pid = os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_whether_command_is_stopped_is_what_it_is_now(child: int) -> None:
    """Every time, whatever was asked and reaped between."""
    command = Charge(child)
    assert not command.is_stopped()
    for _ in range(2):
        os.kill(child, signal.SIGSTOP)
        eventually(command.is_stopped, "it doesn't stop")
        command.reap()
        assert command.is_stopped()
        os.kill(child, signal.SIGCONT)
        assert not command.is_stopped()
        command.reap()
        assert not command.is_stopped()
    os.kill(child, signal.SIGSTOP)
    eventually(command.is_stopped, "it doesn't stop")
    os.kill(child, signal.SIGKILL)
    assert not command.is_stopped()
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert not command.is_stopped(), "a zombie"
    command.reap()
    assert command.status == signal.SIGKILL
    assert not command.is_stopped()


def test_one_that_went_on_and_is_ending_is_not_stopped(
    child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a signal ends it, until it is a zombie, wait(2) has nothing to say of it: not that it
    went on, and not yet that it has ended.
    """
    command = Charge(child)
    os.kill(child, signal.SIGSTOP)
    os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT)
    command.reap()
    for number in (signal.SIGCONT, signal.SIGINT):
        os.kill(child, number)
    with monkeypatch.context() as patched:
        patched.setattr(os, "waitpid", lambda pid, options: (0, 0))
        command.reap()
        assert command.status is None
        assert not command.is_stopped()
