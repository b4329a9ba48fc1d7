# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls whose effect takes a process of its own to see: fork, and one that may signal."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hardsplice.kernel import linux
from tests.sandbox import interpreters

pytestmark = pytest.mark.usefixtures("nothing_left_open")


def test_sending_to_nobody_is_an_answer_and_no_signal() -> None:
    """MSG_NOSIGNAL: SIGPIPE, which Python ignores and a relay may not, would end the process."""
    program = (
        "import os, signal, socket; from hardsplice.kernel import socketcalls\n"
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "ours, theirs = socket.socketpair()\n"
        "theirs.close()\n"
        "os._exit(-socketcalls.send_byte(ours.fileno(), b'x', 0))\n"
    )
    root = Path(linux.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, timeout=60, check=False)
    assert done.returncode == errno.EPIPE


def test_a_fork_is_a_fork() -> None:
    read, write = os.pipe()
    pid = linux.fork()
    if pid == 0:
        os.write(write, str(os.getpid()).encode())
        os._exit(7)
    os.close(write)
    assert os.read(read, 100) == str(pid).encode()
    os.close(read)
    assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 7


HOOKED = """
import concurrent.futures.thread, logging, os, random, threading

bad = lambda: os._exit(9)
os.register_at_fork(before=bad, after_in_parent=bad, after_in_child=bad)
from hardsplice.kernel import linux
os.register_at_fork(before=bad, after_in_parent=bad, after_in_child=bad)
assert len(linux._fork_hooks) == 3
import gc; gc.freeze()

def fork(depth):
    pid = linux.fork()
    if pid == 0:
        thread = threading.Thread(target=lambda: random.random())
        thread.start(); thread.join()
        logging.getLogger().debug("on")
        os._exit(fork(depth - 1) if depth else 7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

print(fork(2))
"""


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14", "3.15"])
def test_a_fork_runs_nobodys_hooks(version: str) -> None:
    """And leaves an interpreter that goes on."""
    python = interpreters.any_found().get(version)
    if python is None:
        pytest.skip(f"no Python {version} here; {interpreters.VARIABLE} can name one")
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [python, "-W", "error", "-c", HOOKED], env=environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")
