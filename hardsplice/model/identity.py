# SPDX-License-Identifier: GPL-2.0-or-later
"""The user and group that processes run as. Pure."""

from __future__ import annotations

from hardsplice.kernel.record import NamedTuple


class RunAs(NamedTuple):
    """The user and group to change to when started as root."""

    uid: int
    gid: int


OWN = RunAs(-1, -1)
"""A user ID of this instance's own, chosen at its start (users.own_user)."""
