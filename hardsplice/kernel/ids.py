# SPDX-License-Identifier: GPL-2.0-or-later
"""Who we are outside of our user namespace, as far as it says."""

from __future__ import annotations

import os


def owns_all_ids() -> bool:
    """Whether this user namespace maps every user ID, as the initial one does."""
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        return lines.read().split() == ["0", "0", "4294967295"]


def is_real_root() -> bool:
    """Whether we are root of the machine (or of a container that maps every id as it is)."""
    return os.geteuid() == 0 and owns_all_ids()
