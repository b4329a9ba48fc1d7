# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person gets to read when something fails."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import re
import threading
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.model.errors import (
    SHOWN_LIMIT,
    HardspliceError,
    error_of,
    in_a_line,
    print_lines,
    printable,
    quote,
    reason_of,
    text_of,
    write_all,
)


def test_a_failure_says_verb_object_and_reason() -> None:
    failure = HardspliceError("listen on", "port 80", "Permission denied")
    assert str(failure) == "cannot listen on port 80: Permission denied"
    assert failure.lines() == ("hardsplice: cannot listen on port 80: Permission denied",)


def test_the_next_step_is_a_line_of_its_own() -> None:
    failure = HardspliceError("listen on", "port 80", "Permission denied", "choose 1024 or above")
    assert failure.lines()[1:] == ("hardsplice: choose 1024 or above",)


def test_a_failure_crosses_a_process_boundary() -> None:
    failure = HardspliceError("open", "x", "y", "z")
    assert pickle.loads(pickle.dumps(failure)).lines() == failure.lines()


def test_what_does_not_print_is_shown_escaped() -> None:
    failure = HardspliceError("open", "a\nb\x1b[1m\udcff", "no\r", "h\n")
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


# --- what may be shown ---


@given(st.text(st.characters(), max_size=3000), st.integers(10, 2000))
def test_whatever_is_in_a_text_it_stays_on_one_line_and_changes_nothing(
    text: str, limit: int
) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    directions = {unicodedata.bidirectional(char) for char in shown}
    assert not directions & {
        "R",
        "AL",
        "AN",
        "RLE",
        "LRE",
        "RLO",
        "LRO",
        "PDF",
        "RLI",
        "LRI",
        "FSI",
    }
    assert re.search(r"\w" + MARKS * 3, shown) is None, "three marks on a letter"
    assert printable(shown, limit) == shown, "and what is shown is shown again as it is"


MARKS = f"[{''.join(map(chr, range(0x300, 0x34F)))}]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\x1b[2Jc\u202ed\udc80", "a\\nb\\x1b[2Jc\\u202ed\\udc80"),
        ("\x9b31m\x85", "\\x9b31m\\x85"),  # C1: CSI and NEL
        ("\u2028\u2029\x0b\x1c", "\\u2028\\u2029\\x0b\\x1c"),
        ("a\u200bb\u200dc\u2060\ufeff\xad", "a\\u200bb\\u200dc\\u2060\\ufeff\\xad"),
        ("\u2066a\u2069", "\\u2066a\\u2069"),
        ("\u05e9\u05dc 12", "\\u05e9\\u05dc 12"),  # Hebrew letters: digits would go round them
        ("\u3164\u115f\u2800\ufe0f", "\\u3164\\u115f\\u2800\\ufe0f"),
        ("\xa0\u3000", "\\xa0\\u3000"),  # spaces that are none
        ("\u0301x", "\\u0301x"),
        ("Z" + "\u0310" * 4, "Z" + "\u0310" * 2 + "\\u0310" * 2),
        ("\U000e0041", "\\U000e0041"),  # a tag
        ("\U0010ffff\ue000", "\\U0010ffff\\ue000"),
    ],
)
def test_what_can_not_be_shown_is_spelt(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "/srv/caf\xe9",
        "cafe\u0301",
        "\u65e5\u672c\u8a9e",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
        "\u0e01\u0e33\u0e25\u0e31",
        "\u20ac \U0001f600",
        "~!",
    ],
)
def test_what_can_be_shown_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_a_long_name_does_not_hide_the_reason() -> None:
    said = str(HardspliceError("open", "x" * 10000, "Permission denied"))
    assert len(said) <= SHOWN_LIMIT
    assert said.endswith("...: Permission denied")


def test_nobody_who_does_not_take_a_message_is_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    print_lines(["text"], writer)
    os.close(writer)
    print_lines(["text"], writer)


def test_what_is_taken_in_pieces_is_written_whole() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    data = bytes(range(256)) * 64
    taken: list[bytes] = []
    with open(reader, "rb", buffering=0) as file:
        reading = threading.Thread(target=lambda: taken.extend(iter(lambda: file.read(1000), b"")))
        reading.start()
        write_all(writer, data)
        os.close(writer)
        reading.join()
    assert b"".join(taken) == data


def test_a_quotation_is_cut_where_it_is_very_long() -> None:
    assert quote("x" * 64) == "'" + "x" * 64 + "'"
    assert quote("x" * 65) == "'" + "x" * 61 + "...'"


def test_a_name_with_lines_of_its_own_stays_in_its_place() -> None:
    failure = HardspliceError("use", "folder a\nb", "no\nroom", "make\nsome")
    told = error_of(text_of(failure))
    assert str(told) == str(failure) == r"cannot use folder a\nb: no\nroom"
    assert in_a_line(told) == in_a_line(failure) == rf"{failure}; make\nsome"
