# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever is wrong: one clear line, perhaps one with the next step, status 1, and nothing left.

Nothing means: no process, no PID file, and no port of a range of which only a part could be had.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.netns import Identity, Namespace
from tests.support.product import Program, can_bind, free_ports, run

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
ME = Identity("me")
MESSAGE = re.compile(r"hardsplice: cannot \S+ .+: .+")
HINT = re.compile(r"hardsplice: \S.+")


def check(
    ran: subprocess.CompletedProcess[str], *, says: str = "", hints: str = "", status: int = 1
) -> None:
    """The status, nothing on standard output, one line of the known form, and a hint at most."""
    told = f"status {ran.returncode}, stdout {ran.stdout!r}, stderr {ran.stderr!r}"
    lines = ran.stderr.splitlines()
    assert ran.returncode == status, told
    assert ran.stdout == "", told
    assert 1 <= len(lines) <= 2, told
    assert MESSAGE.fullmatch(lines[0]), told
    assert all(HINT.fullmatch(line) for line in lines), told
    assert says.lower() in lines[0].lower(), told
    assert hints.lower() in "".join(lines[1:]).lower(), told


# --- the command line ---

_BAD_SPECS = """
abc 80- -80 0 65536 99999999999999999999 0-10 90-80 80:90-91 80-90:1-5 1-3:4-7 80: :80 80:0
80:65536 ~ ~0 ~90-80 80,,81 ,80 80, 80;81 80.5 0x50 +80 1e3
1.2.3/80 256.0.0.1/80 [::1/80 ::1]/80 [::g]/80 :::/80 host/80 127.0.0.1//80
%/80 %a/b/80 %interfacenameistoolong/80
80:host/80 80:1.2.3.4/ 80:1.2.3.4/0 80:[::1]/80-81 80:1.2.3.4/5/6
all:80 all:host all:1.2.3.4/80 none,80 80,none none:80 127.0.0.1/none
auto:80 ~auto 80:auto all:1.2.3.4,auto
"""
BAD_SPECS = [spec for line in _BAD_SPECS.splitlines() for spec in line.split()]
BAD_SPECS += ["", " ", "80 81", "80\n", "80\x7f", "\uff18\uff10"]  # the last: 80 in wide digits


@pytest.mark.parametrize(
    ("option", "spec"),
    [
        *(("-t", spec) for spec in BAD_SPECS),
        *(("-T", spec) for spec in ["abc", "80:90-91", "auto,auto:1", ""]),
    ],
)
def test_bad_port_specs(program: Program, option: str, spec: str) -> None:
    check(run(program, ME, option, spec, "--", "true"), says=option)


@pytest.mark.parametrize(
    "words",
    [
        ["--bogus"],
        ["-Z"],
        ["-t"],
        ["--log-size"],
        ["-4", "-6"],
        ["-q", "-d"],
        ["--log-size", "lots"],
        ["--log-size=-1"],
        ["--log-format", "xml"],
        ["--sandbox", "none"],
        ["--ready-fd", "x"],
        ["--ready-fd", "-1"],
        ["--ready-fd", "999"],
        ["--quiet=yes"],
        ["--userns", "/proc/self/ns/user"],
        ["--netns", "/proc/self/ns/net", "1"],
        ["--netns", "/proc/self/ns/net", "sh"],
        ["--netns", ""],
        ["1", "2"],
        ["0"],
        ["12\n13"],
        ["99999999999999999999"],
        ["--runas", ""],
        ["--runas", "no-such-user"],
        ["--runas", "0:no-such-group"],
        ["--runas", "99999999999"],
        ["--runas", ":"],
        ["-P", ""],
        ["-P", "/nonexistent/pid"],
        ["-P", "/"],
        ["-l", "/nonexistent/log"],
        ["-l", "/"],
    ],
    ids=" ".join,
)
def test_bad_command_lines(program: Program, words: list[str]) -> None:
    ends_itself = any(not word.startswith("-") and word.isdigit() for word in words[-1:])
    netns = "--netns" in words or "--userns" in words
    check(run(program, ME, *words, *([] if ends_itself or netns else ["true"])))


def test_runas_needs_root(program: Program, user: Identity) -> None:
    check(run(program, user, "--runas", "65534", "--", "true"))


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("/nonexistent", 127),
        ("no-such-command", 127),
        ("/etc/passwd", 126),
        ("/", 126),
        ("/etc/passwd/x", 126),
    ],
)
def test_a_command_that_cannot_run(
    program: Program, identity: Identity, command: str, status: int
) -> None:
    """The status is that of env(1) for the same command."""
    port = free_ports()
    ran = run(program, identity, "-q", "-t", f"{port}:80", "--", command)
    check(ran, says=command, status=status)
    assert can_bind("127.0.0.1", port)
    bare = subprocess.run(["/usr/bin/env", command], capture_output=True, check=False)
    assert bare.returncode == status


@pytest.mark.parametrize("words", [[], ["--"]])
def test_without_a_command_and_a_terminal_no_shell_is_run(
    program: Program, identity: Identity, words: list[str]
) -> None:
    """As in a script, where a variable that was to be the PID is empty: it would serve nobody."""
    port = free_ports()
    ran = run(program, identity, "-t", f"{port}:80", *words, given="exit 3\n")
    check(ran, says="neither COMMAND nor PID", hints="COMMAND or PID after the options")
    assert can_bind("127.0.0.1", port)


# --- ports ---


def test_a_port_in_use_on_the_host(
    program: Program, identity: Identity, namespace: Namespace, user_directory: Path
) -> None:
    """In the middle of a range, and after another option's ports: all of them are given back."""
    first, file = free_ports(6), user_directory / "pid"
    with socket.create_server(("127.0.0.1", first + 3)):
        ran = run(
            program, identity, "-P", str(file), "-t", f"127.0.0.1/{first + 5}",
            "-t", f"127.0.0.1/{first}-{first + 4}", str(namespace.pid),
        )  # fmt: skip
        check(ran, says=str(first + 3))
        free = [number for number in range(6) if can_bind("127.0.0.1", first + number)]
    assert free == [0, 1, 2, 4, 5]
    assert not file.exists()


def test_a_port_in_use_in_the_namespace(
    program: Program, identity: Identity, namespace: Namespace, user_directory: Path
) -> None:
    first, file = free_ports(), user_directory / "pid"
    with namespace.socket(socket.AF_INET) as taken:
        taken.bind(("127.0.0.1", 83))
        taken.listen()
        ran = run(
            program, identity, "-P", str(file), "-t", f"127.0.0.1/{first}",
            "-T", "127.0.0.1/80-84", str(namespace.pid),
        )  # fmt: skip
        check(ran, says="83")
    assert can_bind("127.0.0.1", first)
    assert not file.exists()
    with namespace.socket(socket.AF_INET) as inside:
        inside.bind(("127.0.0.1", 80))
        inside.listen()


def test_the_same_port_twice(program: Program, identity: Identity, namespace: Namespace) -> None:
    port = free_ports()
    spec = f"127.0.0.1/{port}"
    check(run(program, identity, "-t", f"{spec}:80", "-t", f"{spec}:81", str(namespace.pid)))
    assert can_bind("127.0.0.1", port)


def test_an_address_that_is_not_here(
    program: Program, identity: Identity, namespace: Namespace
) -> None:
    spec = f"192.0.2.1/{free_ports()}"
    check(run(program, identity, "-t", spec, str(namespace.pid)), says="192.0.2.1")


def test_an_interface_that_is_not_here(
    program: Program, identity: Identity, namespace: Namespace
) -> None:
    spec = f"%nosuch0/{free_ports()}"
    check(run(program, identity, "-t", spec, str(namespace.pid)), says="nosuch0")


def test_a_privileged_port_names_the_switch(program: Program, user: Identity) -> None:
    start = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if start <= 81:
        pytest.skip(f"ordinary users may bind ports from {start} here")
    ran = run(program, user, "-t", "127.0.0.1/81", "--", "true")
    check(ran, says="81", hints="net.ipv4.ip_unprivileged_port_start")


# --- namespaces ---


def _dead_pid() -> int:
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def test_missing_namespaces(program: Program, identity: Identity, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    port = free_ports()
    where: list[list[str]] = [
        [str(_dead_pid())],
        ["--netns", "no-such-name"],
        ["--netns", "../../etc/passwd"],
        ["--netns", "/nonexistent"],
        ["--netns", "/etc/passwd"],
        ["--netns", "/"],
        ["--netns", "/proc/self/ns/user"],
        ["--netns", "/proc/self/ns/net", "--userns", "/nonexistent"],
        ["--netns", "/proc/self/ns/net", "--userns", "/proc/self/ns/net"],
        ["--netns", str(plain)],
    ]
    for words in where:
        check(run(program, identity, "-t", f"127.0.0.1/{port}", *words))
        assert can_bind("127.0.0.1", port)


def test_a_process_without_namespaces_of_its_own(program: Program, identity: Identity) -> None:
    """Host and target would be the same, and each connection would come back to its listener."""
    check(run(program, identity, "-t", f"127.0.0.1/{free_ports()}", str(os.getpid())))


@pytest.mark.root
def test_somebody_elses_namespace(program: Program, user: Identity) -> None:
    with Namespace(Identity("root")) as namespace:
        port = free_ports()
        check(run(program, user, "-t", f"127.0.0.1/{port}", str(namespace.pid)))
        check(run(program, user, "-t", f"127.0.0.1/{port}", "--netns", namespace.net_path))
        assert can_bind("127.0.0.1", port)


# --- means ---


@pytest.mark.parametrize("number", [8, 12, 16, 24])
def test_too_few_descriptors(
    program: Program, identity: Identity, namespace: Namespace, number: int
) -> None:
    """Either it says so, or it works; with 16 or fewer it can't."""
    port = free_ports()
    ran = run(
        program, identity, "-t", f"127.0.0.1/{port}:80", str(namespace.pid),
        descriptors=number,
    )  # fmt: skip
    if ran.returncode or number <= 16:
        check(ran)
        assert can_bind("127.0.0.1", port)
    else:
        namespace.kill()


def test_fewer_descriptors_than_listeners(
    program: Program, identity: Identity, namespace: Namespace
) -> None:
    first = free_ports(200)
    ran = run(
        program, identity, "-t", f"127.0.0.1/{first}-{first + 199}", str(namespace.pid),
        descriptors=100,
    )  # fmt: skip
    check(ran)
    assert all(can_bind("127.0.0.1", port) for port in range(first, first + 200))


def test_a_closed_standard_error_is_no_traceback(program: Program) -> None:
    """Nothing to write to: the status still tells."""
    argv, environment = program.argv(ME)
    ran = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *argv, "-t", "nonsense"], env=environment, cwd="/",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=20, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (1, b"")
