# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplice in an interpreter in which somebody has registered hooks for each fork; also as a
user whose Python has none of the tests' packages.
"""

from __future__ import annotations

import sys

# A sitecustomize as distributions and profilers have them, and worse: each fork after lock-down
# makes a socket, and the filter kills whoever does.
HOOK = """
import os, random, logging, socket

os.register_at_fork(
    before=lambda: socket.socket(socket.AF_UNIX).close(),
    after_in_parent=lambda: socket.socket(socket.AF_UNIX).close(),
    after_in_child=lambda: socket.socket(socket.AF_UNIX).close(),
)
"""

if __name__ == "__main__":
    exec(HOOK)
    from hardsplice.app.start import main

    sys.exit(main(sys.argv[1:]))
