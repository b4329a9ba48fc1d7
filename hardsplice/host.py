# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host monitor (monitor.py) is told by set-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hardsplice import container
from hardsplice.children import Child
from hardsplice.desk import Desk
from hardsplice.direction import Direction
from hardsplice.flowlog import Traffic
from hardsplice.forwarding import Port
from hardsplice.log import Log
from hardsplice.namespaces import Target
from hardsplice.relay import main as relay
from hardsplice.service import Notifier
from hardsplice.terminal import Terminal
from hardsplice.watch import Watched

if TYPE_CHECKING:
    from hardsplice.control.host import Control


@dataclass(slots=True)
class Host:
    """What the host monitor is told by set-up."""

    log: Log
    target: Target | None
    quit_with_target: bool
    ports: Sequence[Port]  # those that are listened on
    first_free: int  # from this number on, none is a port's
    dynamic: frozenset[Direction]  # those whose ports may change at run time
    desk: Desk | None  # where ports may change
    check_room: Callable[[int], None]  # raises Failure where a relay can't have so many listeners
    watched: dict[Direction, Watched]  # by -t auto and -T auto
    versions: Sequence[int]  # of IP, in use
    signals: int  # signalfd
    terminal: Terminal | None  # which controls our session
    monitor: Child | None  # the target monitor
    container: container.Container | None
    plans: Sequence[relay.Plan]  # of the outbound relays
    traffic: Sequence[Traffic]  # each direction's counters and flow tables
    log_flows: bool  # whether the end of each flow is written to the log
    drain: int  # seconds that flows have to come to their own end
    control: Control | None  # the control socket
    notifier: Notifier
    watchdog: float | None  # seconds within which the service manager wants to hear of us
    missing: list[str]  # layers of the lock-down that are not in force

    def kept(self) -> Sequence[int]:
        """The ports that may change whose listeners the service manager has, too."""
        return self.control.store.ports() if self.control else ()
