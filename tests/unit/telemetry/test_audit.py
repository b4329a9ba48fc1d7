# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom an audit calls ours, and what it makes of whatever stands in /proc."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from hardsplice.model.errors import HardspliceError
from hardsplice.telemetry import audit

STATUS = (
    b"Name:\t%b\nUmask:\t0022\nState:\tS (sleeping)\nUid:\t0\t%d\t0\t0\nGid:\t0\t7\t0\t0\n"
    b"CapInh:\t0\nCapPrm:\t0\nCapEff:\t0\nCapBnd:\t0\nCapAmb:\t0\nNoNewPrivs:\t1\nSeccomp:\t2\n"
)
HOST = 100
THIS = os.getpid()  # which is there, whatever the /proc below shows


class Proc:
    """A /proc of our own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / str(os.getpid()) / "ns").mkdir(parents=True)
        (root / "self").symlink_to(str(os.getpid()))
        (root / "self" / "mountinfo").touch()
        for name in audit.NAMESPACES:
            (root / "self" / "ns" / name).touch()
        (root / "meminfo").touch()

    def add(
        self, pid: int, parent: int, comm: bytes, *, filters: bool = True, zombie: bool = False
    ) -> Path:
        folder = self.root / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "stat").write_bytes(b"%d (%b) S %d %b" % (pid, comm, parent, b"1 " * 40))
        spelt = comm.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")  # as proc_task_name() does
        status = STATUS % (spelt, pid) + b"Seccomp_filters:\t1\n" * filters
        (folder / "status").write_bytes(status)
        if not zombie:
            (folder / "ns").mkdir()
            for name in audit.NAMESPACES:
                (folder / "ns" / name).touch()
        return folder


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proc:
    monkeypatch.setattr(audit, "PROC", tmp_path)
    monkeypatch.setattr(os, "getpid", lambda: 99)  # and none of those that are added
    made = Proc(tmp_path)
    made.add(1, 0, b"systemd")
    made.add(HOST, 1, b"hs-host")
    return made


def roles() -> Mapping[int, str | None]:
    return {process.pid: process.role for process in audit.read_tree(HOST)}


def test_a_name_counts_only_below_a_process_of_ours(proc: Proc) -> None:
    proc.add(101, HOST, b"hs-namespace")
    proc.add(102, 101, b"hs-relay-in")
    proc.add(103, HOST, b"hs-relay-out")
    proc.add(105, HOST, b"hs-guard")
    proc.add(104, 105, b"hs-init")
    # Whatever COMMAND and its descendants call themselves.
    proc.add(110, 104, b"hs-relay-in")
    proc.add(111, 104, b"hs-host")
    proc.add(112, 111, b"hs-relay-out")
    proc.add(113, 111, b"hs-namespace")
    proc.add(114, 113, b"hs-relay-in")
    proc.add(115, 104, b"sh")
    # Where no well-behaved one would be.
    proc.add(120, HOST, b"hs-relay-in")
    proc.add(121, 101, b"hs-relay-out")
    proc.add(122, 102, b"hs-relay-in")
    proc.add(123, HOST, b"hs-host")
    proc.add(125, HOST, b"hs-init")
    proc.add(126, 104, b"hs-guard")
    proc.add(124, HOST, b"anything")
    proc.add(130, 1, b"hs-host")  # another instance
    assert roles() == {
        HOST: "hs-host", 101: "hs-namespace", 102: "hs-relay-in", 103: "hs-relay-out",
        104: "hs-init", 105: "hs-guard",
        **dict.fromkeys((110, 111, 112, 113, 114, 115, 120, 121, 122, 123, 124, 125, 126)),
    }  # fmt: skip


def test_nobody_is_ours_below_a_process_that_is_no_host_monitor(proc: Proc) -> None:
    proc.add(200, 1, b"hs-namespace")
    proc.add(201, 200, b"hs-relay-in")
    assert [process.role for process in audit.read_tree(200)] == [None, None]


def test_a_stranger_s_name_stands_in_quotes_and_he_may_what_his_user_may(proc: Proc) -> None:
    proc.add(105, HOST, b"hs-guard")
    proc.add(104, 105, b"hs-init")
    proc.add(110, 104, b"hs-relay-in")
    text = audit.report(HOST, [], "table")
    assert text.count("'hs-relay-in'") == 4, "in each table"
    assert text.replace("'hs-relay-in'", "").count("hs-relay-in") == 0
    assert re.search("'hs-relay-in' +whatever its user may: it is not ours", text)
    named = {one["pid"]: one for one in json.loads(audit.report(HOST, [], "json"))["processes"]}
    assert named[110]["role"] is None
    assert named[110]["may"] == "whatever its user may: it is not ours"


NAMES = (
    b"\xff\xfe",
    b"\x1b[2J\x1b[H",
    b"a\nhs-host",
    b"\xe2\x80\xaeabc",
    b") S 1 (",
    b"x\x0cUid:\t0",
    b"\xc2\x85Seccomp:\t2",
    b"\xe2\x80\xa8",
    b"",
    b" ",
    b"Name:\t",
)


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_no_name_breaks_it_or_gets_raw_onto_a_terminal(proc: Proc, name: bytes) -> None:
    proc.add(110, HOST, name)
    text = audit.report(HOST, ["\x1b[31m\n"], "table")
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text.split("\n")) == len(audit.report(HOST, ["plain"], "table").split("\n"))
    found = json.loads(audit.report(HOST, ["\x1b[31m\n"], "json"))
    assert [one["pid"] for one in found["processes"]] == [HOST, 110]
    assert found["processes"][1]["uid"] == 110, "what follows the name is not its own"
    assert found["processes"][1]["seccomp"] == 2
    assert found["lacking"] == ["\\x1b[31m\\n"]


@pytest.mark.parametrize(
    "name", ["/dev/shm/\x1b[2J", "/dev/\u202e", "\x1b:[1]", "anon_inode:[\x1b]"]
)
def test_nor_does_what_a_descriptor_leads_to(proc: Proc, name: str) -> None:
    (proc.add(110, HOST, b"x") / "fd" / "0").symlink_to(name)
    assert all(line.isprintable() for line in audit.report(HOST, [], "table").split("\n"))


def test_of_many_kinds_of_descriptors_the_rest_is_put_together(proc: Proc) -> None:
    folder = proc.add(110, HOST, b"x") / "fd"
    for number in range(500):
        (folder / str(number)).symlink_to(f"/dev/shm/{number}")
    found = audit.read_tree(HOST)[1].descriptors
    assert found is not None
    assert len(found) == audit.KINDS_SHOWN + 1
    assert found["other"] == 500 - audit.KINDS_SHOWN


def test_a_deep_descendant_still_has_a_name(proc: Proc) -> None:
    for depth in range(60):
        proc.add(200 + depth, 199 + depth if depth else HOST, b"deep%d" % depth)
    names = [process.label for process in audit.read_tree(HOST)]
    assert names[-1].strip() == "'deep59'"


@pytest.mark.parametrize("gone", ["status", "stat", "ns", "fd"])
def test_who_ends_while_it_looks_is_left_out(proc: Proc, gone: str) -> None:
    """At whatever moment. What lived below is somebody else's child from then on."""
    folder = proc.add(110, HOST, b"ends")
    proc.add(111, HOST, b"stays")
    (folder / gone).rename(folder / "was")
    found = [process.comm for process in audit.read_tree(HOST)]
    assert found in (["hs-host", "stays"], ["hs-host", "ends", "stays"])
    audit.report(HOST, [], "table")


def test_a_zombie_is_shown(proc: Proc) -> None:
    proc.add(110, HOST, b"zombie", zombie=True)
    assert audit.read_tree(HOST)[1].namespaces is None
    audit.report(HOST, [], "table")


def test_a_kernel_that_does_not_count_filters(proc: Proc) -> None:
    """Before Linux 5.9."""
    proc.add(110, HOST, b"hs-relay-out", filters=False)
    assert audit.read_tree(HOST)[1].filters is None
    assert "?" in audit.report(HOST, [], "table")


@pytest.mark.parametrize("pid", [0, 99999])
def test_nobody_to_be_audited_is_an_error(proc: Proc, pid: int) -> None:
    with pytest.raises(FileNotFoundError):
        audit.read_tree(pid)


# --- what it says where it can't look ---


def reason(pid: int = HOST) -> str:
    with pytest.raises(HardspliceError) as raised:
        audit.report(pid, [], "table")
    assert raised.value.object == f"process {pid}"
    return raised.value.reason


def test_one_that_has_ended_has_ended(proc: Proc) -> None:
    beyond = 1 << 22  # the first number that no process has: PID_MAX_LIMIT
    assert reason(beyond) == "it has ended already"


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("rw", ""),
        ("rw,hidepid=2", " (hidepid=2)"),
        ("rw,gid=5,hidepid=invisible", " (hidepid=invisible)"),
    ],
)
def test_one_that_is_hidden_is_hidden(
    proc: Proc, monkeypatch: pytest.MonkeyPatch, options: str, said: str, user: int
) -> None:
    """By an option of the mount that is seen, the last one there, if it is said."""
    line = f"23 28 0:21 / {proc.root} rw shared:12 - proc proc"
    (proc.root / "self" / "mountinfo").write_text(
        f"22 28 0:20 / /sys rw - sysfs sysfs rw\n{line} rw,hidepid=1\n{line} {options}\n"
    )
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert reason(THIS) == (
        f"{proc.root} does not show it to this user{said}" + "; root may look" * (user != 0)
    )


def test_a_proc_that_is_not_ours_is_not_looked_at(proc: Proc) -> None:
    """There the number may be anybody's."""
    (proc.root / "self").unlink()
    assert reason() == f"{proc.root} is not mounted for this PID namespace"
    (proc.root / "self").symlink_to("77")
    assert reason() == f"{proc.root} is that of another PID namespace"
