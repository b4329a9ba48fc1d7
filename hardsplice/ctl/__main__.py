# SPDX-License-Identifier: GPL-2.0-or-later
"""Where hardsplicectl starts, in an interpreter of its own as hardsplice does."""

from __future__ import annotations

import sys

from hardsplice import isolated


def main() -> int:
    """Run hardsplicectl with the words of the command line; the exit status."""
    isolated.begin("hardsplice.ctl.__main__")
    import gc

    from hardsplice.ctl import commands

    gc.enable()  # some commands go on
    return commands.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
