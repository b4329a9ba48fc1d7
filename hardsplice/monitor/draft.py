# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of one group of relays, up to what only shows in the namespace in which they
connect: which families it has.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence

from hardsplice.kernel.record import NamedTuple
from hardsplice.model.families import ALL_FAMILIES
from hardsplice.model.protocol import Protocol
from hardsplice.net import listeners
from hardsplice.net.listener import Listener
from hardsplice.net.listeners import Bound
from hardsplice.relay import main as relay
from hardsplice.sandbox.address_book import Book
from hardsplice.telemetry.counters import Stats


def has_part(plan: relay.Plan, number: int, port_id: int) -> bool:
    """Whether the relay with this number, from 0, among those of ``plan`` serves a port. TCP's all
    serve every port. Of UDP each port is one relay's, since a client's datagrams must not be split
    among several.
    """
    return plan.protocol is Protocol.TCP or port_id % plan.workers == number


def _part(plan: relay.Plan, number: int) -> tuple[Listener, ...]:
    return tuple(one for one in plan.listeners if has_part(plan, number, one.port_id))


class Draft(NamedTuple):
    """What is known before that."""

    common: relay.Plan  # to all of the relays, but for listeners and families
    bound: Sequence[Bound]  # their listeners
    book: Book  # of the addresses that they connect to
    stats: Sequence[Stats]  # one for each relay

    def plans(self, families: Sequence[int]) -> tuple[relay.Plan, ...]:
        """The plans of the relays, which differ in their counters only, for a namespace that has
        these ``families``; none if nothing is or can be listened on. HardspliceError if there are
        too few descriptors.
        """
        common = self.common
        if not self.bound and not common.is_dynamic:
            return ()
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        relay.pool_sizes(descriptors, relay.fixed_use(common.first_flow), common.workers)
        made = tuple(self._listener(one, families) for one in self.bound)
        used = {target.family for one in made for target in (*one.route_ipv4, *one.route_ipv6)}
        if common.is_dynamic:
            used.update(families)
        plan = common._replace(listeners=made, families=tuple(sorted(used)))
        return tuple(
            plan._replace(stats=stats, listeners=_part(plan, number))
            for number, stats in enumerate(self.stats)
        )

    def _listener(self, bound: Bound, families: Sequence[int]) -> Listener:
        """One of the first listeners, with its routes."""
        forward = bound.forward
        slots = {
            family: self.book.slot(sockaddr)
            for family, sockaddr in listeners.targets(forward, ALL_FAMILIES).items()
        }
        routes = listeners.Routing(self.book.area, families).routes(forward, slots)
        return Listener(bound.fd, *routes, forward.id, forward.port)
