# SPDX-License-Identifier: GPL-2.0-or-later
"""What relays are told, worked out from the options and from what has been opened: their plans,
their counters, and the numbers of the ports that they serve.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import replace

from hardsplice import flowtable, listeners
from hardsplice.cli import Options, Verbosity
from hardsplice.forwarding import DIRECTIONS, Direction, Port, Source
from hardsplice.relay import main as relay
from hardsplice.relay.stats import Stats


class Planner:
    """The plans of both directions. Made before any fork: counters are shared with relays, and read
    by the host monitor.
    """

    def __init__(
        self, options: Options, pipe_size: int, program: bytes, *, has_ruleset: bool
    ) -> None:
        """``pipe_size`` is in bytes, ``program`` the relays' filter; ``has_ruleset`` says that
        there is one of Landlock.
        """
        self._options = options
        self._pipe_size = pipe_size
        self._program = program
        self._has_ruleset = has_ruleset
        rows = _flow_rows(options)
        self.stats = {
            direction: tuple(Stats(rows) for _ in range(options.workers))
            for direction in DIRECTIONS
        }

    def first(self, direction: Direction) -> int:
        """The number of a direction's first forward: those of both are numbered in one row."""
        return 1 if direction == "inbound" else 1 + len(self._options.inbound)

    def ports(self, direction: Direction, opened: Sequence[tuple[int, int]]) -> list[Port]:
        """The ports that are listened on, with their numbers."""
        first, forwards = self.first(direction), self._options.forwards(direction)
        return [
            Port(first + index, direction, forwards[index], Source.OPTION) for index, _ in opened
        ]

    def check_room(self, listening: int) -> None:
        """Failure where a relay with so many listeners would have too few descriptors."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        relay.pool_sizes(descriptors, relay.fixed_use(listening), self._options.workers)

    def relays(
        self, direction: Direction, opened: Sequence[tuple[int, int]], families: Sequence[int]
    ) -> tuple[relay.Plan, ...]:
        """The plans of a direction's relays, which differ in their counters only.

        ``opened`` has the listeners: index of the forward, descriptor. ``families`` are those of
        the namespace in which the relays connect.
        """
        options = self._options
        is_dynamic = direction in options.dynamic
        if not opened and not is_dynamic:
            return ()
        self.check_room(len(opened))
        made = listeners.for_relay(
            opened, options.forwards(direction), families, self.first(direction)
        )
        used = {family for one in made for family, _ in (*one.plan_ipv4, *one.plan_ipv6)}
        if is_dynamic:
            used.update(families)
        plan = relay.Plan(
            direction=direction,
            workers=options.workers,
            listeners=made,
            families=tuple(sorted(used)),
            pipe_size=self._pipe_size,
            filter=self._program,
            stats=self.stats[direction][0],
            trace=options.verbosity >= Verbosity.TRACE,
            log_flows=options.log_flows,
            has_ruleset=self._has_ruleset,
            strict=options.sandbox == "strict",
        )
        return tuple(replace(plan, stats=stats) for stats in self.stats[direction])


def _flow_rows(options: Options) -> int:
    """Rows of a flow table: one for each flow that there are descriptors for; none where nobody
    looks.
    """
    if not options.log_flows and options.control is None:
        return 0
    return min(flowtable.ROWS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
