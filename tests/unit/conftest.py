# SPDX-License-Identifier: GPL-2.0-or-later
"""What the unit tests share."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_garbage() -> Iterator[None]:
    """What lies about in circles, event loops for one, holds descriptors: it is gone before the
    next module counts those.
    """
    yield
    gc.collect()
    gc.freeze()  # what is left stays, and isn't looked through again


@pytest.fixture(autouse=True)
def no_process() -> Iterator[None]:
    """Who starts a process is no unit test. The kernel counts the faults of children, however they
    were made, as soon as they were waited for.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    yield
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    assert after == before, "a test that starts a process belongs into tests/integration"
