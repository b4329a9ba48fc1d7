# SPDX-License-Identifier: GPL-2.0-or-later
"""What is put at a place is written down, and so nothing else puts anything there."""

from __future__ import annotations

import ast

from tests.support.sources import MODULES, parsed

# Who copies descriptors itself: to the numbers of standard streams, or in a program that never
# reserves places.
OTHERS = {"cli.output", "frontends.rootlessport", "frontends.stub", "telemetry.log"}


def copies(name: str) -> bool:
    """Whether a module has a call of dup2(2)."""
    return any(
        isinstance(node, ast.Attribute) and node.attr.startswith("dup2")
        for node in ast.walk(parsed(MODULES[name]))
    )


def test_only_one_module_has_descriptors_at_numbers_of_its_choice() -> None:
    assert {name for name in MODULES if copies(name)} == {*OTHERS, "ipc.descriptors"}
