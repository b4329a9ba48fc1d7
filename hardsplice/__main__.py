# SPDX-License-Identifier: GPL-2.0-or-later
"""Where hardsplice starts. The console script calls `main`, `python -m hardsplice` does too.

Nothing is imported here that isn't there already when Python has started: what stands in the
current directory or on PYTHONPATH must not get in before there is an interpreter of our own.
"""

from __future__ import annotations

import sys

from hardsplice import isolated


def main() -> int:
    """Run hardsplice with the words of the command line; the exit status."""
    isolated.begin("hardsplice.__main__")
    isolated.restore_environment()  # it becomes COMMAND's
    from hardsplice.app import start

    return start.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
