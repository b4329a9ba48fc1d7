# SPDX-License-Identifier: GPL-2.0-or-later
"""SECURITY.md's commands to check a running instance, run on running ones: they print what the page
says.

Each row of the table stands here once more, with what it means. A row that isn't known here, or
that says something else, is a failure.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import procfs
from tests.support.netns import Identity, Namespace, mounted
from tests.support.product import ROOT, Instance, Program, free_ports
from tests.support.stream import PATIENCE, eventually

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")

SECTION = (
    (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## How to check a running")[2]
)
SECTION = SECTION.partition("\n## ")[0]
KEEPERS = ("hs-init", "hs-guard")


@dataclass(frozen=True)
class Looked:
    """What a command printed about a process."""

    name: str
    printed: str
    dynamic: bool  # whether ports of its instance may change

    @property
    def lines(self) -> list[str]:
        return self.printed.splitlines()


def no_capability(found: Looked) -> bool:
    kill = {"CapPrm", "CapEff"} if found.name == "hs-init" else set()
    sets = dict(line.split(":\t") for line in found.lines)
    expected = {
        f"Cap{one}": f"{0x20 if f'Cap{one}' in kill else 0:016x}"
        for one in ("Inh", "Prm", "Eff", "Bnd", "Amb")
    }
    return sets == expected


def listed(found: Looked) -> dict[int, str]:
    """Of ls -l: each descriptor, and what it is."""
    links = (line.split(" -> ") for line in found.lines[1:])
    return {int(left.split()[-1]): right for left, right in links}


def right_descriptors(found: Looked) -> bool:
    seen = listed(found)
    null = (0, 1) if found.name == "hs-host" else (0, 1, 2)
    third = seen.get(3, "")
    channel = third.startswith("socket:") or (found.name == "hs-host" and third == "/dev/null")
    return all(seen[fd] == "/dev/null" for fd in null) and channel


PLACES = {(0x1C0000, 0x400000), (0x6FFC0000, 0x70400000), (0x3FBC0000, 0x40000000)}
BOOK = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) .*/memfd:targets")


def right_book(found: Looked) -> bool:
    matches = [match for match in map(BOOK.match, found.lines) if match]
    maps = [(int(one[1], 16), int(one[2], 16), one[3]) for one in matches]
    if len(maps) != len(found.lines):
        return False
    if found.name in KEEPERS:
        return maps == []
    views = [(first, end) for first, end, rights in maps if rights == "rw-s"]
    expected = 2 if found.dynamic and found.name == "hs-host" else 0
    read = sorted((first, end) for first, end, rights in maps if rights == "r--s")
    firsts, ends = [first for first, _ in read], [end for _, end in read]
    joined = firsts[1:] == ends[:-1] and (firsts[0], ends[-1]) in PLACES
    return joined and len(views) == expected and len(read) + len(views) == len(maps)


def right_limits(found: Looked) -> bool:
    cores, processes, memory = (line.split() for line in found.lines)
    none = ["0", "0", "processes"]
    return (
        cores == ["Max", "core", "file", "size", "0", "0", "bytes"]
        and (processes[2:] == none) == found.name.startswith("hs-relay")
        and memory[3].isdigit()
        and memory[3] == memory[4]
    )


def right_mode(found: Looked) -> bool:
    (flags,) = (line.split()[1] for line in found.lines if line.startswith("flags:"))
    return flags[-1] == ("1" if found.name == "hs-host" else "2")


# By command: what the page says that it prints, and whether it does.
EXPECTED: dict[str, tuple[str, Callable[[Looked], bool]]] = {
    "grep Cap /proc/$PID/status": (
        "five sets of zeros; of hs-init CAP_KILL (bit 5) in two",
        no_capability,
    ),
    "grep NoNewPrivs /proc/$PID/status": ("1", lambda found: found.printed == "NoNewPrivs:\t1\n"),
    "grep Seccomp: /proc/$PID/status": ("2", lambda found: found.printed == "Seccomp:\t2\n"),
    "ls -A /proc/$PID/root/": ("nothing", lambda found: found.printed == ""),
    "ls -l /proc/$PID/fd": (
        "0, 1 and 2: /dev/null (2 of hs-host: the log); 3: the channel, or /dev/null",
        right_descriptors,
    ),
    "grep memfd:targets /proc/$PID/maps": (
        (
            "`r--s` from 001c0000 to 00400000 (at the other places from 6ffc0000 to 70400000, from "
            "3fbc0000 to 40000000); of hs-host where ports may change two that are `rw-s` besides; "
            "nothing of hs-init and hs-guard"
        ),
        right_book,
    ),
    "grep -c ' rwx' /proc/$PID/maps": ("0", lambda found: found.printed == "0\n"),
    "grep -E 'core file|Max processes|address' /proc/$PID/limits": (
        "core file size 0; of relays processes 0; address space not unlimited",
        right_limits,
    ),
    "cat /proc/$PID/fdinfo/2": (
        (
            "of hs-host flags that end in 1: write-only (a log file, or a socket: 2); "
            "of the others 2, of /dev/null"
        ),
        right_mode,
    ),
}
FOR_EVERYBODY = ("/status", "/limits")


def table() -> dict[str, str]:
    """The rows of the page: what each command prints."""
    found = {}
    for line in SECTION.splitlines():
        if line.startswith("| `"):
            command, _, says = line[3:].rstrip(" |").partition("` | ")
            found[command.replace("\\|", "|")] = says
    return found


def test_each_row_of_the_page_is_known_here() -> None:
    assert table() == {command: says for command, (says, _) in EXPECTED.items()}


def test_there_is_no_other_command_on_the_page() -> None:
    text = "\n".join(line for line in SECTION.splitlines() if not line.startswith(("|", " ")))
    spans = set(re.findall("`([^`]+)`", text))
    assert spans == {"$PID", "pgrep '^hs-'", "ls /proc/$PID/fd", "status", "limits"}
    assert "an ordinary user, its owner too, sees what is in `status` and `limits`." in text
    assert "To the user who started it `ls /proc/$PID/fd` says Permission denied." in text


def test_each_layer_has_a_check_that_is_run_here_or_is_a_test() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("\n## Layers\n")[2]
    rows = [line for line in text.partition("\n#")[0].splitlines() if line.startswith("|")][2:]
    checks = [re.findall(r"`([^`]+)`", row)[-1].replace("\\|", "|") for row in rows]
    assert len(checks) > 10
    for check in checks:
        program, _, path = check.partition(" ")
        if program == "pytest":
            assert (ROOT / path).is_file(), path
        else:
            assert check in EXPECTED or check in BLOCK or check == "ls /proc/$PID/fd", check


# --- the table ------------------------------------------------------------------------------------


def run_as(who: Identity, command: str, pid: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        who.wrap(["/bin/sh", "-c", command]), env={**os.environ, "PID": str(pid), "LC_ALL": "C"},
        cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip


def ours(instance: Instance) -> dict[int, str]:
    """The instance's processes as the page lists them, with their names."""
    listed = {int(word) for word in run_as(Identity("root"), "pgrep '^hs-'").stdout.split()}
    return {pid: name for pid, name in procfs.names(instance.pid).items() if pid in listed}


def look(who: Identity, pid: int) -> dict[str, str]:
    """What each command prints about a process, errors included; they share a shell."""
    script = "".join(f"({command}) 2>&1; printf '\\0'\n" for command in EXPECTED)
    return dict(zip(EXPECTED, run_as(who, script, pid).stdout.split("\0"), strict=False))


def check(instance: Instance, owner: Identity, names: list[str], *, dynamic: bool) -> None:
    """Run every command on every process, as root, and as somebody who isn't."""
    processes = ours(instance)
    assert sorted(processes.values()) == sorted(names)
    stranger = owner if not owner.is_root else Identity("nobody", 65534)
    for pid, name in processes.items():
        seen = look(Identity("root"), pid) if os.geteuid() == 0 else {}
        for command, printed in seen.items():
            assert EXPECTED[command][1](Looked(name, printed, dynamic)), (name, command, printed)
        for command, printed in look(stranger, pid).items():
            if command.endswith(FOR_EVERYBODY):
                assert EXPECTED[command][1](Looked(name, printed, dynamic)), (name, command)
            else:
                assert re.fullmatch(r".*: Permission denied\n", printed), (name, command, printed)


RELAYS = ["hs-relay-in", "hs-relay-out"]
MONITORS = ["hs-host", "hs-namespace"]
OPTIONS = ("plain", "control", "auto", "workers", "everything")
EXISTING = [("PID", kind) for kind in OPTIONS[:-1]] + [
    ("PATH", "everything"),
    ("NAME", "everything"),
]


def options(kind: str, identity: Identity, folder: Path) -> tuple[list[str], list[str], bool]:
    """Arguments, the names of the processes but for COMMAND's supervisors, and whether ports may
    change.
    """
    kinds = {kind} if kind != "everything" else {"control", "auto", "workers"}
    arguments = ["-t", f"127.0.0.1/{free_ports()}:80", "-T", "127.0.0.1/9090"]
    if "control" in kinds:
        arguments += ["--control", str(folder / "control")]
    if "auto" in kinds:
        arguments += ["-t", "auto"]
    if "workers" in kinds:
        arguments += ["--workers", "2"]
    relays = RELAYS * 2 if "workers" in kinds else RELAYS
    return arguments, MONITORS + relays, bool(kinds & {"control", "auto"})


@contextlib.contextmanager
def target(mode: str, identity: Identity) -> Iterator[list[str]]:
    """The words that name a namespace, in one of the ways that there are."""
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(Namespace(identity))
        if mode == "PID":
            yield [str(namespace.pid)]
        elif mode == "PATH":
            user = [] if identity.is_root else ["--userns", namespace.user_path]
            yield ["--netns", namespace.net_path, *user]
        else:
            name = f"hardsplice-test-page-{os.getpid()}"
            stack.enter_context(mounted(namespace, Path("/run/netns") / name))
            yield ["--netns", name]


@pytest.mark.parametrize(("mode", "kind"), EXISTING)
def test_on_an_instance_beside_a_container(
    mode: str, kind: str, identity: Identity, launch: Launch, user_directory: Path
) -> None:
    if mode == "NAME" and not identity.is_root:
        pytest.skip("only root makes names in /run/netns")
    with target(mode, identity) as where:
        arguments, names, dynamic = options(kind, identity, user_directory)
        instance = launch(identity, "-f", *arguments, *where).wait_ready()
        check(instance, identity, names, dynamic=dynamic)
        instance.stop()


@pytest.mark.parametrize("kind", OPTIONS)
def test_on_an_instance_with_a_command(
    kind: str, identity: Identity, launch: Launch, user_directory: Path
) -> None:
    arguments, names, dynamic = options(kind, identity, user_directory)
    given, end = os.pipe()
    told, says = os.pipe()
    command = ["--", "/bin/sh", "-c", "echo runs; cat"]
    instance = launch(identity, *arguments, *command, stdin=given, stdout=says)
    os.close(given)
    os.close(says)
    try:
        assert os.read(told, 5) == b"runs\n", instance.messages()
        check(instance, identity, [*names, *KEEPERS], dynamic=dynamic)
    finally:
        os.close(end)
        os.close(told)
    assert instance.wait() == 0


@pytest.mark.root  # nobody else may look into processes that aren't dumpable
@pytest.mark.parametrize("where", ["a log file", "a socket"])
def test_a_log_file_and_a_socket_are_not_write_only(
    where: str, identity: Identity, program: Program, namespace: Namespace, user_directory: Path
) -> None:
    log = user_directory / "log"
    argv, environment = program.argv(identity)
    ready, told = os.pipe()
    kept, theirs = socket.socketpair()
    arguments = ["-f", "--ready-fd", str(told), "-t", f"127.0.0.1/{free_ports()}:80"]
    arguments += ["-l", str(log), "--log-size", "65536"] if where == "a log file" else []
    with kept, theirs, open(ready, "rb") as word:
        process = subprocess.Popen(
            [*argv, *arguments, str(namespace.pid)], env=environment, cwd="/", pass_fds=[told],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs.fileno(),
        )  # fmt: skip
        try:
            os.close(told)
            assert word.read(1)
            flags = run_as(Identity("root"), "cat /proc/$PID/fdinfo/2", process.pid).stdout
            assert re.search(r"flags:\t\d*2\n", flags), flags
            largest = run_as(
                Identity("root"), "grep 'Max file size' /proc/$PID/limits", process.pid
            ).stdout.split()[3:5]
            assert largest == ["65536" if where == "a log file" else "0"] * 2
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0


def test_a_process_that_is_not_locked_down_prints_something_else() -> None:
    """Each row can fail: the tests' own process is none that passes."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as bare:
        printed = look(Identity("self"), bare.pid)
        bare.communicate(timeout=PATIENCE)
    passed = [
        command
        for command, (_, prints) in EXPECTED.items()
        if printed[command] and prints(Looked("hs-relay-in", printed[command], dynamic=False))
    ]
    assert passed == ["grep -c ' rwx' /proc/$PID/maps"], "which the sandbox's own tests show"


# --- the other commands ---------------------------------------------------------------------------

BLOCK = {
    "hardsplice --audit ...": "all of it, once it is ready",
    "python -m hardsplice.policy show --role relay": "the allowlist, with a reason for each line",
    "python -m hardsplice.policy export --role relay --arch s390x --format bpf | xxd | head": "",
    "make demo": "shows the same, and fails if anything is missing",
    "make test": "tests/policy, tests/sandbox",
}


def test_the_commands_of_the_block_are_known_here() -> None:
    lines = [line.strip() for line in SECTION.splitlines() if line.startswith("    ")]
    parts = (line.partition("#") for line in lines)
    assert {command.strip(): says.strip() for command, _, says in parts} == BLOCK


def as_hardsplice(program: Program, identity: Identity, words: str) -> tuple[str, dict[str, str]]:
    """A line of the page in which Python is the one under test."""
    argv, environment = program.argv(identity)
    if "-m" not in argv:
        pytest.skip("an installed hardsplice: which Python has it is not known")
    python = " ".join(argv[: argv.index("-m")])
    return words.replace("python -m", f"{python} -m"), environment


def finish(line: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", line], env=environment, cwd="/", capture_output=True,
        text=True, check=False, timeout=PATIENCE, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_the_audit(identity: Identity, launch: Launch) -> None:
    """Of all of them, while COMMAND runs."""
    given, end = os.pipe()
    words = ("--audit", "-t", f"127.0.0.1/{free_ports()}:80", "-T", "127.0.0.1/9090", "--", "cat")
    instance = launch(identity, *words, stdin=given)
    os.close(given)
    try:
        eventually(lambda: "in force" in instance.messages(), "the audit is not printed")
        missing = [one for one in (*MONITORS, *KEEPERS, *RELAYS) if one not in instance.messages()]
    finally:
        os.close(end)
    assert (instance.wait(), missing) == (0, [])


@pytest.mark.parametrize("line", [one for one in BLOCK if one.startswith("python")])
def test_the_policy(line: str, program: Program, identity: Identity) -> None:
    if "xxd" in line and shutil.which("xxd") is None:
        pytest.skip("xxd is not installed")
    done = finish(*as_hardsplice(program, identity, line))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) >= 10


def test_the_demonstration_holds() -> None:
    """What `make demo` runs, once it has what it needs."""
    done = finish(f"cd {ROOT} && {sys.executable} -m tools.demo", dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    shown = [name for name in (*MONITORS, *KEEPERS, "hs-relay-in") if f"{name} (" in done.stdout]
    assert shown == [*MONITORS, *KEEPERS, "hs-relay-in"]


def test_what_make_is_asked_for_it_knows() -> None:
    for line in ("make demo", "make test"):
        done = finish(f"{line} --dry-run -C {ROOT}", dict(os.environ))
        assert done.returncode == 0, done.stderr
    assert all((ROOT / folder).is_dir() for folder in BLOCK["make test"].split(", "))
