# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command answers on standard output: an answer for which there is no room is an error."""

from __future__ import annotations

import argparse
import os
import sys

from hardsplice.model.errors import Failure, reason_of


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help and version are answers."""

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002
        if not message or sys.stdout is None:  # the shell closed it
            return
        try:
            sys.stdout.write(message)
            sys.stdout.flush()
        except OSError as error:
            failure = lost(error, "the answer")
            if failure is None:
                self.exit(1)
            raise failure from error


def lost(error: OSError, what: str) -> Failure | None:
    """What there is to say where standard output takes no more; nothing where whoever reads it has
    seen enough.
    """
    # What is still buffered would raise again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return None if isinstance(error, BrokenPipeError) else Failure("write", what, reason_of(error))
