# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made from tables is in the tree as the tables have it, and the tables have all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hardsplice.control import report
from hardsplice.control.metrics import METRICS
from hardsplice.control.routes import ROUTES
from hardsplice.ctl import show
from hardsplice.telemetry.counters import COUNTERS, KEPT
from tools import generate, reference

GENERATED = generate.generated()


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_a_generated_file_is_as_the_tables_have_it(path: Path) -> None:
    assert path.read_text(encoding="ascii") == GENERATED[path], "make generate"


def test_a_part_that_is_not_in_its_page_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 places for nothing"):
        generate._with_part("a page", "nothing", [])


def test_the_reference_has_every_answer_that_is_json() -> None:
    titles = " ".join(title for title, _ in reference.ANSWERS)
    for path, methods in ROUTES.items():
        for method in methods:
            if method != "DELETE" and path != "/metrics":  # an empty answer, and no JSON
                assert f"{method} {path}" in titles


def test_every_help_is_a_sentence() -> None:
    helps = [field.help for _, fields in reference.ANSWERS for field in fields]
    helps += [one.help for one in METRICS]
    assert all(text.endswith(".") and text.isprintable() for text in helps)


def test_what_hardsplicectl_shows_of_counters_is_counted() -> None:
    assert {*show.COUNTED, *show.MOVED, "restarts"} <= {*COUNTERS, *KEPT}
    assert {"counters", "relays", "flows", "ports"} <= {field.name for field in report.DIRECTION}
