# SPDX-License-Identifier: GPL-2.0-or-later
"""Podman's rootlessport: what publishes ports of rootless containers in bridge networks.

Podman starts it without arguments and writes a request, a JSON object, to its standard input. An
error is text on standard output, with a status other than 0; a byte on the descriptor ReadyFD says
that all ports are there; the end of file of ExitFD ends it. The process that was started stays the
one that serves. Where the request says so, a socket takes the container's new address
(frontends/reload.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from hardsplice.app import start
from hardsplice.app.frontend import Frontend, in_a_line
from hardsplice.frontends import reload, rootlessport_request
from hardsplice.model.errors import HardspliceError, write_all
from hardsplice.model.unforeseen import as_error

READY = b"1"
LATE = 4  # one port after the other is forgotten and added again


def main() -> int:
    """Serve one request until the container ends; or tell why not: the exit status."""
    began = time.monotonic()
    try:
        serve(sys.argv[1:], began)
    except Exception as error:  # noqa: BLE001 - the last resort: one line, and no traceback
        failure = as_error(error, "start", "hardsplice")
        with contextlib.suppress(OSError):
            write_all(1, form(failure))
        return failure.status


def serve(argv: Sequence[str], began: float) -> NoReturn:
    """Read the request and serve it, in this process. HardspliceError where it can't be had or is
    wrong. The start ``began`` then, in CLOCK_MONOTONIC seconds.
    """
    if argv:
        reason = "it takes a request on standard input, and no arguments"
        raise HardspliceError("use", "arguments of rootlessport", reason)
    request = rootlessport_request.parse(rootlessport_request.read(0))
    make_service = partial(reload.Reload, request.socket) if request.socket else None
    failures = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    frontend = Frontend(failures, form, READY, late=LATE, make_service=make_service)
    start.serve(rootlessport_request.options_of(request), frontend, began)


def form(failure: HardspliceError) -> bytes:
    """A failure as Podman shows it, behind the program's name."""
    return in_a_line(failure).encode(errors="backslashreplace") + b"\n"
