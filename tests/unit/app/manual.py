# SPDX-License-Identifier: GPL-2.0-or-later
"""What the manual page of hardsplice(1) says, read from its source."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "packaging" / "man" / "hardsplice.1"


def plain(text: str) -> str:
    """Source of the page without its escapes."""
    return text.replace("\\-", "-").replace("\\(ti", "~").replace("\\(aq", "'")


SOURCE = plain(PAGE.read_text(encoding="ascii"))


def section(title: str) -> str:
    found = re.search(rf"^\.Sh {title}\n(.*?)(?=^\.Sh |\Z)", SOURCE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no section {title}"
    return found[1]


def documented() -> dict[tuple[str, ...], str | None]:
    """Each option that has a paragraph: its names, and its value as written."""
    found = {}
    for head in re.findall(r"^\.It Fl (.*)$", section("OPTIONS"), re.MULTILINE):
        flags, _, value = head.partition(" Ar ")
        names = tuple("-" + name for name in flags.replace(" Fl ", " ").split(" , "))
        # "USER Ns Op : Ns Ar GROUP" is how mdoc writes USER[:GROUP].
        value = re.sub(r" Ns Op (.*)", r"[\1]", value).replace(" Ns Ar ", "")
        found[names] = value.replace(" Ns | Ns Ar ", "|").replace(" Ns |", "|") or None
    return found


def spec_examples() -> list[tuple[str, str]]:
    examples = section("PORT SPECIFICATIONS").partition("Examples:")[2]
    return re.findall(r"^\.It Li (\S+)\n(.*)$", examples, re.MULTILINE)
