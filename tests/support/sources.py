# SPDX-License-Identifier: GPL-2.0-or-later
"""The package's sources, parsed once for all tests that look through them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import hardsplice

PACKAGE = Path(hardsplice.__file__).parent
#: Each module's file, by its name within the package; a room's own name is its __init__.
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


@cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax tree, which nobody changes."""
    return ast.parse(path.read_text(encoding="utf-8"))
