# SPDX-License-Identifier: GPL-2.0-or-later
"""A listening socket as a relay has it, and where its connections go."""

from __future__ import annotations

from hardsplice.kernel.record import NamedTuple
from hardsplice.sandbox.address_book import Pointer

Route = tuple[Pointer, ...]
"""The candidates for a target, in the order in which they are tried."""


class Listener(NamedTuple):
    """A listening socket and where its connections go.

    A dual-stack listener has a route for clients of each family; for one of one family both are the
    same.
    """

    fd: int
    route_ipv4: Route
    route_ipv6: Route
    port_id: int  # the ID of its forward
    port: int = 0  # its own
