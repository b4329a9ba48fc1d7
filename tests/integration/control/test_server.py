# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket's server, for long."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

from tests.unit.control.served import Served


def test_ten_thousand_connections_leave_nothing(tmp_path: Path) -> None:
    with contextlib.closing(Served(tmp_path / "control")) as served:
        served.connect_and_leave(100)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        served.connect_and_leave(10_000)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2048  # KiB
