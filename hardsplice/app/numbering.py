# SPDX-License-Identifier: GPL-2.0-or-later
"""Where descriptors of flows begin, behind the places of listeners."""

from __future__ import annotations

from hardsplice.app.options import Options
from hardsplice.ipc import descriptors


def first_flow(options: Options, passed: int, ports: int, limit: int) -> int:
    """The first descriptor behind the places: for what the options name, for so many listeners that
    the service manager has ``passed``, and, where ports may change, for what comes later, which is
    so many ``ports`` at least. ``limit`` is that of descriptors.
    """
    listening = max(len(options.inbound), len(options.outbound)) + passed
    late = max(ports, descriptors.late(limit)) if options.dynamic else 0
    return descriptors.first_flow(listening + late)
