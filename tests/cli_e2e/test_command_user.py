# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom a COMMAND is, what it inherits, and what it can't change of the machine."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.support import procfs
from tests.support.netns import Identity
from tests.support.product import Instance, Program, free_ports, run
from tests.support.stream import PATIENCE, eventually

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")
ROOT = Identity("root")
NOBODY = 65534
SETTINGS = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/sys/kernel/mm/ksm/run",
    "/sys/kernel/uevent_seqnum",
    "/sys/fs/cgroup/cgroup.procs",
)


def _members(instance: Instance) -> dict[str, int]:
    """The processes by their names, COMMAND's among them."""
    return {name: pid for pid, name in procfs.names(instance.pid).items()}


# --- who it is ------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "uid"), [((), NOBODY), (("--runas", "1234:1235"), 1234), (("--runas", "0"), 0)]
)
def test_started_by_root(launch: Launch, options: tuple[str, ...], uid: int) -> None:
    """Root in a user namespace, and outside of it whoever --runas names, by default nobody; none of
    root's groups is left.
    """
    instance = launch(
        ROOT, *options, "-t", f"{free_ports()}:80", "--", "sh", "-c", "id -u; exec sleep 100",
        stdout=subprocess.PIPE,
    ).wait_ready()  # fmt: skip
    assert instance.process.stdout is not None
    assert instance.process.stdout.readline() == b"0\n"
    instance.process.stdout.close()
    eventually(lambda: "sleep" in _members(instance), "COMMAND does not run")
    family = _members(instance)
    command, gid = family["sleep"], 1235 if uid == 1234 else uid
    for pid in family.values():
        status = procfs.status(pid)
        assert status["Uid"].split() == [str(uid)] * 4, status["Name"]
        assert status["Gid"].split() == [str(gid)] * 4, status["Name"]
        assert status["Groups"] == "", status["Name"]
    assert procfs.namespace(command, "user") != procfs.namespace(os.getpid(), "user")
    said = instance.messages()
    assert ("started by root: COMMAND is user 65534" in said) == (not options), said
    assert "--runas 0 keeps root" in said or options
    instance.process.terminate()
    assert instance.wait() == 128 + signal.SIGTERM


@pytest.mark.root
def test_without_a_user_namespace_it_is_the_user_that_was_asked_for(program: Program) -> None:
    done = run(program, ROOT, "--netns-only", "--runas", "1234:1235", "--", "id", "-u")
    assert (done.returncode, done.stdout) == (0, "1234\n"), done.stderr


@pytest.mark.root
def test_without_a_user_namespace_root_stays_root_and_nothing_is_read_only(
    program: Program,
) -> None:
    script = "id -u; ( : >>/proc/sys/kernel/core_pattern ) && echo writable"
    done = run(program, ROOT, "--netns-only", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "0\nwritable\n"), done.stderr
    assert done.stderr == (
        "hardsplice: started by root: COMMAND is root of the host with --netns-only; "
        "--runas USER names another user\n"
    )


# A session with a secret in it: starts a command, and finds out whether one has it.
_SESSION = """
import ctypes, os, sys
from hardsplice.kernel import linux
key, number = linux._KEYCTL.get(linux.MACHINE, 219), ctypes.c_long
add = {"x86_64": 248, "aarch64": 217, "riscv64": 217, "ppc64le": 269, "s390x": 278}
if sys.argv[1] == "has":
    print(linux._syscall(number(key), number(10), number(-3), b"user", b"secret", number(0)) > 0)
else:
    linux.join_session_keyring()
    what = b"user", b"secret", b"payload", ctypes.c_size_t(7), number(-3)
    assert linux._syscall(number(add[linux.MACHINE]), *what) > 0
    os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.root
@pytest.mark.parametrize("options", [(), ("--runas", "1234:1235"), ("--runas", "0"), None])
def test_only_root_has_the_keys_of_roots_session(
    program: Program, options: tuple[str, ...] | None
) -> None:
    """The last row is what a change of user alone comes to."""
    argv, environment = program.argv(Identity("user", 1234))  # which python it can run
    python = argv[argv.index("-m") - 1]
    has = [python, "-c", _SESSION, "has"]
    if options is None:
        words = Identity("user", 1234).wrap(has)
    else:
        words = [python, "-m", "hardsplice", "-q", *options, "--", *has]
    done = subprocess.run(
        [python, "-c", _SESSION, *words], env=environment, cwd="/", capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    if "ENOSYS" in done.stderr or "not implemented" in done.stderr:
        pytest.skip("this kernel keeps no keys")
    assert (done.stdout, done.stderr) == (f"{options in (None, ('--runas', '0'))}\n", "")


@pytest.fixture
def private() -> Iterator[Path]:
    """A folder of root's that nobody else may enter, with a program in it."""
    folder = Path(tempfile.mkdtemp(prefix="hardsplice-tests-"))
    shutil.copy("/bin/true", folder / "program")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.root
def test_a_program_of_roots_alone_costs_a_line_with_the_way_out(
    program: Program, private: Path
) -> None:
    path = str(private / "program")
    done = run(program, ROOT, "-q", "--", path)
    assert done.returncode == 126
    assert done.stderr.splitlines() == [
        f"hardsplice: cannot run {path}: Permission denied",
        "hardsplice: COMMAND is user 65534 here; --runas USER names another, --runas 0 keeps root",
    ]
    assert run(program, ROOT, "-q", "--runas", "0", "--", path).returncode == 0


@pytest.mark.root
def test_a_working_directory_of_roots_alone_costs_a_line(program: Program, private: Path) -> None:
    argv, environment = program.argv(ROOT)
    for options, expected in (((), 1), (("--runas", "0"), 0)):
        done = subprocess.run(
            [*argv, *options, "--", "true"], env=environment, cwd=private, capture_output=True,
            text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0
        lines = [line for line in done.stderr.splitlines() if "working directory" in line]
        assert len(lines) == expected, done.stderr
        assert all(str(private) in line and "--runas 0" in line for line in lines)


# --- what it can't change -------------------------------------------------------------------------


def _shell(program: Program, identity: Identity, script: str, *options: str) -> list[str]:
    done = run(program, identity, "-q", *options, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def _writable(*paths: str) -> str:
    """A script that names those of the paths that can be opened for writing; it writes nothing."""
    return f"for f in {' '.join(paths)}; do ( : >> $f ) 2>/dev/null && echo $f; done; true"


@pytest.mark.root
@pytest.mark.parametrize("options", [(), ("--runas", "0")], ids=["nobody", "root"])
def test_the_machines_settings_are_out_of_reach(program: Program, options: tuple[str, ...]) -> None:
    there = [path for path in SETTINGS if os.path.exists(path)]
    assert len(there) > 2
    assert _shell(program, ROOT, _writable(*there), *options) == []
    # Root itself could; only what is read-only for everybody is left out here.
    bare = subprocess.run(
        ["sh", "-c", _writable(*there)], capture_output=True, text=True, check=True
    )
    assert "/proc/sys/kernel/core_pattern" in bare.stdout.split()


WAYS_AROUND = {
    "take it off": "umount $1",
    "take it off, later": "umount -l $1",
    "take /proc off": "umount -l /proc",
    "make it writable": "mount -o remount,bind,rw $1",
    "a fresh /proc": "mount -t proc proc $D && R=$D",
    "a fresh sysfs": "mount -t sysfs sysfs $D && R=$D",
    "another view of /proc": "mount --bind /proc $D && R=$D",
    "another view of all": "mount --rbind / $D && umount $D$1; R=$D",
    "a fresh /proc in nested namespaces": "N='unshare -Urpf --mount-proc'",
    "a new mount namespace": "N='unshare -m'",
}


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS_AROUND)
@pytest.mark.parametrize("setting", ["/proc/sys", "/sys"])
def test_what_is_read_only_stays_so(program: Program, way: str, setting: str) -> None:
    """Where COMMAND keeps root, which file permissions do not stop."""
    probe = {"/proc/sys": "/proc/sys/kernel/core_pattern", "/sys": "/sys/kernel/mm/ksm/run"}[
        setting
    ]
    if not os.path.exists(probe):
        pytest.skip(f"this kernel has no {probe}")
    script = f"""
        set -- {setting}; D=$(mktemp -d); R=; N=; P={probe}
        {{ {WAYS_AROUND[way]}; }} >/dev/null 2>&1
        for p in $R{probe} $R${{P#/proc}} $R${{P#/sys}}; do
            $N sh -c "( : >> $p ) 2>/dev/null && echo $p" 2>/dev/null
        done
        grep -c ' /proc ' /proc/self/mountinfo; umount -l $D 2>/dev/null; rmdir $D; true
    """
    found = _shell(program, ROOT, script, "--runas", "0")
    assert found[:-1] == [], found


@pytest.mark.root
def test_and_without_the_second_user_namespace_it_would_not(program: Program) -> None:
    """What the lock is worth: the same mounts in one user namespace can be written again."""
    code = (
        "from hardsplice.kernel import linux; from hardsplice.sandbox import masks\n"
        "import subprocess\n"
        "linux.unshare(linux.CLONE_NEWNS)\n"
        "linux.mount('none', '/', None, linux.MS_REC | linux.MS_PRIVATE)\n"
        "masks.make_proc_read_only()\n"
        "probe = '( : >> /proc/sys/kernel/core_pattern ) 2>/dev/null && echo writable; true'\n"
        "subprocess.run(['sh', '-c', probe])\n"
        "subprocess.run(['sh', '-c', 'umount -l /proc/sys; ' + probe])\n"
    )
    argv, environment = program.argv(ROOT)
    done = subprocess.run(
        [argv[0], "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "writable\n", done.stderr


def test_the_hosts_proc_stays_hidden(program: Program, identity: Identity) -> None:
    """/proc can't be taken off to see the host's below."""
    script = "umount -l /proc 2>/dev/null; umount /proc 2>/dev/null; echo /proc/[0-9]* | wc -w"
    (seen,) = _shell(program, identity, script)
    assert int(seen) < 10


def test_nested_namespaces_still_work(program: Program, identity: Identity) -> None:
    """As COMMANDs need that isolate parts of their own."""
    script = "unshare -Urpf --mount-proc sh -c 'echo $$'"
    assert _shell(program, identity, script) == ["1"]


# --- what it inherits -----------------------------------------------------------------------------

_OPEN = """
import os
def is_open(fd):
    try:
        return os.fstat(fd)
    except OSError:
        return False
print(*filter(is_open, range(1000)))
"""


# Starts hardsplice with copies of standard input at these numbers.
_WITH = """
import os, sys
for number in sys.argv[1].split():
    os.dup2(0, int(number))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def _open_in_command(
    program: Program, identity: Identity, given: Iterable[int], *options: str
) -> str:
    """The descriptors that COMMAND finds; ``given`` are those that hardsplice is started with."""
    argv, environment = program.argv(identity)
    wrapper = ["/usr/bin/python3", "-I", "-c", _WITH, " ".join(map(str, given))]
    done = subprocess.run(
        [*wrapper, *argv, "-q", *options, "--", "/usr/bin/python3", "-I", "-c", _OPEN],
        env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize("numbers", [(), (3, 9), (5,), (4, 6, 7, 300)])
def test_the_callers_descriptors_and_no_other(
    program: Program, identity: Identity, numbers: tuple[int, ...]
) -> None:
    found = _open_in_command(program, identity, numbers, "-t", f"{free_ports()}:80")
    assert found.split() == ["0", "1", "2", *map(str, numbers)]


def test_what_can_be_read_from_a_descriptor(program: Program, identity: Identity) -> None:
    argv, environment = program.argv(identity)
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 3</etc/passwd', "sh", *argv, "-q", "--", "sh", "-c", "cat <&3"],
        env=environment, cwd="/", capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.stdout == Path("/etc/passwd").read_text()


@pytest.mark.parametrize("number", [3, 4, 7, 20])
def test_not_the_ready_descriptor(program: Program, identity: Identity, number: int) -> None:
    found = _open_in_command(program, identity, (number, 8), "--ready-fd", str(number))
    assert found == "0 1 2 8"


def test_nor_a_listener_that_was_passed(program: Program, identity: Identity) -> None:
    """By a service manager: LISTEN_PID names whoever it starts, which sh then becomes."""
    argv, environment = program.argv(identity)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = [*argv, "-q", "-t", "inherit:80", "--", "/usr/bin/python3", "-I", "-c", _OPEN]
        done = subprocess.run(
            ["sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh", *words],
            env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True,
            preexec_fn=lambda: os.dup2(listener.fileno(), 3) and None, pass_fds=[3],
            timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("0 1 2", "")


def test_limits_and_signals_are_the_callers(program: Program, identity: Identity) -> None:
    """As without hardsplice: the soft limit of descriptors, what is ignored and what is blocked."""
    code = (
        "import resource, signal\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "print(*(line for line in open('/proc/self/status') if line[:6] in ('SigBlk', 'SigIgn')))\n"
    )
    words = ["/usr/bin/python3", "-I", "-c", code]

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (500, 1000))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

    def output(argv: list[str], environment: dict[str, str]) -> str:
        return subprocess.run(
            argv, env=environment, cwd="/", preexec_fn=prepare, stdout=subprocess.PIPE, text=True,
            check=True, timeout=PATIENCE,
        ).stdout  # fmt: skip

    argv, environment = program.argv(identity)
    assert output([*argv, "-q", "--", *words], environment) == output(words, environment)


# --- the processes beside it ----------------------------------------------------------------------


@pytest.mark.root  # nobody else may look into processes that aren't dumpable
@pytest.mark.parametrize("options", [(), ("--runas", "0"), ("--netns-only",)])
def test_pid_1_and_its_guard_have_nothing_to_see(launch: Launch, options: tuple[str, ...]) -> None:
    """An empty root, and few descriptors, none of them the caller's."""
    instance = launch(ROOT, *options, "--", "sleep", "100").wait_ready()
    found = {procfs.status(pid)["Name"]: pid for pid in instance.processes()}
    for name, kinds in (
        ("hs-init", ["socket", "anon_inode", "pipe"]),
        ("hs-guard", ["socket", "pipe"]),
    ):
        pid = found[name]
        assert os.listdir(f"/proc/{pid}/root/") == [], name
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert procfs.namespace(pid, "mnt") != procfs.namespace(os.getpid(), "mnt")
        held = procfs.descriptors(pid)
        assert all(held.pop(fd) == "/dev/null" for fd in (0, 1, 2)), (name, held)
        # Other numbers that mean something elsewhere are taken, by nothing.
        left = [what.partition(":")[0] for what in held.values() if what != "/dev/null"]
        assert sorted(left) == sorted(kinds), (name, held)
    instance.process.terminate()
    assert instance.wait() == 128 + signal.SIGTERM


ENDS = [signal.SIGTERM, signal.SIGKILL]
OPTIONS = [
    pytest.param((), id="default"),
    pytest.param(("--runas", "0"), id="runas-0", marks=pytest.mark.root),
    pytest.param(("--runas", "1234:1235"), id="runas-user", marks=pytest.mark.root),
    pytest.param(("--netns-only",), id="netns-only", marks=pytest.mark.root),
]


_AT_PID_1 = """
import ctypes, errno, os, resource
libc = ctypes.CDLL(None, use_errno=True)
for request in (16, 0x4206):  # PTRACE_ATTACH, PTRACE_SEIZE
    print(errno.errorcode[ctypes.get_errno()] if libc.ptrace(request, 1, 0, 0) else "traced")
for name in ("root/", "fd/0", "fd/3", "cwd/", "mem", "environ", "ns/mnt", "map_files"):
    try:
        path = f"/proc/1/{name}"
        print(os.listdir(path) if os.path.isdir(path) else os.open(path, 0))
    except OSError as error:
        print(errno.errorcode[error.errno])
os.kill(1, 9)
os.kill(1, 19)
print("goes on")
"""


@pytest.mark.parametrize("options", OPTIONS)
def test_the_command_gets_nothing_from_pid_1(
    program: Program, identity: Identity, options: tuple[str, ...]
) -> None:
    if options and not identity.is_root:
        pytest.skip("only root may")
    if "--netns-only" in options:
        pytest.skip("it has all capabilities")
    words = ("/usr/bin/python3", "-I", "-c", _AT_PID_1)
    done = run(program, identity, "-q", *options, "--", *words)
    assert done.returncode == 0, done.stderr
    *refused, last = done.stdout.splitlines()
    assert (set(refused), len(refused), last) == ({"EPERM", "EACCES"}, 10, "goes on")


def test_all_that_stay_are_undumpable(identity: Identity, launch: Launch) -> None:
    """Their files in /proc belong to root then, whoever they are (proc(5))."""
    instance = launch(identity, "-t", f"{free_ports()}:80", "--", "sleep", "100").wait_ready()
    eventually(lambda: "sleep" in _members(instance), "COMMAND does not run")
    for name, pid in _members(instance).items():
        assert (os.stat(f"/proc/{pid}/stat").st_uid == 0) == (name != "sleep"), name
    instance.process.terminate()
    assert instance.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("stopped", [("hs-init",), ("hs-guard",), ("hs-init", "hs-guard")])
@pytest.mark.parametrize("options", OPTIONS)
def test_nothing_is_left_though_one_is_stopped(
    identity: Identity,
    launch: Launch,
    options: tuple[str, ...],
    stopped: tuple[str, ...],
    number: int,
) -> None:
    """TERM or KILL of the first process: within a second no process, no port."""
    if options and not identity.is_root:
        pytest.skip("only root may")
    port = free_ports()
    spec = ("-t", f"127.0.0.1/{port}:80")
    instance = launch(identity, *options, *spec, "--", "sleep", "1000").wait_ready()
    eventually(lambda: "sleep" in _members(instance), "COMMAND does not run")
    family = _members(instance)
    assert {"hs-host", "hs-namespace", "hs-relay-in", "hs-guard", "hs-init", "sleep"} <= set(family)
    for name in stopped:
        os.kill(family[name], signal.SIGSTOP)
    instance.process.send_signal(number)

    def left() -> list[str]:
        return [name for name, pid in family.items() if procfs.alive(pid)]

    eventually(lambda: not left(), lambda: f"left: {left()}", within=1)
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0
    status = instance.wait(1)
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    elif "hs-init" in stopped:
        assert status == 1
        assert "cannot pass on a signal to COMMAND" in instance.messages()
    else:
        assert status == 128 + signal.SIGTERM


@pytest.mark.parametrize("name", ["hs-init", "hs-guard"])
@pytest.mark.parametrize("options", OPTIONS)
def test_all_ends_with_one_of_them(
    identity: Identity, launch: Launch, options: tuple[str, ...], name: str
) -> None:
    if options and not identity.is_root:
        pytest.skip("only root may")
    instance = launch(identity, *options, "--", "sleep", "1000").wait_ready()
    eventually(lambda: "sleep" in _members(instance), "COMMAND does not run")
    family = _members(instance)
    os.kill(family[name], signal.SIGKILL)
    assert instance.wait(2) == 128 + signal.SIGKILL
    said = f"hardsplice: cannot keep COMMAND running: {name} was killed by SIGKILL\n"
    assert instance.messages().endswith(said)
    assert not [one for one, pid in family.items() if procfs.alive(pid)]


def test_signals_to_the_guard_change_nothing(identity: Identity, launch: Launch) -> None:
    """It blocks all that can be blocked, and goes on after a stop."""
    instance = launch(identity, "--", "sleep", "1000").wait_ready()
    eventually(lambda: "sleep" in _members(instance), "COMMAND does not run")
    guard = _members(instance)["hs-guard"]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGIO):
        os.kill(guard, number)
    os.kill(guard, signal.SIGSTOP)
    eventually(lambda: procfs.stat(guard)[0] == "T", "it does not stop")
    os.kill(guard, signal.SIGCONT)
    eventually(lambda: procfs.stat(guard)[0] == "S", "it does not go on")
    instance.process.terminate()
    assert instance.wait() == 128 + signal.SIGTERM


def test_a_command_that_is_killed_before_it_runs_leaves_nothing(
    identity: Identity, launch: Launch
) -> None:
    """Until then it can't be reached with what whoever is in its namespaces has: no trace of it."""
    instance = launch(identity, "--", "sleep", "1000").wait_ready()
    with contextlib.suppress(KeyError, ProcessLookupError):
        os.kill(_members(instance)["hs-command"], signal.SIGKILL)
    instance.process.terminate()
    assert instance.wait(2) in (128 + signal.SIGKILL, 128 + signal.SIGTERM)


CANNOT_RUN = {
    "no x": (126, "Permission denied", "hardsplice: nobody may execute it: see its permissions"),
    "a folder": (126, "Permission denied", "hardsplice: it is no program"),
    "no interpreter": (127, "its interpreter is not there", ""),
    "nothing": (127, "No such file or directory", ""),
    "no such name": (127, "No such file or directory", ""),
}


@pytest.mark.parametrize("what", CANNOT_RUN)
def test_why_nobody_could_run_it(
    program: Program, identity: Identity, user_directory: Path, what: str
) -> None:
    """Then no other user is recommended."""
    path = user_directory / "program"
    command = "no-such-command" if what == "no such name" else str(path)
    if what == "a folder":
        path.mkdir()
    elif not what.startswith("no"):
        path.write_text("x")
    else:
        path.write_text("#!/nonexistent/sh\n")
        path.chmod(0o644 if what == "no x" else 0o755)
    if what == "nothing":
        path.unlink(missing_ok=True)
    there = {"PATH": "/usr/bin:/bin"}  # folders that everybody may search
    done = run(program, identity, "-q", "-t", "none", "--", command, environment=there)
    status, reason, *hints = CANNOT_RUN[what]
    said = [f"hardsplice: cannot run {command}: {reason}", *filter(None, hints)]
    assert (done.returncode, done.stderr.splitlines()) == (status, said)


@pytest.mark.root
def test_another_process_of_its_user_may_not_enter(launch: Launch) -> None:
    """Started by root the namespaces are root's: nobody else's processes neither enter them nor
    trace what is in there.
    """
    instance = launch(ROOT, "--", "sleep", "1000").wait_ready()
    eventually(lambda: "sleep" in _members(instance), "COMMAND does not run")
    family = _members(instance)
    nobody = Identity("nobody", NOBODY)
    for name in ("sleep", "hs-init", "hs-guard"):
        for command in (
            ["nsenter", "-t", str(family[name]), "-U", "--preserve-credentials", "true"],
            ["cat", f"/proc/{family[name]}/environ"],
        ):
            done = subprocess.run(nobody.wrap(command), capture_output=True, check=False)
            assert done.returncode != 0, (name, command)
    instance.process.terminate()
    assert instance.wait() == 128 + signal.SIGTERM
