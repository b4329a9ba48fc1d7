# SPDX-License-Identifier: GPL-2.0-or-later
"""Which descriptors this process has open."""

from __future__ import annotations

import os


def open_descriptors() -> set[int]:
    """All of them, but for the one that the listing itself takes, which is closed by then."""
    return {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
