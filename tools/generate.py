# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made from the product's tables, and is in the tree for those who package it and read it:

    python -m tools.generate            writes it
    python -m tools.generate --check    says what is not as the tables have it

In a manual it stands between two comments, and all around it is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tools import reference

ROOT = Path(__file__).resolve().parents[1]
_BEGIN, _END = '.\\" From here on made by tools/generate.py: {}', '.\\" As far as here.'

# Parts of manuals: the page, the part's name, and what makes its lines.
PARTS: tuple[tuple[str, str, Callable[[], list[str]]], ...] = (
    ("packaging/man/hardsplicectl.1", "metrics", reference.metrics),
    ("packaging/man/hardsplicectl.1", "answers", reference.answers),
)


def generated() -> dict[Path, str]:
    """Each file, and what is to be in it."""
    texts: dict[Path, str] = {}
    for name, part, make in PARTS:
        path = ROOT / name
        text = texts.get(path) or path.read_text(encoding="ascii")
        texts[path] = _with_part(text, part, make())
    return texts


def _with_part(page: str, part: str, lines: Sequence[str]) -> str:
    begin = _BEGIN.format(part)
    whole = re.compile(f"^{re.escape(begin)}\n.*?^{re.escape(_END)}$", re.MULTILINE | re.DOTALL)
    text, found = whole.subn(lambda _: "\n".join([begin, *lines, _END]), page)
    if found != 1:
        raise ValueError(f"{found} places for {part}")
    return text


def main(words: Sequence[str]) -> int:
    """Write, or check; the exit status."""
    stale = {path: text for path, text in generated().items() if path.read_text() != text}
    for path, text in stale.items():
        if "--check" in words:
            print(f"{path.relative_to(ROOT)} is not as the tables have it: make generate")
        else:
            path.write_text(text, encoding="ascii")
    return int(bool(stale) and "--check" in words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
