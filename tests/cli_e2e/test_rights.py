# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said to those who may not: whose it is, which right is missing, what forbids it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardsplice.ctl.client import Client
from tests.support import procfs
from tests.support.netns import Identity, Namespace, mounted
from tests.support.product import Program, family, free_ports, run
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def said(
    program: Program,
    identity: Identity,
    *words: str,
    before: tuple[str, ...] = (),
    within: tuple[str, ...] = (),
) -> tuple[str, str]:
    """The line and the hint with which it refuses. ``before`` are words before the command, and
    ``within`` those that are run as ``identity``.
    """
    argv, environment = program.argv(identity)
    us = len(identity.wrap([]))
    argv[us:us] = within
    done = subprocess.run(
        [*before, *argv, "-f", "-t", f"127.0.0.1/{free_ports()}:80", *words],
        env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if "started by root" not in line]
    line, hint = [line.removeprefix("hardsplice: ") for line in lines]
    return line, hint


def without(*capabilities: str) -> tuple[str, ...]:
    """Words before a command that root runs without these."""
    dropped = ",".join(f"-{one}" for one in capabilities)
    return ("setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}")


# --- whose it is ---


@pytest.mark.root
def test_a_users_look_at_roots_process(user: Identity, program: Program) -> None:
    with Namespace(Identity("root")) as namespace:
        line, hint = said(program, user, str(namespace.pid))
    assert line.endswith(f": it is root's, and hardsplice runs as user {user.uid}")
    assert hint == "run hardsplice as root"


@pytest.mark.root
def test_a_users_look_at_roots_name(user: Identity, program: Program, tmp_path: Path) -> None:
    """Whoever may read the file may not join it all the same."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    with Namespace(Identity("root")) as namespace, mounted(namespace, tmp_path / "net") as path:
        line, hint = said(program, user, "--netns", str(path))
        assert line.endswith(f": it is root's, and hardsplice runs as user {user.uid}")
        assert hint == "run hardsplice as root"
        tmp_path.chmod(0o700)
        line, hint = said(program, user, "--netns", str(path))
        assert line.endswith(f": '{tmp_path}' is root's alone")
        assert hint == "run hardsplice as root"


@pytest.mark.root
def test_another_users(user: Identity, program: Program) -> None:
    assert user.uid is not None
    other = Identity("other", user.uid + 1)
    with Namespace(other) as namespace:
        for where in ([str(namespace.pid)], ["--netns", namespace.net_path]):
            line, hint = said(program, user, *where)
            assert f"it is user {other.uid}'s" in line
            assert hint == f"run hardsplice as user {other.uid}, or as root"


def test_ones_own_without_the_way_in(
    namespace: Namespace, identity: Identity, program: Program
) -> None:
    if identity.is_root:
        pytest.skip("root needs no way in")
    line, hint = said(program, identity, "--netns-only", str(namespace.pid))
    assert "user namespace that owns it" in line
    assert hint == "leave --netns-only out"


@pytest.mark.parametrize("lacks", ["sys_admin", "net_admin"])
def test_a_command_without_a_user_namespace_takes_what_is_named(
    lacks: str, program: Program, identity: Identity
) -> None:
    if lacks == "net_admin" and not identity.is_root:
        pytest.skip("others than root lack more")
    before = without(lacks) if identity.is_root else ()
    line, hint = said(program, identity, "--netns-only", "true", before=before)
    assert f"CAP_{lacks.upper()}" in line + hint
    assert hint.endswith("leave --netns-only out")


@contextlib.contextmanager
def hidden(hidepid: int) -> Iterator[tuple[str, ...]]:
    """Words before a command that runs it in a mount namespace whose /proc hides processes."""
    script = f'mount -t proc -o hidepid={hidepid} none /proc; exec "$@"'
    yield ("unshare", "--mount", "sh", "-ec", script, "sh")


@pytest.mark.root
def test_a_process_that_proc_hides(user: Identity, program: Program) -> None:
    with Namespace(Identity("root")) as namespace, hidden(2) as before:
        line, hint = said(program, user, str(namespace.pid), before=before)
    assert "hidepid" in line
    assert "as root" in hint


# --- from within a user namespace ---


def in_user_namespace(*options: str) -> tuple[str, ...]:
    """Words before a command that runs it in one."""
    if subprocess.run(["unshare", "--user", *options, "true"], check=False).returncode:
        pytest.skip(f"unshare --user {' '.join(options)} does not work here")
    return ("unshare", "--user", *options)


@pytest.mark.root
@pytest.mark.parametrize("option", ["--map-root-user", "--map-current-user"])
@pytest.mark.parametrize("owner", ["ours", "others"])
def test_a_process_outside_of_our_user_namespace(
    owner: str, option: str, user: Identity, program: Program
) -> None:
    """Be it the same user's, who outside may join it, or that of one who is unknown in there."""
    within = in_user_namespace(option)
    with Namespace(user if owner == "ours" else Identity("root")) as namespace:
        for where in ([str(namespace.pid)], ["--netns", f"/proc/{namespace.pid}/ns/net"]):
            line, hint = said(program, user, *where, within=within)
            assert line.endswith(": it is in a user namespace that is not below ours")
            assert "outside of this container or user namespace" in hint


@pytest.mark.root
def test_a_user_who_is_none_in_its_user_namespace(user: Identity, program: Program) -> None:
    within = in_user_namespace()
    _, hint = said(program, user, "true", within=within)
    assert "/proc/self/uid_map" in hint


@pytest.mark.root
@pytest.mark.parametrize("kind", ["pid", "user"])
def test_a_limit_of_namespaces_that_is_reached(kind: str, user: Identity, program: Program) -> None:
    script = f'echo 0 > /proc/sys/user/max_{kind}_namespaces; exec "$@"'
    within = (*in_user_namespace("--map-root-user"), "sh", "-ec", script, "sh")
    line, hint = said(program, user, "true", within=within)
    assert line == "cannot create namespaces: No space left on device"
    assert f"user.max_{kind}_namespaces" in hint


@pytest.mark.root
def test_a_path_of_a_process_that_may_not_be_looked_at(user: Identity, program: Program) -> None:
    with Namespace(Identity("root")) as namespace:
        argv, environment = program.argv(user)
        done = subprocess.run(
            [*argv, "--netns", f"/proc/{namespace.pid}/ns/mnt"],
            env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
    assert done.stderr.startswith("hardsplice: cannot join namespace ")
    assert "line " not in done.stderr


# --- root with less than all ---


@pytest.mark.root
def test_root_without_a_right_is_told_which(program: Program, user: Identity) -> None:
    root = Identity("root")
    with Namespace(root) as namespace:
        line, hint = said(program, root, str(namespace.pid), before=without("sys_admin"))
        assert line.endswith(": root has no CAP_SYS_ADMIN here")
        assert "--cap-add SYS_ADMIN" in hint
    with Namespace(user) as namespace:
        before = without("sys_admin", "sys_ptrace")
        line, hint = said(program, root, str(namespace.pid), before=before)
        assert line.endswith(": root has no CAP_SYS_PTRACE here")
        line, hint = said(program, root, str(namespace.pid), before=without("sys_admin"))
        assert line.endswith(f": it is user {user.uid}'s, and root has no CAP_SYS_ADMIN here")
        assert hint == f"run hardsplice as user {user.uid}"


SERVES = "echo up; id -u; exec sleep 1000"


@pytest.mark.root
@pytest.mark.parametrize("lacks", [("sys_admin",), ("sys_admin", "setuid", "setgid")])
def test_root_without_sys_admin_does_as_users_do(lacks: tuple[str, ...], program: Program) -> None:
    """As in a container: COMMAND runs, and hardsplice's processes have no rights, and no files."""
    argv, environment = program.argv(Identity("root"))
    words = [*without(*lacks), *argv, "-t", f"127.0.0.1/{free_ports()}:80"]
    process = subprocess.Popen(
        [*words, "sh", "-c", SERVES],
        env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n", process.communicate()[1]
        assert process.stdout.readline() == "0\n"
        ours = family(process.pid)
        assert len(ours) == 5
        eventually(lambda: all(procfs.status(pid)["Seccomp"] == "2" for pid in ours), "no filter")
        for pid in ours:
            status = procfs.status(pid)
            kept = 1 << 5 if status["Name"] == "hs-init" else 0  # CAP_KILL, over COMMAND
            assert int(status["CapEff"], 16) == kept, status["Name"]
            assert int(status["CapBnd"], 16) == 0
            assert os.listdir(f"/proc/{pid}/root") == []
            if "setuid" not in lacks and status["Name"] not in ("hs-namespace", "hs-relay-in"):
                assert status["Uid"].split() == ["65534"] * 4
        process.terminate()
        assert process.wait(PATIENCE) == 128 + 15
    finally:
        process.kill()
        process.communicate()


@pytest.mark.root
def test_nor_does_it_forget_who_may_ask_it(program: Program, user: Identity) -> None:
    """Its control socket hears root, and nobody else whom its user namespace doesn't know."""
    root, folder = Identity("root"), Path(f"/tmp/hardsplice-test-rights-{os.getpid()}")
    folder.mkdir(mode=0o755)
    control = folder / "control"
    argv, environment = program.argv(root)
    words = [*without("sys_admin"), *argv, "--control", str(control), "sh", "-c", SERVES]
    process = subprocess.Popen(
        words, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        with contextlib.closing(Client(str(control))) as client:
            assert client.get("/v1/ports") == []
        control.chmod(0o666)
        ask = ["curl", "--silent", "--unix-socket", str(control), "http://hardsplice/v1/ports"]
        for other in (user, Identity("nobody", 65534)):
            done = subprocess.run(
                other.wrap([*ask, "--write-out", "%{http_code}", "--output", "/dev/null"]),
                capture_output=True, text=True, check=True, timeout=PATIENCE,
            )  # fmt: skip
            assert done.stdout == "403", other
    finally:
        process.terminate()
        process.communicate()
        shutil.rmtree(folder)


# --- what forbids it ---

FILTERED = """
import errno, os, sys
from hardsplice.sandbox import libseccomp
seccomp = libseccomp.load()
forbid = seccomp.SyscallFilter(seccomp.ALLOW)
for call in sys.argv[1].split(","):
    if call == "unshare":  # as systemd's RestrictNamespaces= and container engines have it
        flags = 0x10000000
        has = seccomp.Arg(0, seccomp.MASKED_EQ, flags, flags)
        forbid.add_rule(seccomp.ERRNO(errno.EPERM), call, has)
    else:
        forbid.add_rule(seccomp.ERRNO(errno.EPERM), call)
forbid.load()
os.execvp(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("call", ["unshare", "mount", "unshare,mount,setns"])
def test_a_filter_of_a_container_is_named(call: str, program: Program, identity: Identity) -> None:
    argv, _ = program.argv(identity)
    if "-m" not in argv:
        pytest.skip("an installed hardsplice: its Python is not known")
    starter = (argv[-3], "-c", FILTERED, call)
    done = run(program, identity, "-t", f"127.0.0.1/{free_ports()}:80", "true", starter=starter)
    assert done.returncode == 1
    hint = done.stderr.splitlines()[-1]
    assert f"forbids {', '.join(call.split(','))}: " in hint
    assert "--security-opt seccomp=unconfined" in hint


def test_a_sysctl_that_forbids_it_is_named(program: Program, user: Identity) -> None:
    """In a user namespace of the tests' own, in which there may be none."""
    none = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    starter = ("unshare", "--user", "--map-root-user", "sh", "-c", none, "sh")
    done = run(program, user, "-t", f"127.0.0.1/{free_ports()}:80", "true", starter=starter)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("sysctl user.max_user_namespaces = 0")


# Ubuntu's restriction of user namespaces, as far as it shows without AppArmor: its sysctl, and the
# errors of what it denies. The filter spares the calls with which hardsplice looks for filters.
SWITCHED = """
mount --bind /proc/sys/kernel "$1"
mount -t tmpfs none /proc/sys/kernel
cp -r "$1"/. /proc/sys/kernel 2>/dev/null || true
umount "$1"
echo 1 > /proc/sys/kernel/apparmor_restrict_unprivileged_userns
shift
exec "$@"
"""
RESTRICTED = """
import errno, os, sys
from hardsplice.sandbox import libseccomp
seccomp = libseccomp.load()
call, place, value, code = sys.argv[1:5]
forbid = seccomp.SyscallFilter(seccomp.ALLOW)
equal = seccomp.Arg(int(place), seccomp.EQ, int(value, 16))
forbid.add_rule(seccomp.ERRNO(getattr(errno, code)), call, equal)
forbid.load()
os.execvp(sys.argv[5], sys.argv[5:])
"""
NEWUSER, NEWPID, MAKE_PRIVATE = "0x10000000", "0x20000000", "0x44000"


@pytest.mark.root
@pytest.mark.parametrize(
    ("denied", "to", "line"),
    [
        (("unshare", "0", NEWUSER, "EACCES"), "run", "create namespaces: Permission denied"),
        (("unshare", "0", NEWPID, "EPERM"), "run", "create namespaces: Operation not permitted"),
        (("mount", "3", MAKE_PRIVATE, "EACCES"), "run", "create namespaces: /: Permission denied"),
        (("unshare", "0", NEWUSER, "EACCES"), "join", "file system for an empty one: Permission"),
        (
            ("mount", "3", MAKE_PRIVATE, "EACCES"),
            "join",
            "file system for an empty one: Permission",
        ),
    ],
    ids=["create", "use", "mount", "join-create", "join-mount"],
)
def test_ubuntus_restriction_of_user_namespaces_is_named_with_the_next_step(
    denied: tuple[str, ...], to: str, line: str, user: Identity, program: Program, tmp_path: Path
) -> None:
    argv, _ = program.argv(user)
    if "-m" not in argv:
        pytest.skip("an installed hardsplice: its Python is not known")
    before = ("unshare", "--mount", "sh", "-ec", SWITCHED, "sh", str(tmp_path))
    within = (argv[-3], "-c", RESTRICTED, *denied)
    with Namespace(user) as namespace:
        word = "true" if to == "run" else str(namespace.pid)
        said_line, hint = said(program, user, word, before=before, within=within)
    assert line in said_line
    assert "sysctl kernel.apparmor_restrict_unprivileged_userns = 1" in hint
    assert "/etc/apparmor.d/hardsplice" in hint


# --- files that are no namespace ---


def test_an_empty_file_is_left_where_a_namespace_was(
    identity: Identity, program: Program, user_directory: Path
) -> None:
    left = user_directory / "left"
    left.touch()
    line, hint = said(program, identity, "--netns", str(left))
    assert line.endswith("is not a network namespace")
    assert "use the PID" in hint
    assert "podman unshare hardsplice" in hint


def test_nobody_waits_for_a_fifo(
    identity: Identity, program: Program, user_directory: Path
) -> None:
    os.mkfifo(user_directory / "fifo", 0o666)
    argv, environment = program.argv(identity)
    done = subprocess.run(
        [*argv, "-f", "--netns", str(user_directory / "fifo")],
        env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1
    assert "is not a network namespace" in done.stderr
