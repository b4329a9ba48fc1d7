# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of relays, derived from the options and from what has been opened: their plans,
their counters, and the address books.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence

from hardsplice.app.options import Options, Verbosity
from hardsplice.ipc.descriptors import FIRST_LISTENER
from hardsplice.kernel import unotify
from hardsplice.model.direction import Direction, GroupKey
from hardsplice.model.errors import HardspliceError
from hardsplice.model.families import ALL_FAMILIES
from hardsplice.model.forward import Origin
from hardsplice.model.protocol import Protocol
from hardsplice.model.roles import RELAYS
from hardsplice.monitor.draft import Draft
from hardsplice.net import listeners
from hardsplice.net.listeners import Bound
from hardsplice.net.retiring import Sink, open_sink
from hardsplice.relay import main as relay
from hardsplice.sandbox.address_book import TARGETS_A_PORT, Area, Book
from hardsplice.telemetry import flow_table
from hardsplice.telemetry.counters import Stats


class Planner:
    """The relays' configuration, and what is shared with them. Made before any fork: counters are
    written by relays, and read by the host monitor.
    """

    def __init__(
        self,
        options: Options,
        pipe_size: int,
        first_flow: int,
        area: Area,
        programs: Mapping[GroupKey, bytes],
        *,
        has_ruleset: bool,
        are_stored: bool,
    ) -> None:
        """``pipe_size`` is in bytes, ``first_flow`` the first descriptor behind listeners,
        ``area`` where the address books are; ``programs`` are the relays' filters;
        ``has_ruleset`` says that there is one of Landlock. The service manager has listeners, too:
        those that it passed, and all if they ``are_stored``.
        """
        self.options = options
        self._pipe_size = pipe_size
        self._first_flow = first_flow
        self._programs = programs
        self._has_ruleset = has_ruleset
        self._obstacle = unotify.obstacle() if options.dynamic else None
        self._are_stored = are_stored
        self.sink = open_sink() if options.dynamic else Sink(0, {})
        self.books = books(options, first_flow, area, self.sink)
        rows = _flow_rows(options)
        self.stats: dict[GroupKey, tuple[Stats, ...]] = {
            one: tuple(Stats(rows) for _ in range(options.workers))
            for one in RELAYS
            if one in options.groups
        }

    def check_room(self, listening: int) -> None:
        """HardspliceError where there is no place for so many listeners, or no way to hand one
        over.
        """
        if self._obstacle is not None:
            hint = (
                "allow it, as by SystemCallFilter=pidfd_getfd in a unit, or name ports by options"
            )
            raise HardspliceError("listen on", "one more port", self._obstacle, hint)
        places = self._first_flow - FIRST_LISTENER
        if listening > places:
            reason = f"there are places for {places} listeners"
            hint = "the number of descriptors decides: raise it with ulimit -n, and restart"
            raise HardspliceError("listen on", "one more port", reason, hint)

    def drafts(self, direction: Direction, opened: Sequence[Bound]) -> list[Draft]:
        """The configuration of a direction's relays, which serve what was ``opened``, up to what
        depends on the namespace in which they connect: of each protocol that it may have.
        """
        return [self._draft(one, opened) for one in self.stats if one[0] is direction]

    def _draft(self, group: GroupKey, opened: Sequence[Bound]) -> Draft:
        options = self.options
        direction, protocol = group
        bound = [one for one in opened if one.forward.protocol is protocol]
        common = relay.Plan(
            direction=direction,
            protocol=protocol,
            datagrams=options.datagrams if protocol is Protocol.UDP else None,
            workers=options.workers,
            listeners=(),
            families=(),
            pipe_size=self._pipe_size,
            first_flow=self._first_flow,
            filter=self._programs[group],
            is_dynamic=group in options.dynamic,
            stored=self._stored(bound),
            book=self.books[direction].area,
            stats=self.stats[group][0],
            idle_seconds=options.idle_timeout,
            trace=options.verbosity >= Verbosity.TRACE,
            log_flows=options.log_flows,
            has_ruleset=self._has_ruleset,
            strict=options.sandbox == "strict",
        )
        return Draft(common, bound, self.books[direction], self.stats[group])

    def _stored(self, opened: Sequence[Bound]) -> frozenset[int]:
        """The numbers of the listeners that the service manager has, too."""
        forwards = [one.forward for one in opened]
        return frozenset(
            one.id for one in forwards if self._are_stored or one.origin is Origin.PASSED
        )


def books(options: Options, first_flow: int, area: Area, sink: Sink) -> dict[Direction, Book]:
    """The address books of both directions, with room for what may come at run time: targets, and
    in the host monitor's own the sink.
    """
    is_dynamic = bool(options.dynamic)
    changing = {direction for direction, _ in options.dynamic}
    targets = {
        direction: [
            sockaddr
            for forward in options.forwards(direction)
            for sockaddr in listeners.targets(forward, ALL_FAMILIES).values()
        ]
        for direction in Direction
    }
    late = TARGETS_A_PORT * (first_flow - FIRST_LISTENER) if is_dynamic else 0
    return {
        direction: Book(
            area, targets[direction],
            (late if direction in changing else 0) + (1 if sink.fds else 0),
            is_written=is_dynamic,
        )
        for direction in Direction
    }  # fmt: skip


def _flow_rows(options: Options) -> int:
    """Rows of a flow table: one for each flow that there are descriptors for; none if no option
    needs the table.
    """
    if not options.log_flows and options.control is None:
        return 0
    return min(flow_table.ROWS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
