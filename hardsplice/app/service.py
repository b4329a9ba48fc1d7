# SPDX-License-Identifier: GPL-2.0-or-later
"""What hardsplice serves besides ports where a front-end (hardsplice/frontends) starts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hardsplice.kernel.hints import TYPE_CHECKING, Protocol
from hardsplice.kernel.record import NamedTuple

if TYPE_CHECKING:
    from hardsplice.app.filters import Programs
    from hardsplice.monitor.host import HostMonitor


class Service(Protocol):
    """A protocol that the locked-down host monitor serves on its loop. Its filter is that of a
    control socket: it may accept, receive and send, and change ports, as far as options allow any.
    """

    @property
    def descriptors(self) -> Sequence[int]:
        """What the host monitor keeps for it."""

    def serve(self, monitor: HostMonitor) -> None:
        """Begin to serve; called once, just before readiness is told."""


class Besides(NamedTuple):
    """How a service comes to be, and for how many ports there are to be places at least."""

    make: Callable[[], Service]  # called in the stage *open*; raises HardspliceError
    ports: int = 0
    # Called first of all in the process that is going to serve; the filters, if that compiles them.
    prepare: Callable[[], Programs | None] = lambda: None
