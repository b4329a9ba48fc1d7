# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines for people: few of a kind, one line each, whatever is in them."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import resource
import select
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.model.errors import HardspliceError
from hardsplice.telemetry import log as module
from hardsplice.telemetry.log import (
    LAST_WORDS,
    LINE_LIMIT,
    LINES_A_SECOND,
    Level,
    Limiter,
    Log,
    LogFormat,
    as_json,
    make_room,
    open_file,
)
from tests.support.files import make_something
from tests.support.stream import PATIENCE

# What stands before each line of a log file.
_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 (?=hardsplice: )", re.MULTILINE)


def untimed(path: Path) -> str:
    """A log file's text without the times; each of its lines has one."""
    text = path.read_text()
    assert len(_TIME.findall(text)) == len(text.splitlines())
    return _TIME.sub("", text)


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
        {"level": "warning", "message": 'a "b"\\n\\x1b\\u202e'},
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


ANYTHING = st.text(st.characters(), max_size=4000)


@given(ANYTHING, ANYTHING, st.sampled_from(["", "<30>hardsplice[4194304]: "]))
def test_a_line_in_json_is_json_however_long_its_texts_are(one: str, two: str, lead: str) -> None:
    limit = LINE_LIMIT - len(lead) - 1
    fields = {"message": one, "bytes": 2**64 - 1, "listener": two}
    line = as_json(Level.WARNING, fields, 0.0, limit)
    assert len(line.encode()) <= limit
    shown = json.loads(line)
    assert set(shown) == {"time", "level", *fields}
    assert shown["bytes"] == 2**64 - 1
    assert all(str(shown[name]).isprintable() for name in ("message", "listener"))


def test_of_a_long_text_in_json_the_beginning_stays() -> None:
    line = as_json(Level.ERROR, {"message": "\u20ac" * 1000, "end": "fin"}, 0.0, 500)
    shown = json.loads(line)
    assert 490 < len(line) <= 500
    assert shown["message"].rstrip(".") == "\u20ac" * len(shown["message"].rstrip("."))
    assert shown["message"].endswith("...")
    assert shown["end"] == "fin"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("text", ["\u20ac" * 3000, "\0" * 3000, "a" * 3000, '"' * 3000])
@pytest.mark.usefixtures("descriptor_2")
def test_a_long_line_in_the_journal_is_whole_in_its_form(form: LogFormat, text: str) -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    found = os.fstat(2)
    Log(Level.INFO, form, f"{found.st_dev}:{found.st_ino}").line(Level.ERROR, text)
    data = os.read(reader, 2 * LINE_LIMIT)
    os.close(reader)
    assert LINE_LIMIT - 8 < len(data) <= LINE_LIMIT
    line = data.decode()
    assert line.startswith("<3>")
    assert line.endswith("\n")
    if form == "json":
        json.loads(line[3:])


def fill_pipe() -> int:
    """Make descriptor 2 a pipe that is full; its other end."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    os.dup2(writer, 2)
    os.close(writer)
    return reader


@pytest.mark.usefixtures("descriptor_2")
def test_last_words_wait_for_a_moment_in_all_and_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert LAST_WORDS == 1
    full_pipe = fill_pipe()
    waits: list[float] = []  # in milliseconds
    clock = [0.0]

    class Poller:
        """Asks the kernel without waiting, and lets time pass as if it had waited."""

        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            waits.append(milliseconds)
            clock[0] += milliseconds / 1000
            poller = select.poll()
            poller.register(2, select.POLLOUT)
            return poller.poll(0)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    log = Log(Level.INFO)
    log.settle()
    log._poller = cast("select.poll", Poller())
    for _ in range(200):
        log.line(Level.ERROR, "in service")
        log.limited(Level.ERROR, object(), "in service")
    assert len(waits) >= 400
    assert sum(waits) == 0
    for _ in range(20):
        log.last_words("that is all")
    assert sum(waits) == 1000 * LAST_WORDS
    os.close(full_pipe)


@pytest.mark.usefixtures("descriptor_2")
def test_last_words_reach_a_reader_who_is_late() -> None:
    full_pipe = fill_pipe()
    log = Log(Level.INFO)
    log.settle()
    reading = threading.Timer(0.05, os.read, (full_pipe, 1 << 20))
    reading.start()
    log.last_words("that is all")
    reading.join()
    os.set_blocking(full_pipe, False)
    assert os.read(full_pipe, 1 << 20).rstrip(b"\0") == b"hardsplice: that is all\n"
    os.close(full_pipe)


@pytest.mark.usefixtures("descriptor_2")
def test_even_if_somebody_else_fills_the_pipe_in_between_it_does_not_wait() -> None:
    """COMMAND shares it: what has room when it is looked at has none when it is written to."""
    full_pipe = fill_pipe()
    log = Log(Level.INFO)
    log.settle()

    class Mistaken:
        def poll(self, _: float) -> list[tuple[int, int]]:
            return [(2, select.POLLOUT)]

    log._poller = cast("select.poll", Mistaken())
    waiting = threading.Timer(PATIENCE, os.read, (full_pipe, 1 << 20))  # so that it ends at all
    waiting.start()
    began = time.monotonic()
    log.line(Level.ERROR, "text")
    assert time.monotonic() - began < PATIENCE / 2
    waiting.cancel()
    assert log._missed == 1
    assert os.get_blocking(2) is False
    os.close(full_pipe)


@pytest.mark.usefixtures("descriptor_2")
def test_the_others_at_a_pipe_keep_an_end_that_waits() -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    Log(Level.INFO).settle()
    assert os.get_blocking(writer)
    for fd in (reader, writer):
        os.close(fd)


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
        f"hardsplice: {number - len(taken)} lines before this one are lost: nobody took them",
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
    path.write_bytes(b"2026-11-26T12:00:00.000+00:00 hardsplice: from before\n")
    log = log_to(path, 900)
    assert log.file_limit == 900
    sizes = []
    for number in range(60):
        log.line(Level.INFO, f"line {number}")
        sizes.append(path.stat().st_size)
        lines = untimed(path).splitlines(keepends=True)
        newest = [f"hardsplice: line {one}\n" for one in range(number + 1)][-len(lines) :]
        assert lines[-len(newest) :] == newest, "whole lines, none missing in between"
    assert max(sizes) <= 900
    assert sizes != sorted(sizes), "it was full"
    assert min(sizes[20:]) > 900 // 2 - 60, "and half of it stayed"


@pytest.mark.usefixtures("descriptor_2")
def test_each_line_of_a_file_has_its_time_and_none_elsewhere(tmp_path: Path) -> None:
    """With its zone; the journal, syslog and a terminal's reader have a clock of their own."""
    path = tmp_path / "log"
    log = log_to(path, 4096)
    before = time.time()
    log.line(Level.INFO, "one")
    log.write(Level.INFO, "two", {"message": "two"})
    log.last_words("x" * 2 * LINE_LIMIT)
    after = time.time()
    lines = path.read_text().splitlines()
    times = [datetime.fromisoformat(line.partition(" ")[0]).timestamp() for line in lines]
    assert times == sorted(times)
    assert before - 0.001 <= times[0] <= times[2] <= after
    assert [line.partition(" ")[2][:15] for line in lines] == [
        "hardsplice: one", "hardsplice: two", "hardsplice: xxx"
    ]  # fmt: skip
    assert len(lines[2]) == LINE_LIMIT - 1


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
    assert untimed(path).splitlines()[-1] == "hardsplice: line 39"


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


class Limits:
    """RLIMIT_FSIZE for a while; what is above it is EFBIG, as Python ignores SIGXFSZ."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.usefixtures("descriptor_2")
def test_a_line_for_which_there_is_not_room_enough_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = log_to(path, 4096)
    log.line(Level.INFO, "whole")
    with Limits(path.stat().st_size + 10):
        log.line(Level.INFO, "cut off")
        assert untimed(path) == "hardsplice: whole\n"
    log.line(Level.INFO, "and on")
    assert untimed(path).splitlines() == [
        "hardsplice: whole",
        "hardsplice: 1 lines before this one are lost: nobody took them",
        "hardsplice: and on",
    ]


@pytest.mark.usefixtures("descriptor_2")
def test_in_a_file_that_is_not_ours_the_next_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "stderr"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 2)
    os.close(fd)
    log = Log(Level.INFO)
    log.settle()
    with Limits(5):
        log.line(Level.INFO, "cut off")
        assert path.read_text() == "hards"
    log.line(Level.INFO, "and on")
    assert path.read_text().splitlines() == [
        "hards",
        "hardsplice: 1 lines before this one are lost: nobody took them",
        "hardsplice: and on",
    ]


@pytest.mark.usefixtures("descriptor_2")
def test_no_more_is_asked_for_than_the_limit_of_the_process_allows(tmp_path: Path) -> None:
    with Limits(5000):
        assert log_to(tmp_path / "log", 8192).file_limit == 5000
        fd = os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT)
        os.dup2(fd, 2)
        os.close(fd)
        assert Log(Level.INFO).file_limit == 5000


# --- whatever is where the log file should be ---


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket", "device", "link", "dangling"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = make_something(tmp_path / "log", kind)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(
        HardspliceError, match=r"cannot write log file .*log: |cannot write log file /dev/n"
    ):
        open_file(str(path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_of_somebody_else_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(HardspliceError, match="another hardsplice writes it"):
            open_file(str(path))


@pytest.mark.usefixtures("descriptor_2")
def test_a_full_disk_stops_nobody() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 2)
    os.close(full)
    Log(Level.INFO).line(Level.ERROR, "nobody reads this")
