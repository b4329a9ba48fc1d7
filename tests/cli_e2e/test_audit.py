# SPDX-License-Identifier: GPL-2.0-or-later
"""--audit shows each process as /proc has it, once all is locked down."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardsplice.model.roles import ROLES
from tests.support.netns import Identity, Namespace
from tests.support.product import Instance, Program, free_ports, run
from tests.support.stream import eventually

Launch = Callable[..., Instance]
pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_both_directions_in_the_background(
    namespace: Namespace, identity: Identity, program: Program
) -> None:
    """The numbers are compared with /proc, read by this test while all of it runs."""
    port = free_ports()
    pid_file = Path("/tmp") / f"hardsplice-test-audit-{os.getpid()}"
    ports = ("-t", f"127.0.0.1/{port}:80", "-T", "127.0.0.1/9090")
    done = run(program, identity, "--audit=json", "-P", str(pid_file), *ports, str(namespace.pid))
    try:
        assert done.returncode == 0, done.stderr
        seen: dict[str, Any] = json.loads(done.stdout)
        host = int(pid_file.read_text(encoding="ascii"))
        by_name = {process["comm"]: process for process in seen["processes"]}
        assert set(by_name) == {"hs-host", "hs-namespace", "hs-relay-in", "hs-relay-out"}
        assert by_name["hs-host"]["pid"] == host
        for process in seen["processes"]:
            status = status_of(process["pid"])
            assert process["seccomp"] == int(status["Seccomp"]) == 2
            assert process["no_new_privs"] == int(status["NoNewPrivs"]) == 1
            for name, bits in process["capabilities"].items():
                assert bits == int(status[f"Cap{name}"], 16) == 0, (process["comm"], name)
            assert process["may"] == ROLES[process["comm"]].may
            assert process["role"] == process["comm"]
        if identity.is_root:
            inbound, outbound = by_name["hs-relay-in"], by_name["hs-relay-out"]
            assert inbound["namespaces"]["net"] != outbound["namespaces"]["net"]
            assert outbound["namespaces"]["net"] == os.stat("/proc/self/ns/net").st_ino
        else:
            assert all(process["descriptors"] is None for process in seen["processes"])
    finally:
        if pid_file.exists():
            host = int(pid_file.read_text(encoding="ascii"))
            pidfd = os.pidfd_open(host)
            os.kill(host, 15)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
            pid_file.unlink()


def test_with_a_command_it_goes_to_standard_error(identity: Identity, launch: Launch) -> None:
    """Standard output is COMMAND's; PID 1 has locked itself down before it is looked at."""
    port = free_ports()
    kept, ours = os.pipe()
    spec = f"127.0.0.1/{port}:80"
    instance = launch(identity, "--audit", "-t", spec, "--", "cat", stdin=kept).wait_ready()
    os.close(kept)
    eventually(lambda: "in force" in instance.messages(), "the audit is printed")
    rows = [line.split() for line in instance.messages().splitlines() if "hs-init" in line]
    capabilities = next(row for row in rows if row[1] == "0")
    assert capabilities[1:6] == ["0", "1", "1", "0", "0"], "CAP_KILL, as its policy says"
    assert capabilities[6:8] == ["1", "2"], "no new privileges, and a filter"
    os.close(ours)
    assert instance.wait() == 0


IMPOSTORS = """
import ctypes, os, signal, sys, time
for name in (b"hs-relay-in", b"hs-host", b"\\xff\\x1b[2J", b"\\xe2\\x80\\xae"):
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, name)
        os.write(1, b".")
        time.sleep(100)
        os._exit(0)
ended = os.fork() or os._exit(0)  # a zombie
os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
os.write(1, b".")
os.read(0, 1)
"""


def test_command_s_processes_are_shown_as_what_they_are(
    program: Program, identity: Identity, user_directory: Path
) -> None:
    """Whatever they call themselves; by hardsplicectl as by --audit."""
    socket_path = user_directory / "control"
    argv, environment = program.argv(identity)
    ask = [*argv[: argv.index("-m") + 1], "hardsplice.ctl", "--socket", str(socket_path), "audit"]
    process = subprocess.Popen(
        [*argv, "--control", str(socket_path), "-t", f"127.0.0.1/{free_ports()}:80",
         "/usr/bin/python3", "-c", IMPOSTORS],
        env=environment, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        for _ in range(5):
            assert process.stdout.read(1) == b"."
        said = {
            form: subprocess.run(
                [*ask, *form],
                env=environment,
                cwd="/",
                capture_output=True,
                check=False,
                timeout=20,
            )
            for form in ((), ("--json",))
        }
        process.communicate(b"\n", timeout=20)
    socket_path.unlink()
    assert [(one.returncode, one.stderr) for one in said.values()] == [(0, b"")] * 2
    table = said[()].stdout.decode()
    assert all(line.isprintable() for line in table.split("\n"))
    assert table.count("'hs-relay-in'") == table.count("'hs-host'") == 4
    found = json.loads(said["--json",].stdout)["processes"]
    ours = sorted(one["comm"] for one in found if one["role"])
    assert ours == ["hs-guard", "hs-host", "hs-init", "hs-namespace", "hs-relay-in", "hs-relay-out"]
    assert sum(one["comm"] in ROLES for one in found) == len(ours) + 2
    assert all(one["seccomp"] == 2 for one in found if one["role"])


# A /proc of their own for who looks: in a mount namespace that ends with them.
_WITH_PROC = 'mount -t proc -o "$0" proc /proc && exec "$@"'


def under(options: str, argv: list[str]) -> list[str]:
    return ["unshare", "-m", "sh", "-c", _WITH_PROC, options, *argv]


def hides(option: str) -> bool:
    return subprocess.run(under(option, ["true"]), check=False, capture_output=True).returncode == 0


@pytest.mark.root
@pytest.mark.parametrize("option", ["hidepid=1", "hidepid=2", "hidepid=4"])
def test_a_proc_that_hides_it_is_said_in_one_true_line(
    user: Identity, program: Program, option: str
) -> None:
    """By --audit and by hardsplicectl, both forms; and root sees it there all the same."""
    if not hides(option):
        pytest.skip(f"this kernel's /proc knows no {option}")
    folder = Path(f"/tmp/hardsplice-test-audit-{os.getpid()}")
    folder.mkdir()
    os.chown(folder, user.uid or 0, user.uid or 0)
    argv, environment = program.argv(user)
    control = str(folder / "control")
    told, ready = os.pipe()
    words = ["-q", "--audit", "--ready-fd", str(ready), "--control", control, "--", "cat"]
    process = subprocess.Popen(
        under(option, [*argv, *words]), env=environment, cwd="/", pass_fds=[ready],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(ready)
    try:
        with os.fdopen(told, "rb") as reader:
            assert reader.readline() == b"\n"
        assert process.stderr is not None
        said = process.stderr.readline()
        expected = r"cannot audit process \d+: /proc does not show it to this user \(hidepid=\w+\)"
        assert re.fullmatch(rf"hardsplice: {expected}; root may look\n", said)
        ctl = argv[:-1] + (["hardsplice.ctl"] if "-m" in argv else [ctl_beside(argv[-1])])
        for form in ([], ["--json"]):
            asked = [*ctl, "--socket", control, *form, "audit"]
            done = subprocess.run(
                under(option, asked), env=environment, cwd="/", check=False, capture_output=True,
                text=True,
            )  # fmt: skip
            assert (done.returncode, done.stdout) == (1, "")
            assert re.fullmatch(rf"hardsplicectl: {expected}; root may look\n", done.stderr)
        root, environment = program.argv(Identity("root"))
        ctl = root[:-1] + (["hardsplice.ctl"] if "-m" in root else [ctl_beside(root[-1])])
        done = subprocess.run(
            under(option, [*ctl, "--socket", control, "audit"]), env=environment, cwd="/",
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert "hs-host" in done.stdout
    finally:
        process.communicate("")
        shutil.rmtree(folder)


def ctl_beside(command: str) -> str:
    return str(Path(command).with_name("hardsplicectl"))
