# SPDX-License-Identifier: GPL-2.0-or-later
"""The stage *enter*: COMMAND's namespaces are created, if there is a COMMAND, and the namespace
monitor joins those that are served, where it listens.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Mapping, Sequence

from hardsplice.app import confining, restart
from hardsplice.app.filters import Programs
from hardsplice.app.listening import Listening, in_places
from hardsplice.app.opening import Opened
from hardsplice.app.plans import Planner
from hardsplice.app.progress import Progress
from hardsplice.command.caller import Caller
from hardsplice.ipc import descriptors
from hardsplice.kernel.hints import TYPE_CHECKING
from hardsplice.kernel.record import NamedTuple
from hardsplice.model import roles
from hardsplice.model.direction import Direction
from hardsplice.model.forward import Forward
from hardsplice.monitor import loops, namespace
from hardsplice.monitor.namespace import Started
from hardsplice.monitor.plan import Namespace
from hardsplice.monitor.stored import Store
from hardsplice.net.listeners import Bound
from hardsplice.net.namespaces import Served

if TYPE_CHECKING:
    from hardsplice.command.container import Container


class Entered(NamedTuple):
    """What the stage leaves."""

    planner: Planner
    container: Container | None  # COMMAND's, if there is one
    served: Served  # the namespaces that are served
    lacking: Sequence[str]  # layers of the lock-down that are not in force
    inside: Started | None  # the namespace monitor; None if no port is or can be forwarded
    listening: Listening  # in the namespace, too
    listeners: Sequence[Bound]  # the outbound relays'; the inbound ones' are not here
    copies: Mapping[int, int]  # of both, by the numbers of their ports, where those may change
    ports: Sequence[Forward]
    store: Store


def enter(
    opened: Opened,
    programs: Programs,
    pipe_size: int,
    caller: Caller,
    progress: Progress,
    undo: contextlib.ExitStack,
) -> Entered:
    """Do all that; ``pipe_size`` is in bytes, ``undo`` gets what ends processes. HardspliceError
    where there is no way there, or something can't be listened on.
    """
    # Before any fork, so that the host monitor can read what the inbound relays write.
    planner = Planner(
        opened.options,
        pipe_size,
        opened.numbered.first_flow,
        programs.book,
        {one: programs.of(roles.RELAYS[one]) for one in opened.options.groups},
        has_ruleset=opened.before.landlock.abi > 0,
        are_stored=opened.manager.keeps > 0,
    )
    gc.freeze()  # with the little garbage of the start: to look for it takes longer than a fork
    gc.enable()
    container = None
    served = opened.served
    if served is None:
        from hardsplice.app import containers

        container = containers.make(opened, programs, caller, progress.log)
        undo.callback(container.end)
        served = container.served
    lacking = confining.confine_signals(opened, progress.say)
    options = opened.options
    inside = None
    if options.inbound or options.outbound or options.dynamic:
        plan = _plan(opened, programs, planner, served)
        inside = namespace.start(plan, progress.log, undo)
    listening = _with_outbound(opened.listening, inside.listeners if inside else ())
    ports = listening.ports()
    loops.refuse(ports)
    store = restart.keep(
        listening, opened.numbered.passed, opened.notifier, opened.manager.keeps, progress.log
    )
    copies = _give_up_inbound(opened, listening)
    listeners = in_places(listening.opened[Direction.OUTBOUND])
    copies |= _copies(opened, listeners)
    return Entered(
        planner, container, served, lacking, inside, listening, listeners, copies, ports, store
    )


def _plan(opened: Opened, programs: Programs, planner: Planner, served: Served) -> Namespace:
    """The namespace monitor's configuration."""
    options, inbound = opened.options, opened.listening.opened[Direction.INBOUND]
    return Namespace(
        served=served,
        forwards=options.outbound,
        passed=opened.numbered.passed,
        versions=options.versions,
        watched=frozenset(one.protocol for one in options.inbound_auto),
        is_dynamic=bool(options.dynamic),
        bound=inbound,
        book=planner.books[Direction.INBOUND],
        relays=planner.drafts(Direction.INBOUND, inbound),
        first_flow=opened.numbered.first_flow,
        confinement=confining.confinement(opened, Direction.INBOUND, programs.of(roles.NAMESPACE)),
    )


def _with_outbound(before: Listening, outbound: Sequence[Bound]) -> Listening:
    """What is listened on, with the listeners that are in the namespace."""
    return before._replace(opened={**before.opened, Direction.OUTBOUND: outbound})


def _give_up_inbound(opened: Opened, listening: Listening) -> dict[int, int]:
    """The namespace monitor has the inbound listeners; copies of them, where ports may change."""
    inbound = listening.opened[Direction.INBOUND]
    copies = _copies(opened, inbound)
    descriptors.clear(one.fd for one in inbound)
    return copies


def _copies(opened: Opened, listeners: Sequence[Bound]) -> dict[int, int]:
    """Where ports may change, each listener once more, by the number of its port: it takes one to
    end it for good.
    """
    if not opened.options.dynamic:
        return {}
    return {
        one.forward.id: descriptors.above(one.fd, opened.numbered.first_flow, "a listener")
        for one in listeners
    }
