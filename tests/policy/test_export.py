# SPDX-License-Identifier: GPL-2.0-or-later
"""The command: every form of every policy, from any directory, and what it says is wrong."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hardsplice import policy as command
from hardsplice.seccomp import ROLES, compile_policy, load_policy, native_arch
from hardsplice.syscalls import ARCHITECTURES
from tests.policy import oracle

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
    for entry in entries:
        terms = []
        for argument in entry.get("args", []):
            if argument["op"] == "SCMP_CMP_EQ":
                term = oracle.Term(argument["index"], 2**bits - 1, argument["value"])
            else:
                term = oracle.Term(argument["index"], argument["value"], argument["valueTwo"])
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
                assert argument["op"] == "SCMP_CMP_EQ"
            assert set(argument) == keys
            assert 0 <= argument["index"] <= 5
            assert 0 <= argument["value"] < 2**64


@everything
def test_an_oci_export_allows_what_the_policy_allows(
    capsys: pytest.CaptureFixture[str], role: str, arch: str
) -> None:
    seccomp = json.loads(export(capsys, role, arch, "oci"))
    expected: dict[str, set[frozenset[oracle.Term]]] = {
        call: {frozenset()} if () in ways else {frozenset(way) for way in ways}
        for call, ways in oracle.allowed(role, arch).items()
    }
    assert oci_ways(seccomp["syscalls"], oracle.BITS[arch]) == expected


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
    assert [line.split(":")[0] for line in lines] == list(ROLES)
    assert all(f"on {len(ARCHITECTURES)} architectures" in line for line in lines)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hardsplice.linux.abort", "hardsplice.linux.abrt", "there is no hardsplice.linux.abrt"),
        ("SO_LINGER", "SO_LNGER", "unknown constant SO_LNGER"),
        ('call = "splice"', 'call = "tee"', "tee is not in hardsplice/syscalls.py"),
        (
            'call = "shutdown"\nwhen = "how == SHUT_WR"',
            'call = "shutdwn"',
            "shutdwn: no system call",
        ),
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
