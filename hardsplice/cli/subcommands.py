# SPDX-License-Identifier: GPL-2.0-or-later
"""The parser of the commands that have subcommands: hardsplicectl, and the policy tool."""

from __future__ import annotations

import argparse

from hardsplice.cli import output


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help and version are answers."""

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002
        output.answer(message)
