# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens on a kernel that lacks a layer: played by a filter that answers for that kernel."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from tests.support.netns import Identity, Namespace
from tests.support.product import Program, free_ports
from tests.support.stream import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# Answers one system call (with one argument, where a value is given) with an errno.
OLD_KERNEL = """
import os, sys, pyseccomp
call, code, argument, value, *command = sys.argv[1:]
conditions = [pyseccomp.Arg(int(argument), pyseccomp.EQ, int(value))] if value else []
old = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
old.add_rule(pyseccomp.ERRNO(int(code)), call, *conditions)
old.load()
os.execvp(command[0], command)
"""
PR_SET_MDWE, PR_CAPBSET_DROP = 65, 24
LACKING = {
    "Landlock": (("landlock_create_ruleset", errno.ENOSYS, 0, ""), "Landlock"),
    "MDWE": (("prctl", errno.EINVAL, 0, PR_SET_MDWE), "memory that is writable and executable"),
}
REQUIRED = {
    "seccomp": (("prctl", errno.EINVAL, 0, 22), "system call filter"),
    "capabilities": (("capset", errno.EPERM, 0, ""), "capabilities"),
    "pivot_root": (("pivot_root", errno.EPERM, 0, ""), "leave the file system"),
}


def run_on(
    kernel: tuple[object, ...], program: Program, identity: Identity, *arguments: str
) -> subprocess.CompletedProcess[str]:
    argv, environment = program.argv(identity)
    if "-m" not in argv:
        pytest.skip("an installed hardsplice: which Python has pyseccomp is not known")
    words = [str(part) for part in kernel]
    interpreter = argv.index("-m") - 1  # what stands before it changes the user
    program_words = [argv[interpreter], "-c", OLD_KERNEL, *words, *argv[interpreter:]]
    return subprocess.run(
        [*argv[:interpreter], *program_words, *arguments],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture
def ports() -> tuple[str, str]:
    return "-t", f"127.0.0.1/{free_ports()}:80"


@pytest.mark.parametrize("layer", LACKING)
def test_without_a_layer_it_says_so_once_and_goes_on(
    layer: str, program: Program, identity: Identity, ports: tuple[str, str]
) -> None:
    kernel, words = LACKING[layer]
    done = run_on(kernel, program, identity, *ports, "--", "true")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if words in line]
    assert said, done.stderr
    assert all(line.startswith("hardsplice: this kernel could not: ") for line in said)
    assert len(set(said)) == len(said), "once"


@pytest.mark.parametrize("layer", LACKING)
def test_strict_refuses_to_start_without_a_layer(
    layer: str, program: Program, identity: Identity, namespace: Namespace, ports: tuple[str, str]
) -> None:
    kernel, words = LACKING[layer]
    pid_file = Path("/tmp") / f"hardsplice-test-strict-{layer}-{identity.name}"
    arguments = ("--sandbox=strict", "--audit", "-P", str(pid_file), *ports, str(namespace.pid))
    done = run_on(kernel, program, identity, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hardsplice: cannot lock down ")
    assert words in done.stderr
    assert not pid_file.exists()


@pytest.mark.parametrize("layer", REQUIRED)
def test_without_what_is_required_it_never_starts(
    layer: str, program: Program, identity: Identity, ports: tuple[str, str]
) -> None:
    kernel, words = REQUIRED[layer]
    done = run_on(kernel, program, identity, *ports, "--", "true")
    assert done.returncode == 1
    assert done.stderr.startswith("hardsplice: cannot lock down ")
    assert words in done.stderr


def test_strict_starts_where_all_layers_are(
    program: Program, identity: Identity, ports: tuple[str, str]
) -> None:
    """The row beside the others: the same filter, about a call that nobody makes."""
    kernel = ("swapon", errno.ENOSYS, 0, "")
    done = run_on(kernel, program, identity, "-q", "--sandbox=strict", *ports, "--", "true")
    assert (done.returncode, done.stderr) == (0, "")
