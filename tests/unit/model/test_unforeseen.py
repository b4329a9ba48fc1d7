# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors that nobody has put into words: the system's words, and the limit that was met."""

from __future__ import annotations

import errno
import os

import pytest

from hardsplice.model.errors import HardspliceError
from hardsplice.model.unforeseen import as_error, next_step


def told(error: BaseException) -> HardspliceError:
    return as_error(error, "start", "hardsplice")


@pytest.mark.parametrize(
    ("error", "reason", "hint"),
    [
        (OSError(errno.EMFILE, "x", "/proc/self/uid_map"), errno.EMFILE, "ulimit -n"),
        (OSError(errno.ENFILE, "x"), errno.ENFILE, "fs.file-max"),
        (BlockingIOError(errno.EAGAIN, "x"), errno.EAGAIN, "ulimit -u"),
        (OSError(errno.EFBIG, "x"), errno.EFBIG, "ulimit -f"),
        (SystemError("error return without exception set"), errno.ENOMEM, None),
        (SystemError("f returned NULL without setting an exception"), errno.ENOMEM, None),
        (SystemError("f returned a result with an exception set"), errno.ENOMEM, None),
        (ValueError("field 'args' is required for FunctionDef"), errno.ENOMEM, None),
        (OSError("libx.so: cannot create shared object descriptor"), errno.ENOMEM, None),
        (MemoryError("x"), errno.ENOMEM, None),  # without a limit there is nothing to raise
        (ImportError("/lib/x.so: failed to map segment from shared object"), errno.ENOMEM, None),
        (OSError("libx.so: cannot open shared object file: Error 24"), errno.EMFILE, "ulimit -n"),
    ],
)
def test_a_limit_is_named(error: Exception, reason: int, hint: str | None) -> None:
    failure = told(error)
    assert str(failure) == f"cannot start hardsplice: {os.strerror(reason)}"
    assert (failure.hint is None) if hint is None else (hint in (failure.hint or ""))


@pytest.mark.parametrize(
    "error", [OSError(errno.EPERM, "x"), ValueError("x"), SystemError("bad argument"), None]
)
def test_what_is_no_limit_has_no_such_step(error: BaseException | None) -> None:
    assert next_step(error) is None


def joined(own: str | None) -> None:
    try:
        raise OSError(errno.EMFILE, "x")
    except OSError as error:
        raise HardspliceError("join", "process 1", "why", own) from error


@pytest.mark.parametrize("own", [None, "do that"])
def test_a_failure_that_a_limit_caused_gets_the_step_if_it_has_none(own: str | None) -> None:
    with pytest.raises(HardspliceError) as caught:
        joined(own)
    failure = told(caught.value)
    assert failure is caught.value
    assert failure.hint == (own or "raise the limit with ulimit -n")


def fails() -> None:
    raise KeyError("what")


def test_any_other_error_says_where_it_was() -> None:
    with pytest.raises(KeyError) as caught:
        fails()
    line = fails.__code__.co_firstlineno + 1
    assert told(caught.value).reason == f"KeyError in fails, line {line}: 'what'"
    with pytest.raises(OSError, match="nonexistent") as missing:
        os.stat("/nonexistent")
    assert told(missing.value).reason.startswith("/nonexistent: No such file or directory in ")
