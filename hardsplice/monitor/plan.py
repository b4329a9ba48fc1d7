# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of the two monitors, from set-up: `Host` for monitor/host.py, `Namespace` for
monitor/namespace.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hardsplice.command.terminal import Terminal
from hardsplice.ipc.child import Child
from hardsplice.ipc.sd_notify import Notifier
from hardsplice.kernel.hints import TYPE_CHECKING
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction, GroupKey
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.monitor.autoforward import Watched
from hardsplice.monitor.draft import Draft
from hardsplice.monitor.effects import Effects
from hardsplice.monitor.stored import Store
from hardsplice.net.inherited import Passed
from hardsplice.net.listeners import Bound
from hardsplice.net.namespaces import Served
from hardsplice.relay import main as relay
from hardsplice.sandbox.address_book import Book
from hardsplice.sandbox.confinement import Confinement
from hardsplice.telemetry.flow_log import Traffic
from hardsplice.telemetry.log import Log

if TYPE_CHECKING:
    from hardsplice.ipc.loop import Loop
    from hardsplice.monitor.command import Above, Command

    CommandMaker = Callable[[Loop, Above], Command]


class Host(NamedTuple):
    """The host monitor's configuration."""

    log: Log
    served: Served  # the namespaces that are served
    quit_with_served: bool
    exit: int | None  # --exit-fd: its end of file is our end
    ports: Sequence[Forward]  # those that are listened on
    first_free: int  # from this number on, none is a port's
    dynamic: frozenset[GroupKey]  # those whose ports may change at run time
    effects: Effects | None  # where ports may change
    check_room: Callable[
        [int], None
    ]  # raises HardspliceError where a relay can't have so many listeners
    watched: dict[Direction, Watched]  # by -t auto and -T auto
    versions: Sequence[int]  # of IP, in use
    signals: int  # signalfd
    terminal: Terminal | None  # which controls our session
    namespace_monitor: Child | None  # the namespace monitor
    command: CommandMaker | None  # what makes COMMAND, if there is one
    plans: Sequence[Sequence[relay.Plan]]  # of the outbound relays, each protocol's
    traffic: Sequence[Traffic]  # each group's counters and flow tables
    log_flows: bool  # whether the end of each flow is written to the log
    drain: int  # seconds that flows have to come to their own end
    store: Store | None  # what the service manager keeps of ports that may be added
    notifier: Notifier
    watchdog: float | None  # seconds within which the service manager wants to hear of us

    def stored_ports(self) -> Sequence[int]:
        """The ports that may change whose listeners the service manager has, too."""
        return self.store.ports() if self.store else ()


class Namespace(NamedTuple):
    """The namespace monitor's configuration: complete before it is forked, and all that it gets."""

    served: Served  # the namespaces that it joins
    forwards: tuple[Forward, ...]  # whose listeners it makes there
    passed: Passed  # the listeners of some, kept by the service manager
    versions: Sequence[int]  # of IP, in use
    watched: frozenset[Protocol]  # whose listeners there the host monitor looks at (-t auto)
    is_dynamic: bool  # ports may change at run time
    bound: Sequence[Bound]  # the host's listeners
    book: Book  # of the addresses that relays connect to
    relays: Sequence[Draft]  # which serve the host's listeners, each protocol's
    first_flow: int  # the first descriptor behind the places of listeners
    confinement: Confinement
