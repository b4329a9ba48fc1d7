# SPDX-License-Identifier: GPL-2.0-or-later
"""What the unit tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.support.children import none_started


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
    """Who starts a process is no unit test."""
    with none_started():
        yield
