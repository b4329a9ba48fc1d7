# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose mounts they are, asked in new user namespaces."""

from __future__ import annotations

import subprocess
import sys


def test_mounts_of_another_user_namespace_are_not_ours() -> None:
    """As in one that was just created. There the kernel refuses pivot_root itself."""
    code = "from hardsplice.sandbox import refusals; print(refusals._owns_mounts())"
    said = {}
    for options in (["--user"], ["--user", "--mount"]):
        command = ["unshare", "--map-root-user", *options, sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        said[options[-1]] = done.stdout.strip()
    assert said == {"--user": "False", "--mount": "True"}
