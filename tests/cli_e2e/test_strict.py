# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens on a kernel that lacks a layer: played by a filter that answers for that kernel."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.netns import Identity, Namespace
from tests.support.product import Program, free_ports, run

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

# Answers one system call (with one argument, where a value is given) with an errno.
OLD_KERNEL = """
import os, sys
from hardsplice.sandbox import libseccomp
seccomp = libseccomp.load()
call, code, argument, value, *command = sys.argv[1:]
call = int(call) if call.isdigit() else call
conditions = [seccomp.Arg(int(argument), seccomp.EQ, int(value))] if value else []
old = seccomp.SyscallFilter(seccomp.ALLOW)
old.add_rule(seccomp.ERRNO(int(code)), call, *conditions)
old.load()
os.execvp(command[0], command)
"""
PR_SET_MDWE, PR_CAPBSET_DROP, PR_SET_SECCOMP, PR_SET_SECUREBITS = 65, 24, 22, 28
PR_SET_DUMPABLE, PR_CAPBSET_READ, PR_SET_NO_NEW_PRIVS, MSEAL = 4, 23, 38, 462
F_ADD_SEALS = 1033
NEWNS, NEWUTS, NEWIPC, NEWUSER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
FILTER = "a filter that hardsplice was started under forbids it"
OLDER = "this kernel lacks it, or a filter that hardsplice was started under hides it"
# What is played, which line says so, and the reason that it gives.
LACKING = {
    "Landlock": (("landlock_create_ruleset", errno.ENOSYS, 0, ""), "Landlock", OLDER),
    "Landlock, switched off": (
        ("landlock_create_ruleset", errno.EOPNOTSUPP, 0, ""),
        "Landlock",
        OLDER,
    ),
    "MDWE": (
        ("prctl", errno.EINVAL, 0, PR_SET_MDWE),
        "memory that is writable and executable",
        OLDER,
    ),
    "IPC namespaces": (("unshare", errno.EINVAL, 0, NEWIPC), "an IPC namespace", OLDER),
    "UTS namespaces": (("unshare", errno.EINVAL, 0, NEWUTS), "a UTS namespace", OLDER),
    # As systemd-nspawn and container managers answer for calls that they don't know.
    "the version of Landlock": (
        ("landlock_create_ruleset", errno.EPERM, 0, ""),
        "Landlock",
        FILTER,
    ),
    "Landlock's rules": (("landlock_add_rule", errno.EPERM, 0, ""), "Landlock", FILTER),
    "Landlock's layers": (("landlock_restrict_self", errno.EPERM, 0, ""), "Landlock", FILTER),
}
REQUIRED = {
    "seccomp": (("prctl", errno.EINVAL, 0, PR_SET_SECCOMP), "system call filter"),
    "capabilities": (("capset", errno.EPERM, 0, ""), "capabilities"),
    "the bounding set": (("prctl", errno.EPERM, 0, PR_CAPBSET_DROP), "bounding set"),
    "the bounding set, once more": (("prctl", errno.EINVAL, 0, PR_CAPBSET_DROP), "bounding set"),
    "what is in the bounding set": (("prctl", errno.EPERM, 0, PR_CAPBSET_READ), "bounding set"),
    "securebits": (("prctl", errno.EPERM, 0, PR_SET_SECUREBITS), "securebits"),
    "the empty root": (("pivot_root", errno.EPERM, 0, ""), "leave the file system"),
    "its mount namespace": (("unshare", errno.ENOSPC, 0, NEWNS), "leave the file system"),
    "IPC namespaces": (("unshare", errno.ENOSPC, 0, NEWIPC), "an IPC namespace"),
    "UTS namespaces": (("unshare", errno.EPERM, 0, NEWUTS), "a UTS namespace"),
    "no new privileges": (("prctl", errno.EINVAL, 0, PR_SET_NO_NEW_PRIVS), "new privileges"),
    "being undumpable": (("prctl", errno.EINVAL, 0, PR_SET_DUMPABLE), "dumped"),
    "the address book": (("fcntl", errno.EINVAL, 1, F_ADD_SEALS), "the address book"),
    "MDWE": (("prctl", errno.EPERM, 0, PR_SET_MDWE), "memory that is writable and executable"),
    "Landlock": (("landlock_restrict_self", errno.E2BIG, 0, ""), "by Landlock"),
}


def run_on(
    kernel: tuple[object, ...], program: Program, identity: Identity, *arguments: str
) -> subprocess.CompletedProcess[str]:
    argv, _ = program.argv(identity)
    if "-m" not in argv:
        pytest.skip("an installed hardsplice: its Python is not known")
    starter = (argv[-3], "-c", OLD_KERNEL, *map(str, kernel))
    return run(program, identity, *arguments, starter=starter)


@pytest.fixture
def ports() -> tuple[str, str]:
    return "-t", f"127.0.0.1/{free_ports()}:80"


@pytest.fixture
def namespace_of_user(user: Identity) -> Iterator[Namespace]:
    with Namespace(user) as made:
        yield made


@pytest.mark.parametrize("layer", LACKING)
def test_without_a_layer_it_says_so_once_and_goes_on(
    layer: str, program: Program, identity: Identity, ports: tuple[str, str]
) -> None:
    kernel, words, reason = LACKING[layer]
    done = run_on(kernel, program, identity, *ports, "--", "true")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if words in line]
    assert said, done.stderr
    assert all(line.startswith("hardsplice: not in force: ") for line in said)
    assert all(line.endswith(f": {reason}") for line in said)
    assert len(set(said)) == len(said), "once"


@pytest.mark.parametrize("layer", LACKING)
def test_strict_refuses_to_start_without_a_layer(
    layer: str, program: Program, identity: Identity, namespace: Namespace, ports: tuple[str, str]
) -> None:
    kernel, words, reason = LACKING[layer]
    pid_file = Path("/tmp") / f"hardsplice-test-strict-{os.getpid()}-{identity.name}"
    arguments = ("--sandbox=strict", "--audit", "-P", str(pid_file), *ports, str(namespace.pid))
    done = run_on(kernel, program, identity, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hardsplice: cannot ")
    assert words in done.stderr
    assert f": {reason}\n" in done.stderr
    assert "leave out --sandbox=strict" in done.stderr
    assert not pid_file.exists()


@pytest.mark.parametrize("layer", REQUIRED)
def test_without_what_is_required_it_never_starts(
    layer: str, program: Program, identity: Identity, ports: tuple[str, str]
) -> None:
    kernel, words = REQUIRED[layer]
    done = run_on(kernel, program, identity, *ports, "--", "true")
    assert done.returncode == 1
    assert done.stderr.startswith("hardsplice: cannot ")
    assert words in done.stderr or "cannot create namespaces" in done.stderr
    assert reason_of_errno(kernel) in done.stderr


def reason_of_errno(kernel: tuple[object, ...]) -> str:
    return f": {os.strerror(int(str(kernel[1])))}\n"


def test_without_a_user_namespace_of_its_own_it_never_starts(
    program: Program, user: Identity, namespace_of_user: Namespace, ports: tuple[str, str]
) -> None:
    """An ordinary user needs one to give up the bounding set; where that is forbidden, it is said
    what may forbid it.
    """
    kernel = ("unshare", errno.EPERM, 0, NEWUSER)
    done = run_on(kernel, program, user, "-f", *ports, str(namespace_of_user.pid))
    assert done.returncode == 1
    assert done.stderr.startswith("hardsplice: cannot ")
    assert "seccomp filter" in done.stderr
    assert "sysctl" not in done.stderr, "none of them has a value that forbids it"


def test_strict_starts_where_all_layers_are(
    program: Program, identity: Identity, ports: tuple[str, str]
) -> None:
    """The row beside the others: the same filter, about a call that nobody makes."""
    kernel = ("swapon", errno.ENOSYS, 0, "")
    done = run_on(kernel, program, identity, "-q", "--sandbox=strict", *ports, "--", "true")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("more", [(), ("--sandbox=strict",)], ids=["usual", "strict"])
@pytest.mark.parametrize("answer", [errno.ENOSYS, errno.EPERM, errno.EINVAL])
def test_only_that_mappings_are_sealed_is_done_without_in_silence(
    answer: int, more: tuple[str, ...], program: Program, identity: Identity, ports: tuple[str, str]
) -> None:
    """The filter says the same, and few kernels have it."""
    kernel = (MSEAL, answer, 0, "")
    done = run_on(kernel, program, identity, "-q", *more, *ports, "--", "true")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("answer", "reason"), [(errno.ENOSYS, OLDER), (errno.EINVAL, OLDER), (errno.EPERM, FILTER)]
)
def test_whoever_asks_is_told_that_mappings_are_not_sealed(
    answer: int, reason: str, program: Program, identity: Identity, namespace: Namespace
) -> None:
    line = f"not in force: seal the address book's mappings (Linux 6.10): {reason}"
    kernel = (MSEAL, answer, 0, "")
    strict = ("--sandbox=strict", "-t", f"127.0.0.1/{free_ports()}:80")
    in_front = run_on(kernel, program, identity, "--debug", *strict, "--", "true")
    behind = run_on(kernel, program, identity, "--audit", *strict, str(namespace.pid))
    namespace.kill()
    for done, said in ((in_front, in_front.stderr), (behind, behind.stdout)):
        assert done.returncode == 0
        assert len([one for one in said.splitlines() if one.endswith(line)]) == 1, said


OTHERS = 0x40000000 | NEWIPC | NEWUTS  # NEWNET and those, as COMMAND's namespaces are made
HINTED = {
    "no such call": (("pivot_root", errno.ENOSYS, 0, ""), "seccomp filter"),
    "pivot_root may not": (("pivot_root", errno.EPERM, 0, ""), "seccomp filter"),
    "no mount namespace left": (("unshare", errno.ENOSPC, 0, NEWNS), "user.max_mnt_namespaces"),
    "no IPC namespace left": (("unshare", errno.ENOSPC, 0, NEWIPC), "user.max_ipc_namespaces"),
    "an IPC namespace may not be": (("unshare", errno.EPERM, 0, NEWIPC), ""),
    "no user namespace": (("unshare", errno.EPERM, 0, NEWUSER), "seccomp filter"),
}


@pytest.mark.parametrize("what", HINTED)
def test_a_next_step_is_named_where_it_is_one(
    what: str, program: Program, user: Identity, namespace_of_user: Namespace
) -> None:
    kernel, hint = HINTED[what]
    done = run_on(kernel, program, user, "-f", "-t", "none", str(namespace_of_user.pid))
    assert done.returncode == 1
    _, *hints = done.stderr.splitlines()
    assert len(hints) == bool(hint), done.stderr
    assert all(hint in line for line in hints)


@pytest.mark.parametrize(
    ("answer", "hint"), [(errno.EPERM, ""), (errno.ENOSPC, "user.max_*_namespaces")]
)
@pytest.mark.parametrize("options", [(), ("--netns-only",)])
def test_nor_another_one_for_commands_namespaces(
    program: Program, identity: Identity, options: tuple[str, ...], answer: int, hint: str
) -> None:
    if options and not identity.is_root:
        pytest.skip("only root may")
    asked = OTHERS if options else OTHERS | NEWUSER | NEWNS
    kernel = ("unshare", answer, 0, asked)
    done = run_on(kernel, program, identity, "-q", *options, "-t", "none", "true")
    assert done.returncode == 1
    first, *hints = done.stderr.splitlines()
    assert first.startswith("hardsplice: cannot create namespaces: ")
    assert len(hints) == bool(hint), done.stderr
    assert all(hint in line for line in hints)
