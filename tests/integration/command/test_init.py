# SPDX-License-Identifier: GPL-2.0-or-later
"""What COMMAND's process has open while it waits to be started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
