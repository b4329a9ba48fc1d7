# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual of hardsplice as groff renders it, and what it says of pasta against pasta itself."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from hardsplice.app.option_table import OPTIONS
from hardsplice.model import foreign
from tests.support.release import is_debian_12
from tests.unit.app.manual import PAGE, SOURCE, documented, section, spec_examples


@pytest.fixture(scope="module")
def rendered() -> str:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        ["groff", "-mdoc", "-Tascii", "-P-cbou", "-rLL=120n", str(PAGE)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_reader_sees_every_option_and_example(rendered: str) -> None:
    for names, value in documented().items():
        head = ", ".join(names) + (f" {value}" if value else "")
        assert re.search(rf"^ +{re.escape(head)}(  |$)", rendered, re.MULTILINE), head
    for text, _ in spec_examples():
        assert text in rendered
    for line in re.findall(r"^\.Dl (.*)$", SOURCE, re.MULTILINE):
        assert line in rendered


def pastas_options() -> set[str]:
    if shutil.which("pasta") is None:
        pytest.skip("pasta is not installed")
    if not is_debian_12():
        pytest.skip("the page is about pasta of Debian 12")
    done = subprocess.run(["pasta", "--help"], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    return set(re.findall(r"^ +(-\w), --", said, re.MULTILINE)) | set(
        re.findall(r"^ +(?:-\w, )?(--[\w-]+)", said, re.MULTILINE)
    )


def test_pasta_has_the_options_that_mean_the_same_or_differ() -> None:
    here = section("DIFFERENCES FROM PASTA").partition("These are missing")[0]
    newer = {"--host-lo-to-ns-lo"}
    lines = re.findall(r"\bFl (.*)$", here, re.MULTILINE)
    named = {f"-{word}" for line in lines for word in re.findall(r"-?[A-Za-z0-9][\w-]*", line)}
    named.discard("-Fl")
    assert len(named) > 16
    assert named - newer <= pastas_options()


def test_every_option_of_pastas_is_ours_or_is_refused_as_pastas() -> None:
    """But what passt alone has, of which pasta's --help lists one."""
    known = {name for option in OPTIONS for name in option.names}
    others = {"-F", "--fd"}
    rest = pastas_options() - known - others
    assert len(rest) > 20
    assert [name for name in rest if foreign.why_not(name) is None] == []
