# SPDX-License-Identifier: GPL-2.0-or-later
"""How options are read from words, by a table of the tests' own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.cli.parsing import Option, convert, cut, refuse_contradictions
from hardsplice.model.errors import HardspliceError

FLAG = Option(("-a", "--all"), "a flag", field="all", default=False)
OTHER = Option(("-b", "--both"), "another one", excludes=(("--number", "it counts itself"),))
NUMBER = Option(("--number",), "a value", value="N", field="number", default=7, parse=int)
TEXT = Option(
    ("-t", "--text"), "one each time", value="TEXT", field="texts", default=(), repeats=True
)
NEEDY = Option(("--needy",), "not alone", needs=("--all", "add --all"))
OPTIONS = (FLAG, OTHER, NUMBER, TEXT, NEEDY)


def read(*argv: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The options by the names that they were found under, with their values; and what is left."""
    found, rest = cut(argv, OPTIONS)
    return [(name, text) for _, name, text in found], rest


@pytest.mark.parametrize(
    ("argv", "found", "rest"),
    [
        ("", [], []),
        ("-a", [("-a", "")], []),
        ("-ab", [("-a", ""), ("-b", "")], []),
        ("-abtx", [("-a", ""), ("-b", ""), ("-t", "x")], []),
        ("-at x", [("-a", ""), ("-t", "x")], []),
        ("--text x", [("--text", "x")], []),
        ("--text=x", [("--text", "x")], []),
        ("--text=", [("--text", "")], []),
        ("--text -", [("--text", "-")], []),
        ("--te x --al", [("--text", "x"), ("--all", "")], []),
        ("-a word -b", [("-a", "")], ["word", "-b"]),
        ("-a -- -b", [("-a", "")], ["-b"]),
        ("- -a", [], ["-", "-a"]),
    ],
)
def test_where_options_end_and_what_they_have(
    argv: str, found: list[tuple[str, str]], rest: list[str]
) -> None:
    assert read(*argv.split()) == (found, rest)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("-x", "-x"),
        ("--nothing", "--nothing"),
        ("--n=1", "--number or --needy"),
        ("--all=1", "must not have an argument"),
        ("-t", "--text without a value"),
        ("--text --all", "--text without a value"),
        ("-t -ab", "-t without a value"),
    ],
)
def test_what_is_no_option_is_one_error(argv: str, said: str) -> None:
    with pytest.raises(HardspliceError, match=said):
        cut(argv.split(), OPTIONS)


@given(st.lists(st.text(), max_size=4))
def test_what_follows_two_dashes_is_left_alone(words: list[str]) -> None:
    assert read("--", *words) == ([], words)


def test_the_last_one_holds_unless_an_option_repeats() -> None:
    found, _ = cut(["--number", "1", "-tx", "--number", "2", "-ty"], OPTIONS)
    given = convert(found, OPTIONS)
    assert (given.all, given.number, list(given.texts)) == (False, 2, ["x", "y"])


@pytest.mark.parametrize(
    ("argv", "said"), [("-b --number 1", "it counts itself"), ("--needy", "add --all")]
)
def test_what_can_not_be_combined_is_refused_with_the_reason(argv: str, said: str) -> None:
    found, _ = cut(argv.split(), OPTIONS)
    with pytest.raises(HardspliceError, match=said):
        refuse_contradictions(found)
    refuse_contradictions(cut(["-a", "--needy"], OPTIONS)[0])
