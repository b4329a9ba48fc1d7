# SPDX-License-Identifier: GPL-2.0-or-later
"""Every sentence of SECURITY.md, and every row of its table of layers, has a test that holds it, or
a reason why it needs none: tests/security_claims.toml names them. The other tables and the commands
have tests of their own (test_security_table.py, service/test_security_page.py).
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from hardsplice.app import allowed_ports
from hardsplice.control import server
from hardsplice.monitor import autoforward, handover
from hardsplice.sandbox import address_book
from tests.sandbox import attempts

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Claim:
    """A sentence, by its first words, and what holds it, or why nothing has to."""

    says: str
    tests: tuple[str, ...]
    why_not: str


def claims() -> list[Claim]:
    text = (ROOT / "tests" / "security_claims.toml").read_text(encoding="utf-8")
    return [
        Claim(one["says"], tuple(one.get("tests", ())), one.get("why_not", ""))
        for one in tomllib.loads(text)["claim"]
    ]


CLAIMS = claims()


_TITLE = re.compile(r"^(- )?\*[^*]+\.\*\s|^\*\*[^*]+\*\*\s|^- ")


def layers(text: str) -> list[str]:
    """The rows of the table of layers."""
    section = text.partition("\n## Layers\n")[2].partition("\n#")[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


def sentences(text: str) -> list[str]:
    """The rows of the table of layers, then all but headings, tables and commands. A list's item is
    a paragraph of its own.
    """
    found = layers(text)
    for block in re.split(r"\n\s*\n|\n(?=#|[*-] |\|)", text):
        if block and not block.startswith(("#", "|", "    ")):
            found += re.split(r"(?<=[.!?])\**\s+", _TITLE.sub("", " ".join(block.split())))
    return found


def test_every_sentence_is_in_the_list_once() -> None:
    for sentence in sentences(PAGE):
        found = [claim for claim in CLAIMS if sentence.startswith(claim.says)]
        assert len(found) == 1, f"{len(found)} entries: {sentence}"


def test_every_entry_is_a_sentence() -> None:
    found = sentences(PAGE)
    assert [
        claim.says for claim in CLAIMS if not any(one.startswith(claim.says) for one in found)
    ] == []


def test_a_sentence_that_is_new_is_missed() -> None:
    new = sentences(PAGE + "\n\nNothing can ever go wrong.\n")[-1]
    assert not any(new.startswith(claim.says) for claim in CLAIMS)


def test_so_is_a_layer_that_is_new() -> None:
    assert len(layers(PAGE)) > 10
    row = "| magic | everything | nothing | `true` |"
    (new,) = set(sentences(PAGE.replace("\n| limits |", f"\n{row}\n| limits |"))) - set(
        sentences(PAGE)
    )
    assert new == row
    assert not any(new.startswith(claim.says) for claim in CLAIMS)


@cache
def functions(path: Path) -> set[str]:
    """The tests of a module."""
    return set(re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.says)
def test_what_holds_it_exists(claim: Claim) -> None:
    assert bool(claim.tests) != bool(claim.why_not), "a test, or a reason"
    for name in claim.tests:
        path, _, function = name.partition("::")
        assert (ROOT / "tests" / path).is_file(), path
        assert not function or function in functions(ROOT / "tests" / path), function


def test_numbers_on_the_page_are_those_of_the_code() -> None:
    usual, large = address_book.USUAL, address_book.LARGE
    said = {
        f"({usual.address:#x}; on armhf": 1,
        f"{usual.size // address_book.SLOT:,} slots may be needed, {large.address:#x}": 1,
        f"in 32 bits {address_book.LARGE_32.address:#x}; {address_book.SLOT} bytes a slot": 1,
        **{
            f"from {one.values:08x} to {one.address + one.size:08x}": 1
            for one in address_book.AREAS
        },
        f"no more than {allowed_ports.MANY_PORTS} ports": 1,
        f"{server.CONNECTIONS} connections at most": 1,
    }
    text = " ".join(PAGE.split())
    assert {one: text.count(one) for one in said} == said
    assert ("for five seconds each" in text, handover.ANSWER_SECONDS) == (True, 5)
    assert ("a twentieth of the time" in text, autoforward.SHARE) == (True, 20)
    assert "some 370 attempts" in text
    assert abs(len(attempts.ROWS) - 370) < 25
