# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines for people: few of a kind, one line each, whatever is in them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.log import LINES_A_SECOND, Level, Limiter, Log, printable


@given(st.text())
def test_whatever_is_in_a_text_it_stays_on_one_line_and_moves_no_cursor(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1


@given(st.text(st.characters(categories=("L", "N", "P", "S"))))
def test_what_can_be_shown_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_what_can_not_be_shown_is_spelt() -> None:
    assert printable("a\nb\x1b[2Jc\u202ed\udc80") == "a\\nb\\x1b[2Jc\\u202ed\\udc80"


# --- how many ---


def test_a_second_of_the_same_kind_is_left_out_and_counted() -> None:
    limiter = Limiter()
    assert limiter.admit("a", 10.0) == 0
    assert limiter.admit("a", 10.5) is None
    assert limiter.admit("a", 10.999) is None
    assert limiter.admit("b", 10.999) == 0, "kinds are counted apart"
    assert limiter.admit("a", 10.0 + LINES_A_SECOND) == 2
    assert limiter.admit("a", 12.5) == 0


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 0.7)), max_size=60))
def test_nothing_is_lost_from_the_count(said: list[tuple[str, float]]) -> None:
    limiter, now = Limiter(), 0.0
    accounted = {"a": 0, "b": 0}
    shown: dict[str, list[float]] = {"a": [], "b": []}
    for kind, pause in said:
        now += pause
        left_out = limiter.admit(kind, now)
        if left_out is not None:
            accounted[kind] += 1 + left_out
            shown[kind].append(now)
    for kind, times in shown.items():
        assert all(b - a >= LINES_A_SECOND for a, b in itertools.pairwise(times))
        rest = limiter.admit(kind, now + 1000)
        assert rest is not None
        assert accounted[kind] + rest == sum(1 for one, _ in said if one == kind)


# --- where to ---


@pytest.fixture
def descriptor_2() -> Iterator[None]:
    """What descriptor 2 was comes back."""
    saved = os.dup(2)
    yield
    os.dup2(saved, 2)
    os.close(saved)


def test_only_wanted_levels_are_written(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(Level.WARNING)
    for level in Level:
        log.line(level, f"at {level.name}")
    assert capfd.readouterr().err == "hardsplice: at ERROR\nhardsplice: at WARNING\n"


def test_a_line_says_what_was_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(Level.INFO)
    for _ in range(4):
        log.limited(Level.INFO, "kind", "refused")
    log.limiter._last["kind"] -= 2 * LINES_A_SECOND
    log.limited(Level.INFO, "kind", "refused")
    assert capfd.readouterr().err == (
        "hardsplice: refused\nhardsplice: refused (3 more like it were left out)\n"
    )


@pytest.mark.usefixtures("descriptor_2")
def test_a_file_starts_over_before_it_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"from before\n")
    log = Log(Level.INFO)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    log.to_file(os.open(path, flags, 0o600), 200)
    log.settle()
    assert log.file_limit == 200
    sizes = []
    for number in range(40):
        log.line(Level.INFO, f"line {number}")
        sizes.append(path.stat().st_size)
    assert max(sizes) <= 200
    assert sizes != sorted(sizes), "it started over"
    assert path.read_text().splitlines()[-1] == "hardsplice: line 39"


@pytest.mark.usefixtures("descriptor_2")
def test_a_full_disk_stops_nobody() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 2)
    os.close(full)
    Log(Level.INFO).line(Level.ERROR, "nobody reads this")
