# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a test starts a process, however it does."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@contextlib.contextmanager
def none_started() -> Iterator[None]:
    """Fail if a process was started within. The kernel counts the faults of children as soon as
    they were waited for; the others are still there.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt, _has_children()
    yield
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt, _has_children()
    assert after == before, "a test that starts a process belongs into tests/integration"
