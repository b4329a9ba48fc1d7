# SPDX-License-Identifier: GPL-2.0-or-later
"""The shells' completions against the parser: the same options, and values where it takes values.

bash's is run; zsh's and fish's are run where those shells are installed, and in any case read.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hardsplice.app import option_table
from tests.integration.bash_completion import FOLDER, offered

if TYPE_CHECKING:
    from collections.abc import Iterable

BASH = FOLDER / "hardsplice.bash"
ZSH = FOLDER / "_hardsplice"
FISH = FOLDER / "hardsplice.fish"

OPTIONS = {name for option in option_table.OPTIONS for name in option.names}
WITH_VALUE = {name for option in option_table.OPTIONS if option.value for name in option.names}


def shell(name: str, *arguments: str, cwd: Path | None = None) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run(
        [path, *arguments],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# bash


complete = partial(offered, "hardsplice")


def test_bash_offers_every_option() -> None:
    found = complete("-")
    assert sorted(found) == sorted(OPTIONS)


def test_bash_offers_the_long_options_that_fit() -> None:
    assert complete("--net") == ["--netns", "--netns-only"]


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_bash_knows_which_options_take_a_value(name: str) -> None:
    """After a flag the next word may be an option; after the others it is the value."""
    assert (set(complete(name, "-")) >= OPTIONS) == (name not in WITH_VALUE)
    assert set(complete(name, "value", "-")) >= OPTIONS or name not in WITH_VALUE


def test_bash_knows_clusters_of_flags() -> None:
    assert complete("-f4t", "") == ["none", "all", "auto"]
    assert set(complete("-f4t80", "-")) == OPTIONS
    assert set(complete("-f4", "-")) == OPTIONS


def test_bash_completes_values() -> None:
    for name in ("-t", "--tcp-ports", "-T", "--tcp-ns"):
        assert complete(name, "") == ["none", "all", "auto"]
    assert complete("--sandbox", "s") == ["strict"]
    assert complete("--sandbox", "=", "s") == ["strict"]
    assert complete("--sandbox", "=") == ["best-effort", "strict"]
    assert "root" in complete("--runas", "roo")
    assert complete("--log-size", "1") == []
    assert complete("--ready-fd", "1") == []


@pytest.mark.parametrize("name", ["-P", "--pid", "-l", "--log-file", "--userns", "--netns"])
def test_bash_completes_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "some-file").touch()
    assert complete(name, "some-", cwd=tmp_path) == ["some-file"]


def test_bash_completes_processes_and_commands() -> None:
    assert str(os.getpid()) in complete("-f", str(os.getpid()))
    assert "bash" in complete("-t", "80", "bas")
    assert "bash" in complete("--", "bas")


@pytest.mark.parametrize(
    "before", [["cmd"], ["-t", "80", "cmd"], ["--tcp-ns", "=", "80", "cmd"], ["--", "cmd"], ["1"]]
)
def test_bash_offers_no_option_after_the_command(before: list[str], tmp_path: Path) -> None:
    (tmp_path / "some-file").touch()
    assert complete(*before, "-", cwd=tmp_path) == []
    assert complete(*before, "some-", cwd=tmp_path) == ["some-file"]


def test_bash_offers_no_option_after_two_dashes() -> None:
    assert not OPTIONS & set(complete("--", "-"))


# zsh


def zsh_specs(lines: Iterable[str]) -> dict[str, bool]:
    """The options of _arguments' specifications, and whether each takes a value."""
    found = {}
    for line in lines:
        match = re.match(r"(?:\([^)]*\)|\*)*(--?[\w-]+)([+=]?)\[", line)
        if match:
            found[match[1]] = bool(match[2])
    return found


def expanded_braces(line: str) -> list[str]:
    before, brace, rest = line.partition("{")
    if not brace:
        return [line]
    names, _, after = rest.partition("}")
    return [before + name + after for name in names.split(",")]


def test_zsh_has_the_options_of_the_parser() -> None:
    source = ZSH.read_text(encoding="ascii")
    assert source.startswith("#compdef hardsplice\n")
    lines = [line.strip().replace("'", "") for line in source.splitlines()]
    specs = zsh_specs(spec for line in lines for spec in expanded_braces(line))
    assert specs == {name: name in WITH_VALUE for name in OPTIONS}


def test_zsh_itself_reads_the_same_options() -> None:
    code = '_arguments() { print -rl -- "$@" }; source "$1"'
    shown = shell("zsh", "-f", "-c", code, "zsh", str(ZSH))
    assert zsh_specs(shown.splitlines()) == {name: name in WITH_VALUE for name in OPTIONS}


# fish


def test_fish_has_the_options_of_the_parser() -> None:
    found = {}
    for line in FISH.read_text(encoding="ascii").splitlines():
        if line.startswith("$option "):
            names = ["-" + name for name in re.findall(r" -s (\S)", line)]
            names += ["--" + name for name in re.findall(r" -l (\S+)", line)]
            found.update(dict.fromkeys(names, bool(re.search(r" -[xr] ", line))))
    assert found == {name: name in WITH_VALUE for name in OPTIONS}


def test_fish_finds_the_command_with_the_options_of_the_parser() -> None:
    """Its search for COMMAND has a list of its own, in the form of fish's argparse."""
    found = set()
    for line in re.findall(r"^ +set -[al]+ options (.*)$", FISH.read_text(), re.MULTILINE):
        for item in line.split():
            names, equals, _ = item.partition("=")
            short, slash, long = names.rpartition("/")
            found |= {("--" + long, bool(equals))} | (
                {("-" + short, bool(equals))} if slash else set()
            )
    assert found == {(name, name in WITH_VALUE) for name in OPTIONS}


def fish(line: str) -> list[str]:
    code = f"source {FISH}; complete -C '{line}'"
    return [row.split("\t")[0] for row in shell("fish", "--no-config", "-c", code).splitlines()]


def test_fish_itself_offers_every_option_before_the_command_and_none_after() -> None:
    assert {name for name in fish("hardsplice -") if name.startswith("-")} == OPTIONS
    assert not OPTIONS & set(fish("hardsplice -t 80 no-such-command -"))


def test_fish_itself_completes_values_and_commands() -> None:
    assert sorted(fish("hardsplice -t ")) == ["all", "auto", "none"]
    assert fish("hardsplice --sandbox=s") == ["--sandbox=strict"]
    assert "bash" in fish("hardsplice -t 80 bas")


# Names of namespaces that are code where a shell evaluates them; in a mount namespace of its own.
NAMES = """
    mount -t tmpfs none /run && mkdir -p /run/netns /run/work && cd /run/work || exit 42
    touch '/run/netns/x$(touch${IFS}ran)' '/run/netns/x`touch${IFS}ran`' '/run/netns/x y' y
    compopt() { :; }
    source "$1"
    for word in '' x y /run/netns/x; do
        COMP_WORDS=(hardsplice --netns "$word"); COMP_CWORD=2; COMPREPLY=()
        _hardsplice
        printf '%s:' "$word" "${COMPREPLY[@]}"
        echo
    done
    ls
"""


def test_bash_runs_nothing_that_is_in_the_name_of_a_namespace() -> None:
    unshare = ("unshare", "--map-root-user", "--mount")
    if (
        shutil.which("unshare") is None
        or subprocess.run((*unshare, "true"), check=False).returncode
    ):
        pytest.skip("no user namespace can be made, in which to mount something at /run")
    found, *rest = shell(
        unshare[0], *unshare[1:], "bash", "--norc", "-c", NAMES, "bash", str(BASH)
    ).splitlines()
    names = ["x y", "x$(touch${IFS}ran)", "x`touch${IFS}ran`"]
    assert sorted(found.split(":")[1:-1]) == sorted([*names, "y"])
    assert sorted(rest[0].split(":")[1:-1]) == sorted(names)
    assert rest[1] == "y:y:"
    assert sorted(rest[2].split(":")[1:-1]) == sorted(f"/run/netns/{name}" for name in names)
    assert rest[3:] == ["y"], "something ran"
