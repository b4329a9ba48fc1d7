# SPDX-License-Identifier: GPL-2.0-or-later
"""Small programs that need a process of their own: one whose memory, descriptors and limits nobody
else has changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def output(program: str, *, passed: tuple[int, ...] = ()) -> str:
    """What a Python program prints, which can import what we can; it says nothing else, and ends
    well. It inherits the descriptors ``passed``.
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        pass_fds=passed,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
