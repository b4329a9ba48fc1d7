# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command answers on standard output: an answer for which there is no room is an error."""

from __future__ import annotations

import os
import sys

from hardsplice.model.errors import Failure, reason_of


def answer(text: str) -> None:
    """Answer a question such as --help. Failure where there is no room; SystemExit where whoever
    reads it has seen enough.
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


def lost(error: OSError, what: str) -> Failure | None:
    """What there is to say where standard output takes no more; nothing where whoever reads it has
    seen enough.
    """
    # What is still buffered would raise again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return None if isinstance(error, BrokenPipeError) else Failure("write", what, reason_of(error))
