# SPDX-License-Identifier: GPL-2.0-or-later
"""System call numbers of an architecture, from the kernel's headers (tests/policy/numbers.tsv)."""

from __future__ import annotations

from pathlib import Path

TABLE = Path(__file__).parents[1] / "policy" / "numbers.tsv"


def of(arch: str) -> dict[str, int]:
    """The number of each call that the architecture has."""
    lines = (line.split("\t") for line in TABLE.read_text(encoding="ascii").splitlines())
    rows = [line for line in lines if len(line) > 1]
    column = rows[0].index(arch)
    return {row[0]: int(row[column]) for row in rows[1:] if row[column] != "-"}
