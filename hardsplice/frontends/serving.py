# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a server of ports (frontends/server.py), up to where it serves: what the process does
that a program starts for it. Programs import this only where they start one.

Somebody waits for it. So what it needs is imported while another process compiles the filters, and
while the user's service manager gives it a unit of its own.
"""

from __future__ import annotations

import os
import time

from hardsplice.app import start
from hardsplice.app.options import Options, for_service
from hardsplice.app.service import Besides
from hardsplice.frontends.place import Place
from hardsplice.ipc import descriptors, sd_notify
from hardsplice.kernel.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from hardsplice.app.filters import Programs
    from hardsplice.frontends.server import Server


def serve(path: str, place: Place) -> None:
    """Serve at ``path``, in the background, what a ``place`` says; return once all of it is locked
    down. HardspliceError where that failed.

    Whoever started us may be supervised: nothing is told in its name.
    """
    began = time.monotonic()
    sd_notify.forget(os.environ)
    options = for_service(place.netns, quits=place.quits)
    besides = Besides(lambda: _server(path), place.ports, lambda: _prepared(options, place.ports))
    start.launch(options, began, besides)


def _prepared(options: Options, ports: int) -> Programs | None:
    """Import what it takes to serve; the filters, as far as that worked."""
    from hardsplice.app import filters, numbering
    from hardsplice.frontends import scope

    _, limit = descriptors.raise_limit()
    first_flow = numbering.first_flow(options, 0, ports, limit)
    compiling = filters.Ahead(options, first_flow, has_control=True)
    with scope.leaving_unit():
        from hardsplice.app import stages

        stages.prepare(options)
        from hardsplice.frontends import server as _  # noqa: F401 - and with it what it needs
    return compiling.take()


def _server(path: str) -> Server:
    from hardsplice.frontends.server import Server

    return Server(path)
