# SPDX-License-Identifier: GPL-2.0-or-later
"""The command: every form of every policy, from any directory, and what it says is wrong."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hardsplice import policy as command
from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.model.roles import POLICIES
from hardsplice.sandbox.policy.files import load_policy
from hardsplice.sandbox.seccomp import compile_policy, native_arch
from tests.policy import oracle
from tests.policy.whose import CHANGING

everything = pytest.mark.parametrize(
    ("role", "arch"), list(itertools.product(oracle.ROLES, oracle.ARCHES))
)

# The OCI runtime specification, config-linux.md.
OCI_ARCHITECTURES = {
    "x86_64": "SCMP_ARCH_X86_64",
    "i686": "SCMP_ARCH_X86",
    "arm64": "SCMP_ARCH_AARCH64",
    "armhf": "SCMP_ARCH_ARM",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "s390x": "SCMP_ARCH_S390X",
    "riscv64": "SCMP_ARCH_RISCV64",
}
OCI_OPERATORS = {"SCMP_CMP_EQ": "==", "SCMP_CMP_GE": ">=", "SCMP_CMP_LT": "<"}
# systemd.exec(5), SystemCallArchitectures=, as ConditionArchitecture= names them
SYSTEMD_ARCHITECTURES = {
    "x86_64": "x86-64",
    "i686": "x86",
    "arm64": "arm64",
    "armhf": "arm",
    "ppc64le": "ppc64-le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}


def export(capsys: pytest.CaptureFixture[str], role: str, arch: str, form: str) -> str:
    assert command.main(["export", "--role", role, "--arch", arch, "--format", form]) == 0
    return capsys.readouterr().out


# --- OCI ------------------------------------------------------------------------------------------


def oci_ways(entries: list[dict[str, Any]], bits: int) -> dict[str, set[frozenset[oracle.Term]]]:
    """What a linux.seccomp object allows, in the oracle's terms."""
    ways: dict[str, set[frozenset[oracle.Term]]] = {}
    everything = 2**bits - 1
    for entry in entries:
        terms = []
        for argument in entry.get("args", []):
            index, value = argument["index"], argument["value"]
            if argument["op"] in OCI_OPERATORS:
                term = oracle.Term(index, everything, value, OCI_OPERATORS[argument["op"]])
            else:
                term = oracle.Term(index, value & everything, argument["valueTwo"])
            terms.append(term)
        for name in entry["names"]:
            ways.setdefault(name, set()).add(frozenset(terms))
    return ways


@everything
def test_an_oci_export_has_the_form_of_the_specification(
    capsys: pytest.CaptureFixture[str], role: str, arch: str
) -> None:
    seccomp = json.loads(export(capsys, role, arch, "oci"))
    assert set(seccomp) == {"defaultAction", "architectures", "syscalls"}
    assert seccomp["defaultAction"] == "SCMP_ACT_KILL_PROCESS"
    assert seccomp["architectures"] == [OCI_ARCHITECTURES[arch]]
    for entry in seccomp["syscalls"]:
        assert {"names", "action"} <= set(entry) <= {"names", "action", "args"}
        assert entry["action"] == "SCMP_ACT_ALLOW"
        assert entry["names"]
        assert all(name in oracle.numbers(arch) for name in entry["names"])
        for argument in entry.get("args", []):
            keys = {"index", "value", "op"}
            if argument["op"] == "SCMP_CMP_MASKED_EQ":
                keys |= {"valueTwo"}
            else:
                assert argument["op"] in OCI_OPERATORS
            assert set(argument) == keys
            assert 0 <= argument["index"] <= 5
            assert 0 <= argument["value"] < 2**64


@everything
def test_an_oci_export_allows_what_the_policy_allows(
    capsys: pytest.CaptureFixture[str], role: str, arch: str
) -> None:
    """But for what it has no words for: of a descriptor it compares all bits, not the low 32; of
    two looks at one argument there is the last; a call that the monitor serves is left out.
    """
    seccomp = json.loads(export(capsys, role, arch, "oci"))
    everything = 2 ** oracle.BITS[arch] - 1
    asked = oracle.notified(role, arch)
    expected: dict[str, set[frozenset[oracle.Term]]] = {}
    for call, ways in oracle.allowed(role, arch).items():
        if oracle.numbers(arch)[call] not in asked:
            wide = {
                frozenset(
                    replace(term, mask=everything if term.operator != "==" else term.mask)
                    for term in {term.position: term for term in way}.values()
                )
                for way in ways
            }
            expected[call] = {frozenset()} if frozenset() in wide else wide
    assert oci_ways(seccomp["syscalls"], oracle.BITS[arch]) == expected
    assert bool(asked) == (role in CHANGING)


@pytest.mark.parametrize("arch", oracle.ARCHES)
def test_what_an_oci_export_can_not_say_is_said_beside_it(
    capsys: pytest.CaptureFixture[str], arch: str
) -> None:
    for role in ("relay", "monitor"):
        command.main(["export", "--role", role, "--arch", arch, "--format", "oci"])
        lines = capsys.readouterr().err.splitlines()
        assert all(line.startswith("hardsplice: ") for line in lines)
        assert "all 64 bits of a descriptor" in lines[0]
        has_door = arch in ("i686", "ppc64le", "s390x")
        assert ["socketcall(2)" in line for line in lines[1:]] == [True] * has_door


@pytest.mark.parametrize("form", ["text", "bpf", "systemd"])
def test_the_other_forms_have_nothing_to_be_said_beside_them(
    capfdbinary: pytest.CaptureFixture[bytes], form: str
) -> None:
    command.main(["export", "--role", "relay", "--arch", "arm64", "--format", form])
    assert capfdbinary.readouterr().err == b""


# --- for so many listeners ---


@pytest.mark.parametrize(("role", "call"), [("relay", "close"), ("monitor-ports", "listen")])
@pytest.mark.parametrize("arch", ["x86_64", "s390x"])
def test_an_export_for_some_listeners_begins_behind_them(
    capsys: pytest.CaptureFixture[str], role: str, call: str, arch: str
) -> None:
    for listeners in (0, 7, 1 << 20):
        where = ["--role", role, "--arch", arch, "--listeners", str(listeners)]
        assert command.main(["export", *where, "--format", "oci"]) == 0
        (entry,) = (
            entry
            for entry in json.loads(capsys.readouterr().out)["syscalls"]
            if entry["names"] == [call]
        )
        assert entry["args"][0] == {"index": 0, "value": 10 + listeners, "op": "SCMP_CMP_GE"}
        assert command.main(["show", *where]) == 0
        assert f"FLOWS = {10 + listeners}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arch", "listeners", "where"),
    [
        ("arm64", 32768, 0x200000),
        ("arm64", 32769, 0x70000000),
        ("riscv64", 1, 0x70000000),
        ("armhf", 1, 0x3FC00000),
    ],
)
def test_an_export_for_some_listeners_has_the_book_where_set_up_puts_it(
    capsys: pytest.CaptureFixture[str], arch: str, listeners: int, where: int
) -> None:
    words = ["--role", "relay", "--arch", arch, "--listeners", str(listeners)]
    assert command.main(["show", *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"BOOK = {where:#x}" in shown
    assert f"LINGER = {where - 0x40000:#x}" in shown


@pytest.mark.parametrize("value", ["-1", "x", "", "1048577", "1.5", "\N{ARABIC-INDIC DIGIT TWO}"])
def test_a_number_of_listeners_that_is_none_is_one_error(
    capsys: pytest.CaptureFixture[str], value: str
) -> None:
    assert command.main(["export", "--role", "relay", f"--listeners={value}"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("hardsplice: cannot use --listeners ")


# --- systemd, text, BPF ---------------------------------------------------------------------------


@everything
def test_a_systemd_export_names_the_calls(
    capsys: pytest.CaptureFixture[str], role: str, arch: str
) -> None:
    lines = export(capsys, role, arch, "systemd").splitlines()
    settings = [line.partition("=") for line in lines if not line.startswith("#")]
    assert settings[0] == ("SystemCallArchitectures", "=", SYSTEMD_ARCHITECTURES[arch])
    assert {key for key, _, _ in settings[1:]} == {"SystemCallFilter"}
    names = [name for _, _, value in settings[1:] for name in value.split()]
    assert sorted(names) == sorted(oracle.allowed(role, arch))
    assert any("can't check arguments" in line for line in lines)


@everything
def test_a_text_export_has_a_line_for_every_way(
    capsys: pytest.CaptureFixture[str], role: str, arch: str
) -> None:
    rows = export(capsys, role, arch, "text").split("\n\n", 1)[1].splitlines()
    assert rows[0].split() == ["CALL", "ARGUMENTS", "WHY"]
    policy = load_policy(role)
    assert len(rows) - 1 == sum(len(rule.when) or 1 for rule in policy.rules_for(arch))


@everything
def test_show_gives_every_rule_its_reason(
    capsys: pytest.CaptureFixture[str], role: str, arch: str
) -> None:
    assert command.main(["show", "--role", role, "--arch", arch]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for rule in load_policy(role).rules_for(arch):
        assert f"why {rule.why}" in text
        assert f"where {rule.where[0]}" in text
        assert f"risk {rule.risk}" in text or rule.risk is None


def run(
    *arguments: str, cwd: Path, package: Path = oracle.ROOT
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "hardsplice.policy", *arguments],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(package)},
        capture_output=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize("arch", ["armhf", "s390x"])
def test_a_bpf_export_is_the_filter_byte_for_byte(tmp_path: Path, arch: str) -> None:
    got = run("export", "--role", "relay", "--arch", arch, "--format", "bpf", cwd=tmp_path)
    assert (got.returncode, got.stderr) == (0, b"")
    assert got.stdout == compile_policy(load_policy("relay"), arch)


def test_an_installed_package_has_its_policies_inside(tmp_path: Path) -> None:
    installed = tmp_path / "site" / "hardsplice"
    shutil.copytree(oracle.ROOT / "hardsplice", installed)
    shutil.copytree(oracle.POLICY, installed / "policies")
    got = run("show", "--role", "relay", cwd=tmp_path, package=installed.parent)
    assert (got.returncode, got.stderr) == (0, b"")
    (installed / "policies" / "relay.toml").unlink()
    got = run("show", "--role", "relay", cwd=tmp_path, package=installed.parent)
    missing = f"{installed}/policies/relay.toml: No such file or directory"
    assert got.stderr.decode() == f"hardsplice: cannot read the policy {missing}\n"


def test_the_default_is_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["show", "--role", "init"]) == 0
    assert capsys.readouterr().out.startswith(f"# init on {native_arch()}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required"),
        (["show"], "arguments are required: --role"),
        (["show", "--role", "nobody"], "invalid choice: 'nobody'"),
        (["show", "--role", "relay", "--arch", "mips"], "invalid choice: 'mips'"),
        (["export", "--role", "relay", "--format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_a_wrong_command_line_is_one_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert command.main(arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("hardsplice: cannot understand the command line: ")
    assert message in shown.err


# --- check ----------------------------------------------------------------------------------------


def test_check_says_what_was_checked(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["check"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(POLICIES)
    assert all(f"on {len(ARCHITECTURES)} architectures" in line for line in lines)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "hardsplice.kernel.socketcalls.abort",
            "hardsplice.kernel.socketcalls.abrt",
            "there is no hardsplice.kernel.socketcalls.abrt",
        ),
        ("SO_LINGER", "SO_LNGER", "unknown constant SO_LNGER"),
        (
            'call = "shutdown"',
            'call = "shutdwn"',
            "shutdwn is not in hardsplice/kernel/syscalls.py",
        ),
        ('call = "splice"', 'call = "splyce"', "splyce: no system call"),
        ("fd >= FLOWS and how", "fd > FLOWS and how", "can't read 'fd > FLOWS'"),
        ("addr & BOOK_SLOTS == BOOK", "addr & BOOK_SLOT == BOOK", "unknown constant BOOK_SLOT"),
    ],
)
def test_check_finds_a_mistake(tmp_path: Path, old: str, new: str, message: str) -> None:
    shutil.copytree(oracle.ROOT / "hardsplice", tmp_path / "hardsplice")
    shutil.copytree(oracle.POLICY, tmp_path / "policy")
    path = tmp_path / "policy" / "relay.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    got = run("check", "--role", "relay", cwd=tmp_path, package=tmp_path)
    assert got.returncode == 1
    assert message in got.stderr.decode()


def test_check_finds_a_file_that_nobody_uses(tmp_path: Path) -> None:
    shutil.copytree(oracle.ROOT / "hardsplice", tmp_path / "hardsplice")
    shutil.copytree(oracle.POLICY, tmp_path / "policy")
    shutil.copy(tmp_path / "policy" / "init.toml", tmp_path / "policy" / "spare.toml")
    got = run("check", cwd=tmp_path, package=tmp_path)
    assert got.returncode == 1
    assert "hardsplice: spare.toml: neither a role nor included by one" in got.stderr.decode()
