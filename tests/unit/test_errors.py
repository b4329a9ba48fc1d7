# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person gets to read when something fails."""

from __future__ import annotations

import errno
import pickle

import pytest

from hardsplice.errors import Failure, quote, reason_of


def test_a_failure_says_verb_object_and_reason() -> None:
    failure = Failure("listen on", "port 80", "Permission denied")
    assert str(failure) == "cannot listen on port 80: Permission denied"
    assert failure.lines() == ("hardsplice: cannot listen on port 80: Permission denied",)


def test_the_next_step_is_a_line_of_its_own() -> None:
    failure = Failure("listen on", "port 80", "Permission denied", "choose 1024 or above")
    assert failure.lines()[1:] == ("hardsplice: choose 1024 or above",)


def test_a_failure_crosses_a_process_boundary() -> None:
    failure = Failure("open", "x", "y", "z")
    assert pickle.loads(pickle.dumps(failure)).lines() == failure.lines()


def test_what_does_not_print_is_shown_escaped() -> None:
    failure = Failure("open", "a\nb\x1b[1m\udcff", "no\r", "h\n")
    assert failure.lines() == (
        "hardsplice: cannot open a\\nb\\x1b[1m\\udcff: no\\r",
        "hardsplice: h\\n",
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EACCES, "Permission denied", "/secret"), "Permission denied"),
        (OSError(errno.EACCES, ""), "Permission denied"),
        (OSError("something else"), "something else"),
        (OSError(), "OSError"),
    ],
)
def test_the_reason_of_an_oserror_is_the_reason_alone(error: OSError, reason: str) -> None:
    assert reason_of(error) == reason


def test_a_quotation_is_cut_where_it_is_very_long() -> None:
    assert quote("x" * 64) == "'" + "x" * 64 + "'"
    assert quote("x" * 65) == "'" + "x" * 61 + "...'"
