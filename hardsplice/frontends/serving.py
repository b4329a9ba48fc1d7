# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a server of ports (frontends/server.py), up to where it serves: what the process does
that a program starts for it. Programs import this only where they start one.
"""

from __future__ import annotations

import os
import time

from hardsplice.app import start
from hardsplice.app.options import for_service
from hardsplice.app.service import Besides
from hardsplice.frontends.place import Place
from hardsplice.frontends.server import Server
from hardsplice.ipc import sd_notify


def serve(path: str, place: Place) -> None:
    """Serve at ``path``, in the background, what a ``place`` says; return once all of it is locked
    down. HardspliceError where that failed.

    Whoever started us may be supervised: nothing is told in its name.
    """
    began = time.monotonic()
    sd_notify.forget(os.environ)
    options = for_service(place.netns, quits=place.quits)
    start.launch(options, began, Besides(lambda: Server(path), place.ports))
