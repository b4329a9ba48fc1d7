# SPDX-License-Identifier: GPL-2.0-or-later
"""Podman's rootlessport: what publishes ports of rootless containers in bridge networks.

Podman starts it without arguments and writes a request, a JSON object, to its standard input. An
error is text on standard output, with a status other than 0; a byte on the descriptor ReadyFD says
that all ports are there; the end of file of ExitFD ends it. The process that was started stays the
one that serves. Where the request says so, a socket takes the container's new address
(frontends/reload.py).
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from hardsplice import isolated


def main() -> int:
    """Serve one request of Podman's until the container ends; the exit status."""
    isolated.begin("hardsplice.frontends.rootlessport")
    isolated.restore_environment()
    began = time.monotonic()
    from hardsplice.app.frontend import in_a_line
    from hardsplice.frontends import rootlessport_request
    from hardsplice.model.errors import HardspliceError, write_all
    from hardsplice.model.unforeseen import as_error

    def form(failure: HardspliceError) -> bytes:
        return in_a_line(failure).encode(errors="backslashreplace") + b"\n"

    try:
        rootlessport_request.serve(sys.argv[1:], form, began)
    except Exception as error:  # noqa: BLE001 - the last resort: one line, and no traceback
        failure = as_error(error, "start", "hardsplice")
        with suppress(OSError):
            write_all(1, form(failure))
        return failure.status
    os._exit(1)  # it does not return


if __name__ == "__main__":
    sys.exit(main())
