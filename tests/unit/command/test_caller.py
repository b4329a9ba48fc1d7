# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be known of the caller's ignored signals."""

from __future__ import annotations

import signal

import pytest

from hardsplice.command.caller import ignored_by

PIPE, FSZ = int(signal.SIGPIPE), int(signal.SIGXFSZ)


@pytest.mark.parametrize(
    ("name", "mask", "expected"),
    [
        ("bash", 0, set()),
        ("bash", 1 << (PIPE - 1), {PIPE}),
        ("dash", 1 << (PIPE - 1) | 1 << (FSZ - 1) | 1, {PIPE, FSZ}),
        ("systemd", 1 << (PIPE - 1), {PIPE}),
        ("python3", 1 << (PIPE - 1) | 1 << (FSZ - 1), set()),  # it restores them for its children
        ("fish", 1 << (PIPE - 1), set()),  # and so does whatever is written in Rust
    ],
)
def test_by_whom_it_was_started(name: str, mask: int, expected: set[int]) -> None:
    status = f"Name:\t{name}\nUmask:\t0022\nSigIgn:\t{mask:016x}\nSigCgt:\t0000000000000000\n"
    assert ignored_by(status) == expected


def test_a_status_that_says_nothing_is_no_error() -> None:
    assert ignored_by("") == ignored_by("Name:\tsh\n") == frozenset()
