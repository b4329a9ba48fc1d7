# SPDX-License-Identifier: GPL-2.0-or-later
"""A launcher: the product as it is, but its host monitor says at its end what was imported after
lock-down. Where the filter would kill a process that opens a file, this names the module.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def launch() -> int:
    """Run the product."""
    from hardsplice.app.start import main
    from hardsplice.monitor.host import HostMonitor

    run, close = HostMonitor.run, HostMonitor.close
    before: set[str] = set()

    def noting(self: Any) -> int:
        before.update(sys.modules)
        return run(self)

    def telling(self: Any) -> None:
        close(self)
        names = sorted(set(sys.modules) - before)
        os.write(2, f"imported after lock-down: {' '.join(names) or 'nothing'}\n".encode())

    HostMonitor.run = noting  # type: ignore[method-assign]
    HostMonitor.close = telling  # type: ignore[method-assign]
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(launch())
