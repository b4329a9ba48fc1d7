# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines for people: few of a kind, one line each, whatever is in them."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.errors import printable
from hardsplice.log import LINE_LIMIT, LINES_A_SECOND, Level, Limiter, Log, make_room
from hardsplice.values import LogFormat


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


def test_json_has_a_line_for_each_line(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(Level.INFO, "json")
    log.line(Level.WARNING, 'a "b"\n\x1b\u202e')
    log.write(Level.INFO, "for people", {"event": "flow", "bytes": 2**64 - 1})
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    times = [datetime.fromisoformat(line.pop("time")) for line in lines]
    assert lines == [
        {"level": "warning", "message": 'a "b"\n\x1b\u202e'},
        {"level": "info", "event": "flow", "bytes": 2**64 - 1},
    ]
    assert all(abs(when.timestamp() - time.time()) < 60 for when in times)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.usefixtures("descriptor_2")
def test_the_journal_is_told_how_much_a_line_matters(form: LogFormat) -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    found = os.fstat(2)
    log = Log(Level.TRACE, form, f"{found.st_dev}:{found.st_ino}")
    for level in (Level.ERROR, Level.TRACE):
        log.line(level, "text")
    lines = os.read(reader, 4096).decode().splitlines()
    os.close(reader)
    assert [line[:3] for line in lines] == ["<3>", "<7>"]
    assert lines[0][3:].startswith("hardsplice: text" if form == "text" else '{"time"')


@pytest.mark.parametrize("stream", ["", "1:1", "nonsense", "8:x", ":"])
def test_what_is_not_the_journal_gets_no_numbers(
    stream: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Log(Level.INFO, "text", stream).line(Level.ERROR, "text")
    assert capfd.readouterr().err == "hardsplice: text\n"


def test_a_long_line_is_cut_so_that_it_goes_out_in_one_piece(
    capfd: pytest.CaptureFixture[str],
) -> None:
    Log(Level.INFO).line(Level.ERROR, "long " * 1000)
    line = capfd.readouterr().err
    assert len(line) == LINE_LIMIT
    assert line.endswith("...\n")


@pytest.mark.usefixtures("descriptor_2")
def test_nobody_who_does_not_read_holds_it_up_and_what_is_lost_is_said() -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    log = Log(Level.INFO)
    log.settle()
    number = 2000
    for one in range(number):  # far more than a pipe holds
        log.line(Level.INFO, f"line {one} ".ljust(200, "."))
    with open(reader, encoding="ascii") as text:
        os.set_blocking(reader, False)
        taken = text.read().splitlines()
        log.line(Level.INFO, "and on")
        later = text.read().splitlines()
    assert 100 < len(taken) < number
    assert all(line.endswith("...") for line in taken), "none is cut"
    assert later == [
        f"hardsplice: {number - len(taken)} lines before this one are lost: nobody read them",
        "hardsplice: and on",
    ]


# --- a file with a limited size ---


def log_to(path: Path, limit: int) -> Log:
    log = Log(Level.INFO)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    log.to_file(os.open(path, flags, 0o600), limit)
    log.settle()
    return log


@pytest.mark.usefixtures("descriptor_2")
def test_a_full_file_keeps_its_newest_half_in_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"from before\n")
    log = log_to(path, 300)
    assert log.file_limit == 300
    sizes = []
    for number in range(60):
        log.line(Level.INFO, f"line {number}")
        sizes.append(path.stat().st_size)
        lines = path.read_text().splitlines(keepends=True)
        newest = [f"hardsplice: line {one}\n" for one in range(number + 1)][-len(lines) :]
        assert lines[-len(newest) :] == newest, "whole lines, none missing in between"
    assert max(sizes) <= 300
    assert sizes != sorted(sizes), "it was full"
    assert min(sizes[20:]) > 300 // 2 - 20, "and half of it stayed"


@pytest.mark.usefixtures("descriptor_2")
def test_a_file_that_somebody_else_cut_short_goes_on_from_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = log_to(path, 300)
    for number in range(10):
        log.line(Level.INFO, f"line {number}")
    os.truncate(path, 0)
    for number in range(10, 40):
        log.line(Level.INFO, f"line {number}")
        assert path.stat().st_size <= 300
        assert b"\0" not in path.read_bytes()
    assert path.read_text().splitlines()[-1] == "hardsplice: line 39"


@pytest.mark.parametrize(
    ("before", "keep", "after"),
    [
        (b"one\ntwo\nthree\n", 10, b"two\nthree\n"),
        (b"one\ntwo\nthree\n", 9, b"three\n"),
        (b"one\ntwo\nthree\n", 6, b"three\n"),
        (b"one\ntwo\nthree\n", 5, b""),
        (b"one\ntwo\nthree\n", 100, b"one\ntwo\nthree\n"),
        (b"no end of a line", 5, b""),
        (b"", 5, b""),
    ],
)
def test_room_is_made_line_by_line(tmp_path: Path, before: bytes, keep: int, after: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(before)
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    assert make_room(fd, keep) == len(after)
    os.close(fd)
    assert path.read_bytes() == after


@pytest.mark.usefixtures("descriptor_2")
def test_a_full_disk_stops_nobody() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 2)
    os.close(full)
    Log(Level.INFO).line(Level.ERROR, "nobody reads this")
