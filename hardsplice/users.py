# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom hardsplice's own processes run as."""

from __future__ import annotations

import os

from hardsplice import namespaces
from hardsplice.errors import Failure
from hardsplice.values import RunAs

NOBODY = RunAs(65534, 65534)


def own_user(asked: RunAs | None) -> RunAs | None:
    """Whom hardsplice's own processes become: what was asked for, or nobody when started as the
    real root.
    """
    if asked is not None:
        if os.geteuid() not in (0, asked.uid):
            hint = "leave --runas out, or start hardsplice as root"
            raise Failure("become", f"user {asked.uid}", "only root may", hint)
        return asked
    return NOBODY if os.geteuid() == 0 and namespaces.owns_all_ids() else None
