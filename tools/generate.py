# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made from the product's tables, and is in the tree for those who package it and read it:

    python -m tools.generate            writes it
    python -m tools.generate --check    says what is not as the tables have it

It stands between two comments, and all around it is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tools import completions, policies, reference

ROOT = Path(__file__).resolve().parents[1]
_BEGIN, _END = "From here on made by tools/generate.py: {}", "As far as here."
_COMPLETIONS = "packaging/completions"

# Parts of files: the file, the part's name, and what makes its lines.
PARTS: tuple[tuple[str, str, Callable[[], list[str]]], ...] = (
    ("packaging/man/hardsplicectl.1", "metrics", reference.metrics),
    ("packaging/man/hardsplicectl.1", "answers", reference.answers),
    ("hardsplice/sandbox/policy/rules.py", "policies", policies.table),
    (f"{_COMPLETIONS}/hardsplice.bash", "bash, options", completions.bash_options),
    (f"{_COMPLETIONS}/hardsplice.bash", "bash, with values", completions.bash_with_values),
    (f"{_COMPLETIONS}/hardsplice.bash", "bash, values", completions.bash_values),
    (f"{_COMPLETIONS}/_hardsplice", "zsh", completions.zsh),
    (
        f"{_COMPLETIONS}/hardsplice.fish",
        "fish, as argparse has them",
        completions.fish_argparse,
    ),
    (f"{_COMPLETIONS}/hardsplice.fish", "fish", completions.fish),
    (f"{_COMPLETIONS}/hardsplicectl.bash", "ctl bash, options", completions.ctl_bash_options),
    (f"{_COMPLETIONS}/hardsplicectl.bash", "ctl bash, words", completions.ctl_bash_words),
    (f"{_COMPLETIONS}/_hardsplicectl", "ctl zsh", completions.ctl_zsh),
    (f"{_COMPLETIONS}/hardsplicectl.fish", "ctl fish", completions.ctl_fish),
)


def generated() -> dict[Path, str]:
    """Each file, and what is to be in it."""
    texts: dict[Path, str] = {}
    for name, part, make in PARTS:
        path = ROOT / name
        text = texts.get(path) or path.read_text(encoding="ascii")
        texts[path] = _with_part(text, part, make())
    return texts


def _with_part(text: str, part: str, lines: Sequence[str]) -> str:
    """The text with these lines between the part's comments, as far in as they are."""
    whole = re.compile(
        rf"^(?P<margin> *)(?P<comment>\S+) {re.escape(_BEGIN.format(part))}\n"
        rf"(?:.*\n)*?(?P<end> *\S+ {re.escape(_END)})$",
        re.MULTILINE,
    )
    found = list(whole.finditer(text))
    if len(found) != 1:
        raise ValueError(f"{len(found)} places for {part}")
    (place,) = found
    begin = place[0].partition("\n")[0]
    inside = "".join(f"{place['margin']}{line}\n" for line in lines)
    return f"{text[: place.start()]}{begin}\n{inside}{place['end']}{text[place.end() :]}"


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
