# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a server of ports (frontends/server.py), up to where it serves: what the process does
that a program starts for it. Programs import this only where they start one.

What it needs is imported while another process compiles the filters.
"""

from __future__ import annotations

import os
import time

from hardsplice.app import filters, numbering
from hardsplice.app.filters import Programs
from hardsplice.app.options import Options, for_service
from hardsplice.frontends.place import Place
from hardsplice.ipc import descriptors
from hardsplice.kernel.record import NamedTuple


class Prepared(NamedTuple):
    """What a server is started with."""

    options: Options
    ports: int  # for how many there are to be places, at least
    programs: Programs | None  # of its processes


def prepare(place: Place) -> Prepared:
    """Get ready to serve what a ``place`` says: import what that takes, and compile the filters."""
    options = for_service(place.netns, quits=place.quits)
    _, limit = descriptors.raise_limit()
    first_flow = numbering.first_flow(options, 0, place.ports, limit)
    compiling = filters.Ahead(options, first_flow, has_control=True)
    from hardsplice.app import stages

    stages.prepare(options)
    from hardsplice.frontends import server as _  # noqa: F401 - and with it what it needs

    return Prepared(options, place.ports, compiling.take())


def serve(path: str, prepared: Prepared) -> None:
    """Serve at ``path``, in the background; return once all of it is locked down. HardspliceError
    where that failed.

    Whoever started us may be supervised: nothing is told in its name.
    """
    from hardsplice.app import start
    from hardsplice.app.service import Besides
    from hardsplice.frontends.server import Server
    from hardsplice.ipc import sd_notify

    began = time.monotonic()
    sd_notify.forget(os.environ)
    besides = Besides(lambda: Server(path), prepared.ports, prepared.programs)
    start.launch(prepared.options, began, besides)
