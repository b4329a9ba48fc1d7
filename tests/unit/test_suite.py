# SPDX-License-Identifier: GPL-2.0-or-later
"""How tools/suite.py shares out the tests, and what it makes of what pytest says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tools.suite import FILES, NOTHING_TO_RUN, WHOLE, Ended, repeatable, runs

TESTS = Path(__file__).resolve().parents[1]


def ended(status: int, output: str) -> Ended:
    return Ended(("tests/relay",), status, output, 1.0)


def test_every_file_is_in_one_run() -> None:
    files = {file.relative_to(TESTS) for file in TESTS.rglob("test_*.py")}
    given = [Path(word).relative_to("tests") for words in runs(files) for word in words]
    assert len(given) == len(set(given))
    assert {Path(name) for name in WHOLE} <= set(given)
    assert [
        one for one in files if not any(one == word or word in one.parents for word in given)
    ] == []


def test_runs_are_small_but_for_those_that_share_what_they_drive() -> None:
    files = [Path(f"relay/test_{number}.py") for number in range(6)]
    files += [Path("relay/test_contract.py"), Path("unit/a/test_one.py"), Path("unit/test_two.py")]
    first, *others = runs(files)
    assert first == ("tests/unit",)
    assert [len(words) for words in others] == [1, FILES, 6 - FILES]


def test_what_failed_is_named_and_counted() -> None:
    output = "...\nFAILED tests/a.py::b - AssertionError\n1 failed, 2 passed, 3 skipped in 4.5s\n"
    assert ended(1, output).failures() == ["FAILED tests/a.py::b - AssertionError"]
    assert ended(1, output).counts() == Counter(passed=2, failed=1, skipped=3)


def test_a_few_that_failed_are_repeated_and_many_are_not() -> None:
    failures = [
        "FAILED tests/a.py::b[root-relay-in - notes for ever] - TimeoutError: timed out",
        "FAILED tests/a.py::c",
    ]
    named = ["tests/a.py::b[root-relay-in - notes for ever]", "tests/a.py::c"]
    assert repeatable(failures) == named
    assert repeatable([]) == []
    assert repeatable(3 * failures) == []
    assert repeatable([*failures, "ERROR tests/a.py::d - OSError"]) == []
    assert repeatable([*failures, "status -9 of tests/relay"]) == []


def test_a_run_that_ends_without_a_word_has_failed() -> None:
    assert ended(-9, "...").failures() == ["status -9 of tests/relay"]
    assert ended(NOTHING_TO_RUN, "8 deselected in 0.1s").failures() == []
    assert ended(0, "2 passed in 0.1s").failures() == []
