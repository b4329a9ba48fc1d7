# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a limit of the caller's is too low: one line in the system's words, the limit's name, and
nothing left. Which of the many places it is that meets the limit makes no difference.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.netns import Identity, Namespace
from tests.support.product import Program, can_bind, free_ports, run
from tests.support.stream import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
MESSAGE = re.compile(r"hardsplice: cannot [a-z]+ .+: (.+)")
WORDS_OF_PYTHON = ("Traceback", "Error", "Errno", "HardspliceError", "NoneType")
MESSAGES = {
    "nofile": ("Too many open files", "ulimit -n"),
    "as": ("Cannot allocate memory", "ulimit -v"),
    "data": ("Cannot allocate memory", "ulimit -d"),
    "fsize": ("File too large", "ulimit -f"),
    "nproc": ("Resource temporarily unavailable", "ulimit -u"),
}


def run_within(
    program: Program, identity: Identity, limit: str, value: int, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """hardsplice under a limit, which is set last: what changes the user needs none."""
    return run(program, identity, *arguments, starter=("prlimit", f"--{limit}={value}:{value}"))


def check(limit: str, ran: subprocess.CompletedProcess[str]) -> None:
    """It says that it can't, and why, in these words; or what takes part in it says how few."""
    told = f"status {ran.returncode}, stderr {ran.stderr!r}"
    assert ran.returncode == 1, told
    first, hint = ran.stderr.splitlines()
    found = MESSAGE.fullmatch(first)
    assert found, told
    reason, switch = MESSAGES[limit]
    assert found[1] == reason or found[1].endswith("descriptors are too few"), told
    assert switch in hint, told
    assert not any(word in ran.stderr for word in WORDS_OF_PYTHON), told


@pytest.mark.parametrize("mode", ["command", "background"])
def test_too_few_descriptors(
    program: Program, identity: Identity, namespace: Namespace, user_directory: Path, mode: str
) -> None:
    """From the first number with which any Python runs to the first with which hardsplice does."""
    port, pid_file = free_ports(), user_directory / "pid"
    ports = ("-q", "-t", f"127.0.0.1/{port}:80")
    target = ["true"] if mode == "command" else ["-P", str(pid_file), str(namespace.pid)]
    refused = 0
    for number in range(8, 60):
        ran = run_within(program, identity, "nofile", number, *ports, *target)
        if ran.returncode == 0:
            namespace.kill()  # whatever runs ends
            break
        check("nofile", ran)
        refused += 1
        assert not pid_file.exists()
        assert can_bind("127.0.0.1", port)
    assert 10 < refused < 50


@pytest.mark.parametrize("limit", ["as", "data"])
def test_too_little_memory(program: Program, identity: Identity, limit: str) -> None:
    """Down from where it runs, as far as hardsplice itself was loaded."""
    ports = ("-q", "-t", f"127.0.0.1/{free_ports()}:80")

    def tried(kibibytes: int) -> subprocess.CompletedProcess[str]:
        return run_within(program, identity, limit, kibibytes << 10, *ports, "true")

    refused = 0
    least = next(size for size in range(48, 0, -1) if tried((size - 1) << 10).returncode != 0)
    for kibibytes in range(least << 10, 0, -128):
        ran = tried(kibibytes)
        if ran.returncode == 0:
            continue
        if ran.returncode < 0 or "see ulimit -v" in ran.stderr or refused > 4:
            if refused:
                break
            continue  # there is not enough to load it, or for Python itself; it isn't always so
        check(limit, ran)
        refused += 1
    assert refused


@pytest.mark.parametrize("size", [0, 100, 20000])
def test_files_that_may_not_be_written(program: Program, identity: Identity, size: int) -> None:
    """What is small enough does."""
    ports = ("-q", "-t", f"127.0.0.1/{free_ports()}:80")
    check("fsize", run_within(program, identity, "fsize", size, *ports, "true"))


def test_a_soft_limit_on_files_is_none(program: Program, identity: Identity) -> None:
    argv, environment = program.argv(identity)
    ports = ("-q", "-t", f"127.0.0.1/{free_ports()}:80")
    ran = subprocess.run(
        ["prlimit", "--fsize=0:", *argv, *ports, "true"],
        env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("number", range(1, 6))
def test_too_few_processes(program: Program, user: Identity, number: int) -> None:
    """Whoever may have one process may have no relay."""
    ports = ("-q", "-t", f"127.0.0.1/{free_ports()}:80")
    check("nproc", run_within(program, user, "nproc", number, *ports, "true"))
