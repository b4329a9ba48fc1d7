# SPDX-License-Identifier: GPL-2.0-or-later
"""Output of a command on standard output: if there is no room for it, that is an error."""

from __future__ import annotations

import os
import sys

from hardsplice.model.errors import HardspliceError, reason_of


def answer(text: str) -> None:
    """Print an answer, such as that to --help. HardspliceError if there is no room; SystemExit if
    its reader has closed the pipe.
    """
    if not text or sys.stdout is None:  # the shell closed it
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        failure = lost(error, "the answer")
        if failure is None:
            raise SystemExit(1) from None
        raise failure from error


def lost(error: OSError, what: str) -> HardspliceError | None:
    """The error if standard output takes no more; none if its reader has closed the pipe."""
    # What is still buffered would raise again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return (
        None
        if isinstance(error, BrokenPipeError)
        else HardspliceError("write", what, reason_of(error))
    )
