# SPDX-License-Identifier: GPL-2.0-or-later
"""COMMAND has what it would have without hardsplice, and hardsplice takes what it is given."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports, run
from tests.support.stream import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
Launch = Callable[..., Instance]
ROOT = Identity("root")

# What a process is given, as it sees that itself; without what namespaces of its own change.
PROBE = """
import os, resource, signal
print(sorted(os.environb.items()))
print([resource.getrlimit(number) for number in range(16)])
print(os.umask(0), os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0)))
print(os.getcwd(), open("/proc/self/oom_score_adj").read())
print(open("/proc/self/coredump_filter").read())
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print([status[name] for name in ("SigBlk", "SigIgn", "SigCgt", "ShdPnd", "NoNewPrivs", "Seccomp")])
def kind(fd):
    try:
        return os.fstat(fd).st_rdev
    except OSError:
        return None
print([kind(fd) for fd in range(20)])
"""
BARE = ("/usr/bin/python3", "-I", "-c", PROBE)


def _prepare() -> None:
    for which, limits in (
        (resource.RLIMIT_NOFILE, (500, 1000)),
        (resource.RLIMIT_CORE, (4096, 8192)),
        (resource.RLIMIT_FSIZE, (1 << 30, 1 << 31)),
        (resource.RLIMIT_STACK, (4 << 20, 16 << 20)),
    ):
        resource.setrlimit(which, limits)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGTTOU, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGCONT, signal.SIGCHLD, 40})
    os.umask(0o137)
    os.nice(3)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    Path("/proc/self/oom_score_adj").write_text("300")
    Path("/proc/self/coredump_filter").write_text("0x11")
    os.chdir("/usr/share")


def _given(argv: list[str], environment: dict[str, str], prepare: Callable[[], None]) -> str:
    return subprocess.run(
        argv, env=environment, preexec_fn=prepare, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE,
    ).stdout  # fmt: skip


def test_command_is_given_what_the_caller_gave(program: Program, identity: Identity) -> None:
    argv, environment = program.argv(identity)
    bare = identity.wrap(list(BARE))
    assert _given([*argv, "-q", "--", *BARE], environment, _prepare) == _given(
        bare, environment, _prepare
    )


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("ignored", ["", "PIPE", "PIPE XFSZ"])
def test_what_a_shell_ignores_stays_ignored(
    program: Program, identity: Identity, shell: str, ignored: str
) -> None:
    """Also what Python ignores at its start, whoever starts it."""
    argv, environment = program.argv(identity)
    look = ["grep", "SigIgn", "/proc/self/status"]
    trap = f"trap '' {ignored}; " * bool(ignored)
    found = [
        subprocess.run(
            [shell, "-c", f'{trap} "$@"; exit $?', shell, *words], env=environment, cwd="/",
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True, timeout=PATIENCE,
        ).stdout
        for words in (look, [*argv, "-q", "--", *look])
    ]  # fmt: skip
    assert found[0] == found[1]


def test_what_a_python_ignores_for_itself_is_not(program: Program, identity: Identity) -> None:
    """As these tests do, and their children don't."""
    done = run(program, identity, "-q", "--", "grep", "SigIgn", "/proc/self/status")
    assert int(done.stdout.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


@pytest.mark.parametrize("locale", [{}, {"LC_CTYPE": "C"}, {"LC_CTYPE": "POSIX"}, {"LC_CTYPE": ""}])
def test_its_environment_is_the_callers(
    program: Program, identity: Identity, locale: dict[str, str]
) -> None:
    """Where the locale is C, a Python sets LC_CTYPE for all that it starts (PEP 538)."""
    argv, base = program.argv(identity)
    kept = {key: base[key] for key in base if key in ("PATH", "PYTHONPATH")}
    environment = {**kept, **locale, "EMPTY": "", "A B": "c=d"}
    done = subprocess.run(
        [*argv, "-q", "--", "env", "-0"], env=environment, cwd="/", capture_output=True, text=True,
        timeout=PATIENCE, check=True,
    )  # fmt: skip
    found = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    assert found == environment


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- 2>&-"])
def test_a_stream_that_was_closed_is_closed(
    program: Program, identity: Identity, closed: str
) -> None:
    look = ("sh", "-c", "for fd in 0 1 2; do [ -e /proc/self/fd/$fd ] && echo $fd >&9; done; true")
    argv, environment = program.argv(identity)
    read, write = os.pipe()
    with open(read) as output:
        try:
            done = subprocess.run(
                ["bash", "-c", f'exec "$@" 9>&{write} {write}>&- {closed}', "sh", *argv, "-q",
                 "-t", f"{free_ports()}:80", "--", *look],
                env=environment, cwd="/", stdin=subprocess.DEVNULL, timeout=PATIENCE, check=False,
                pass_fds=[write],
            )  # fmt: skip
        finally:
            os.close(write)
        assert done.returncode == 0
        left = {"0", "1", "2"}
        for one in closed.split():
            left.discard({"<": "0", ">": "1", "2": "2"}[one[0]])
        assert set(output.read().split()) == left


def test_a_script_without_a_first_line_is_run_by_sh(
    program: Program, identity: Identity, user_directory: Path
) -> None:
    """As by shells, and by whoever calls execvp(3)."""
    script = user_directory / "script"
    script.write_text("echo $# $1; exit 5\n")
    script.chmod(0o755)
    for words, environment in (
        ((str(script),), {}),
        (("script",), {"PATH": f"{user_directory}:{os.environ['PATH']}"}),
    ):
        done = run(program, identity, "-q", "--", *words, "a", "b", environment=environment)
        assert (done.returncode, done.stdout) == (5, "2 a\n"), done.stderr


# --- children that are none of its own ------------------------------------------------------------


def _zombies(pid: int) -> list[int]:
    return [one for one in procfs.children(pid) if not procfs.alive(one)]


@pytest.mark.parametrize("where", ["command", "process", "changing ports"])
def test_children_from_before_it_are_reaped(
    program: Program, identity: Identity, namespace: Namespace, where: str
) -> None:
    """Of a script that has something in the background, and becomes hardsplice."""
    argv, environment = program.argv(identity)
    port = free_ports()
    words = {
        "command": ["--", "sleep", "1000"],
        "process": ["-f", str(namespace.pid)],
        "changing ports": ["-f", "-t", "auto", str(namespace.pid)],
    }[where]
    read, write = os.pipe()
    gate, opened = os.pipe()
    script = f'(read x <&{gate}) & (exit 3) & exec "$@" {gate}<&-'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *argv, "-q", "--ready-fd", str(write), "-t",
         f"127.0.0.1/{port}:80", *words],
        env=environment, cwd="/", stdin=subprocess.DEVNULL, pass_fds=[write, gate],
    )  # fmt: skip
    try:
        os.close(write)
        os.close(gate)
        assert os.read(read, 1) == b"\n"
        before = procfs.children(process.pid)
        assert _zombies(process.pid) == []
        os.write(opened, b"x\n")
        eventually(
            lambda: len(procfs.children(process.pid)) < len(before), "it does not end", within=3
        )
        assert _zombies(process.pid) == []
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(PATIENCE)
        os.close(read)
        os.close(opened)


@pytest.fixture
def alone(program: Program) -> Iterator[subprocess.Popen[str]]:
    """hardsplice as PID 1, of a container, say."""
    argv, environment = program.argv(ROOT)
    script = "echo up; trap 'exit 9' TERM; while :; do sleep 0.1; done"
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        [*unshare, *argv, "-q", "-t", f"127.0.0.1/{free_ports()}:80", "--", "sh", "-c", script],
        env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    for pid in procfs.children(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait(PATIENCE)
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.root
def test_as_pid_1_it_reaps_and_ends_as_asked(alone: subprocess.Popen[str]) -> None:
    assert alone.stdout is not None
    assert alone.stdout.readline() == "up\n"
    (pid,) = procfs.children(alone.pid)
    ours = set(procfs.children(pid))
    orphans = ["nsenter", "-t", str(pid), "-p", "sh", "-c", "(sleep 0.05 &); (sleep 0.1 &)"]
    subprocess.run(orphans, check=True, timeout=PATIENCE)
    eventually(lambda: set(procfs.children(pid)) == ours, "orphans are left", within=3)
    os.kill(pid, signal.SIGTERM)
    assert alone.wait(PATIENCE) == 9


# --- who asked to be followed ---------------------------------------------------------------------


@pytest.mark.parametrize("runas", [(), ("--runas", "1234:1235")])
def test_it_ends_with_a_parent_that_asked_for_that(
    program: Program, identity: Identity, namespace: Namespace, runas: tuple[str, ...]
) -> None:
    """PR_SET_PDEATHSIG, which a change of user undoes."""
    if runas and not identity.is_root:
        pytest.skip("only root may")
    argv, environment = program.argv(identity)
    prefix = argv[: len(identity.wrap([]))]
    asked, told = os.pipe()
    words = [
        *("-f", "--ready-fd", str(told), *runas, "-t", f"127.0.0.1/{free_ports()}:80"),
        str(namespace.pid),
    ]
    parent = subprocess.Popen(
        [*prefix, "sh", "-c", '"$@" & read x', "sh", "setpriv", "--pdeathsig", "TERM",
         *argv[len(prefix) :], *words],
        env=environment, cwd="/", stdin=subprocess.PIPE, pass_fds=[told],
    )  # fmt: skip
    try:
        os.close(told)
        assert os.read(asked, 1) == b"\n"
        family = [pid for child in procfs.children(parent.pid) for pid in procfs.tree(child)]
        assert len(family) >= 3
    finally:
        os.close(asked)
        parent.kill()
        parent.wait(PATIENCE)
        assert parent.stdin is not None
        parent.stdin.close()
    eventually(lambda: not any(map(procfs.alive, family)), "it goes on", within=3)
