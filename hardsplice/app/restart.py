# SPDX-License-Identifier: GPL-2.0-or-later
"""Listeners across a restart, in set-up: which of those that the service manager kept are taken
again, and which ones it keeps from now on (monitor/stored.py has what comes after lock-down).
"""

from __future__ import annotations

from collections.abc import Sequence

from hardsplice.app.listening import Listening
from hardsplice.app.options import Options
from hardsplice.ipc.channel import CROWDED_HINT
from hardsplice.ipc.sd_notify import Notifier
from hardsplice.model.direction import Direction
from hardsplice.model.forward import Forward, Origin, Source, overlap
from hardsplice.monitor.stored import Store
from hardsplice.net.inherited import Passed, added_name, stored_name
from hardsplice.telemetry.log import Level, Log


def sort_out(options: Options, passed: Passed) -> Sequence[Forward]:
    """End what was kept and is no longer requested. Returns what was added at run time before the
    restart, and may come back: ports may be added now, too, and no option conflicts.
    """
    asked = [forward for one in Direction for forward in options.forwards(one)]
    by_port: dict[tuple[Direction, int], list[Forward]] = {}
    for one in asked:
        by_port.setdefault((one.direction, one.port), []).append(one)
    known = passed.added(options.versions) if options.control is not None else []
    back = [
        one
        for one in known
        if not any(overlap(one, other) for other in by_port.get((one.direction, one.port), ()))
    ]
    passed.end_others([*asked, *back])
    return back


def keep(listening: Listening, passed: Passed, notifier: Notifier, room: int, log: Log) -> Store:
    """Have the service manager keep the listeners that are ours, as far as it has ``room``, and no
    other ones.
    """
    names: dict[int, str] = {}
    current = []
    for opened in listening.opened.values():
        for one in opened:
            name = _name(one.forward)
            if name is not None:
                names[one.forward.id] = name
                current.append((name, one.fd))
    left_out, unsent = passed.hand_over(notifier, current, room)
    _log_lost(listening, log)
    if unsent:
        text = f"{unsent} of {len(current)} listeners could not be given to the service manager"
        log.line(Level.WARNING, f"{text} to keep: {CROWDED_HINT}")
    if left_out and room:
        text = f"the service manager does not keep {left_out} of {len(current)} listeners"
        log.line(Level.WARNING, f"{text}: raise FileDescriptorStoreMax=")

    def report(text: str) -> None:
        log.limited(Level.WARNING, "store", text)

    return Store(notifier, room, dict(list(names.items())[:room]), report)


def _name(forward: Forward) -> str | None:
    """The name under which a listener is kept; None for one of a socket unit."""
    if forward.origin is Origin.PASSED:
        return None
    return added_name(forward) if forward.source is Source.CONTROL else stored_name(forward)


def _log_lost(listening: Listening, log: Log) -> None:
    """Report which ports did not come back."""
    there = {one.id for one in listening.ports()}
    for direction in Direction:
        for one in listening.options.forwards(direction):
            if one.source is Source.CONTROL and one.id not in there:
                text = f"{one.where}, which was added before the restart, could not be had again"
                log.line(Level.WARNING, text)
