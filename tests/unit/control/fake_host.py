# SPDX-License-Identifier: GPL-2.0-or-later
"""A host monitor of which the control socket reads everything and changes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from hardsplice.control.host import Control, HostWorld
from hardsplice.control.server import Admission
from hardsplice.monitor import loops
from hardsplice.monitor.registry import Registry
from hardsplice.telemetry.flow_log import Traffic
from hardsplice.telemetry.log import Level, Log


def world_of(traffic: Sequence[Traffic], lacking: Sequence[str] = ()) -> HostWorld:
    """What the control socket shows of a monitor with these counters, and without these layers."""
    monitor = SimpleNamespace(
        traffic=traffic,
        lacking=list(lacking),
        registry=Registry([], 1, frozenset(), None, lambda _: None, loops.check),
        log=Log(Level.ERROR, "text", ""),
        loop=None,
    )
    admission = Admission(frozenset(), None)
    control = Control(-1, None, admission, (4, 6), "process 7", 7, "7", time.monotonic())
    return HostWorld(cast(Any, monitor), control)
