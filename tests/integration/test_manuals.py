# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for every page of the manual: its last sections, the tools that typeset it, and the
packages that bring it. tests/service/test_manual_commands.py runs its examples.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"
PAGES = sorted((PACKAGING / "man").iterdir())
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def complaints(command: list[str], page: Path) -> str:
    """What a typesetter has against a page; empty if it has nothing."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [*command, str(page)],
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr + (done.stdout if command[0] == "mandoc" else "")
    # What mandoc finds beside the page: that its index of pages lacks some that are named.
    said = re.sub(
        r"^mandoc: .*(?:mandoc\.db|referenced manual not found).*\n", "", said, flags=re.MULTILINE
    )
    if command[0] == "mandoc":
        return said  # its status counts those, too
    return said or (f"status {done.returncode}" if done.returncode else "")


@pages
@pytest.mark.parametrize(
    "command",
    [
        ["groff", "-mdoc", "-ww", "-Tutf8", "-z"],
        ["groff", "-mdoc", "-ww", "-Tascii", "-z", "-rLL=60n"],
        # "-l" formats a file by its name; -Z stops before the output device.
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"],
        ["mandoc", "-Tlint"],
    ],
    ids=["groff", "groff-narrow", "man", "mandoc"],
)
def test_typesetters_have_no_complaint(command: list[str], page: Path) -> None:
    assert complaints(command, page) == ""


@pytest.mark.parametrize("tool", ["groff", "mandoc"])
def test_a_fault_in_a_page_would_be_a_complaint(tool: str, tmp_path: Path) -> None:
    page = tmp_path / "wrong.1"
    page.write_text(PAGES[0].read_text(encoding="ascii") + ".NoSuchMacro\n", encoding="ascii")
    command = {
        "groff": ["groff", "-mdoc", "-ww", "-Tutf8", "-z"],
        "mandoc": ["mandoc", "-Tlint"],
    }
    assert "NoSuchMacro" in complaints(command[tool], page)


@pages
def test_a_page_ends_with_what_else_to_read_who_made_it_and_its_faults(page: Path) -> None:
    sections = re.findall(r"^\.Sh (.*)$", page.read_text(encoding="ascii"), re.MULTILINE)
    assert sections[:3] in (["NAME", "SYNOPSIS", "DESCRIPTION"], ["NAME", "DESCRIPTION", "ROLES"])
    assert sections[-3:] == ["SEE ALSO", "AUTHORS", "BUGS"]


def named(page: Path) -> set[str]:
    """The pages of ours that one names, itself left out."""
    text = page.read_text(encoding="ascii")
    found = re.findall(r"^\.(?:Pq see |It )?Xr (hardsplice[\w\\-]*) (\d)", text, re.MULTILINE)
    return {".".join(one).replace("\\", "") for one in found} - {page.name}


@pages
def test_a_page_that_is_named_is_there(page: Path) -> None:
    assert named(page) <= {one.name for one in PAGES}


@pages
def test_a_page_leads_to_the_first_one_and_that_one_to_each(page: Path) -> None:
    first = PACKAGING / "man" / "hardsplice.1"
    if page == first:
        assert named(page) == {one.name for one in PAGES} - {page.name}
    else:
        assert first.name in named(page)


@pages
def test_what_a_page_names_is_among_what_else_to_read(page: Path) -> None:
    """Where a reader looks for it."""
    text = page.read_text(encoding="ascii")
    also = text[text.index(".Sh SEE ALSO") : text.index(".Sh AUTHORS")]
    assert {
        ".".join(one) for one in re.findall(r"^\.Xr (hardsplice\S*) (\d)", also, re.MULTILINE)
    } == named(page)


def test_engines_programs_lead_to_each_other() -> None:
    """Who has one engine may have another one."""
    scripts = tomllib.loads((PACKAGING.parent / "pyproject.toml").read_text())["project"]["scripts"]
    engines = {f"{name}.1" for name, entry in scripts.items() if "frontends" in entry}
    for page in (one for one in PAGES if one.name in engines):
        assert named(page) >= engines - {page.name}, page.name


@pages
def test_every_package_brings_it(page: Path) -> None:
    deb = (PACKAGING / "debian" / "hardsplice.manpages").read_text(encoding="utf-8").split()
    rpm = (PACKAGING / "rpm" / "hardsplice.spec").read_text(encoding="utf-8")
    assert f"packaging/man/{page.name}" in deb
    assert f"%{{_mandir}}/man{page.suffix[1:]}/{page.name}*" in rpm
    assert f"packaging/man/{page.name} %{{buildroot}}" in rpm
