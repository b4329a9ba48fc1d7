# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplice-policy(5) against the parser of policies, the table of roles, and the files."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

import pytest

from hardsplice import policy
from hardsplice.kernel.syscalls import ARCHITECTURES
from hardsplice.model.errors import HardspliceError
from hardsplice.model.roles import POLICIES, ROLES
from hardsplice.sandbox.policy.format import parse_policy

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "packaging" / "man" / "hardsplice-policy.5"
SOURCE = PAGE.read_text(encoding="ascii").replace("\\-", "-")
SMALLEST = """\
role = "small"
summary = "it"
capabilities = []
{top}
[[rule]]
call = "splice"
why = "it"
where = "hardsplice.kernel.linux"
{rule}
"""


def section(title: str) -> str:
    found = re.search(rf"^\.Sh {title}\n(.*?)(?=^\.Sh |\Z)", SOURCE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def parse(text: str) -> None:
    parse_policy(text, "small", pytest.fail)


def documented(title: str) -> set[str]:
    return set(re.findall(r"^\.It Ic (\w+)$", section(title), re.MULTILINE))


def written() -> tuple[set[str], set[str]]:
    """The keys of files, and of rules, that policies use."""
    top, rule = set(), set()
    for path in (ROOT / "policy").glob("*.toml"):
        inside = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"\[+(\w+)", line):
                inside = found[1]
                if inside not in ARCHITECTURES:
                    top.add(inside)
            elif found := re.match(r"([a-z]+) = ", line):
                if line.startswith("note") or inside == "":
                    top.add(found[1])
                else:
                    rule.add(found[1])
    return top - {"note"}, rule


def test_keys_that_policies_use_are_those_of_the_page() -> None:
    assert written() == (documented("FILE FORMAT"), documented("RULES"))


def test_the_readme_beside_the_policies_has_the_same_keys() -> None:
    text = (ROOT / "policy" / "README.md").read_text(encoding="utf-8")
    rule, rest = text.partition("\n## A rule\n")[2].split("\n## The rest of a file\n")
    bullets = re.compile(r"^- `(?:\[?)(\w+)", re.MULTILINE)
    assert set(bullets.findall(rule)) | {"call", "source"} == documented("RULES")
    top = documented("FILE FORMAT") - {"rule"}
    assert set(re.findall(r"`\[?(\w+)\]?`", rest)) & top == top


@pytest.mark.parametrize("where", ["top", "rule"])
def test_no_other_key_is_understood(where: str) -> None:
    parse(SMALLEST.format(top="", rule=""))
    with pytest.raises(HardspliceError, match="colour"):
        parse(SMALLEST.format(**{"top": "", "rule": "", where: 'colour = "red"'}))


def test_the_roles_are_those_of_the_table() -> None:
    rows = re.findall(r"^\.It Li (\S+)\n(.*)$", section("ROLES"), re.MULTILINE)
    found: dict[str, list[str]] = {}
    processes: list[str] = []
    for name, text in rows:
        processes = re.findall(r"hs-[\w-]+", text) or processes  # or "The same"
        found[name] = processes
    assert found == {
        name: sorted(role.name for role in ROLES.values() if name in role.policies)
        for name in POLICIES
    }


def test_the_architectures_are_all() -> None:
    text = section("FILE FORMAT").partition("The architectures are")[2]
    text = " ".join(takewhile(lambda line: not line.startswith(".Pp"), text.splitlines()))
    assert tuple(re.findall(r"[a-z]\w+\d+\w*|armhf", text)) == tuple(ARCHITECTURES)


def test_the_rule_that_is_shown_is_one_that_there_is() -> None:
    (rule,) = re.findall(
        r"^\[\[rule\]\]\n.*?(?=\.Ed)", section("EXAMPLES"), re.MULTILINE | re.DOTALL
    )
    assert rule in (ROOT / "policy" / "relay.toml").read_text(encoding="utf-8")


def test_the_commands_have_the_options_that_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "check", "export"):
        with pytest.raises(SystemExit):
            policy.main([command, "--help"])
        said = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help", "--listeners"}
        (line,) = re.findall(rf"^\.It Li python3 .*Cm {command} (.*)$", SOURCE, re.MULTILINE)
        assert {f"-{word}" for word in re.findall(r"Fl (-[a-z]+)", line)} == said
