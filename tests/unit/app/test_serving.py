# SPDX-License-Identifier: GPL-2.0-or-later
"""What the control socket is told of a start."""

from __future__ import annotations

import pytest

from hardsplice.app.command_line import parse_args
from hardsplice.app.serving import label


@pytest.mark.parametrize(
    ("words", "command", "shown"),
    [
        (["--netns", "blue"], "", "blue"),
        (["--netns", "/run/netns/blue"], "", "blue"),
        (["--netns", "/proc/7/ns/net"], "", "/proc/7/ns/net"),
        (["--netns", "/run/user/bl\udcffe"], "", "/run/user/bl\\udcffe"),
        (["7"], "", "7"),
        (["./server"], "./server", "./server"),
        ([], "/bin/sh", "/bin/sh"),
    ],
)
def test_what_metrics_call_the_namespace(words: list[str], command: str, shown: str) -> None:
    assert label(parse_args(["-t", "8080", *words]), command) == shown
