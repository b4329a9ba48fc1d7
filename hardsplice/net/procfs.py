# SPDX-License-Identifier: GPL-2.0-or-later
"""The first requirement of a start: a /proc that shows our PID namespace. A sandbox's file system,
or a PID namespace that was created by hand, may lack it.
"""

from __future__ import annotations

import os

from hardsplice.model.errors import HardspliceError, reason_of

_MOUNT_HINT = (
    "mount one: mount -t proc proc /proc; unshare(1) does that with --mount-proc, bubblewrap with "
    "--proc /proc"
)


def refuse_without_proc() -> None:
    """HardspliceError where /proc isn't mounted."""
    _own_number()


def refuse_others_proc() -> None:
    """HardspliceError where /proc shows another PID namespace: its numbers then belong to other
    processes than we and our caller mean.
    """
    if _own_number() != str(os.getpid()):
        raise HardspliceError(
            "use", "/proc", "it shows another PID namespace than this one", _MOUNT_HINT
        )


def _own_number() -> str:
    try:
        return os.readlink("/proc/self")
    except OSError as error:
        raise HardspliceError(
            "use", "/proc", f"/proc/self: {reason_of(error)}", _MOUNT_HINT
        ) from error
