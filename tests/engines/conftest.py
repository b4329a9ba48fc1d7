# SPDX-License-Identifier: GPL-2.0-or-later
"""What several tests of engines' programs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containers import Containers
from tests.support.frontends import executable
from tests.support.netns import Identity, Namespace
from tests.support.product import Program


@pytest.fixture
def containers(program: Program, tmp_path: Path) -> Iterator[Containers]:
    """Containers of one namespace, of root's."""
    script = executable(tmp_path / "rootlessport", program.stage(), "rootlessport")
    with Namespace(Identity("root")) as namespace:
        made = Containers(script, tmp_path, namespace, Identity("root"))
        yield made
        made.close()
