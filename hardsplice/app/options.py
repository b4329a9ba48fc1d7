# SPDX-License-Identifier: GPL-2.0-or-later
"""What is to be done, as one frozen value: from the command line (app/command_line.py), or from a
front-end, which asks for it in a language of its own.
"""

from __future__ import annotations

import enum

from hardsplice.kernel.hints import TYPE_CHECKING
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.direction import Direction, GroupKey
from hardsplice.model.lifetimes import Lifetimes
from hardsplice.model.protocol import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hardsplice.cli import values
    from hardsplice.model.forward import Auto, Forward
    from hardsplice.model.spec import Inherited
    from hardsplice.telemetry.log import LogFormat

__all__ = ["Mode", "Options", "Verbosity", "for_service"]


class Mode(enum.Enum):
    """The namespaces that are served: those of the three synopses, and one of front-ends."""

    COMMAND = "new ones, in which COMMAND runs"
    PID = "those of a running process"
    NETNS = "those at a path"
    # Of no synopsis: a front-end's, whose caller can reach the targets from here.
    OWN = "our own"


class Verbosity(enum.IntEnum):
    """What is reported; each level includes those below."""

    QUIET = 0
    NORMAL = 1
    DEBUG = 2
    TRACE = 3


class Options(NamedTuple):
    """All that the command line says, checked and resolved."""

    mode: Mode
    #: COMMAND and its arguments; empty means the user's shell (and in other modes nothing).
    command: tuple[str, ...]
    pid: int | None
    netns: str | None
    userns: str | None
    netns_only: bool
    #: Whether COMMAND has its user's subordinate ids.
    map_auto: bool
    netns_quit: bool
    #: Listeners on the host, for servers in the namespace (-t, -u).
    inbound: tuple[Forward, ...]
    #: Listeners in the namespace, for servers on the host (-T, -U).
    outbound: tuple[Forward, ...]
    #: Listeners on the host that the service manager passes (-t inherit, -u inherit).
    inherited: tuple[Inherited, ...]
    #: What is forwarded while it is listened on (-t auto, -T auto, -u auto, -U auto).
    inbound_auto: tuple[Auto, ...]
    outbound_auto: tuple[Auto, ...]
    #: The directions and protocols in which any port may be asked for at run time.
    any_port: frozenset[GroupKey]
    #: The versions of IP in use: (4, 6), (4,) or (6,).
    versions: tuple[int, ...]
    #: Relays a direction.
    workers: int
    #: Whether to stay in the foreground, by -f or because there is a COMMAND.
    foreground: bool
    verbosity: Verbosity
    log_file: str | None
    #: Bytes.
    log_size: int
    log_format: LogFormat
    #: Whether to write a line for each flow that ends.
    log_flows: bool
    pid_file: str | None
    #: The path of the control socket, if there is to be one.
    control: str | None
    #: Whether clients in the namespace that is served are accepted there too.
    control_from_namespace: bool
    #: The path of the socket with metrics for every user, if there is to be one.
    metrics: str | None
    runas: values.RunAs | None
    sandbox: values.Sandbox
    #: Seconds that connections have to come to their own end when hardsplice is told to end.
    drain: int
    #: Seconds after which a connection in which nothing moves is reset; 0: never.
    idle_timeout: int
    #: How long flows of datagrams live, and how many there may be.
    datagrams: Lifetimes
    #: The descriptor to write to when ready.
    ready_fd: int | None
    #: The descriptor whose end of file is our end.
    exit_fd: int | None
    #: In which form to show every process and its sandbox once all is ready, if at all.
    audit: values.Audit | None

    def forwards(self, direction: Direction) -> tuple[Forward, ...]:
        """The listeners of a direction, of both protocols."""
        return self.inbound if direction is Direction.INBOUND else self.outbound

    @property
    def next_number(self) -> int:
        """The first that no port has."""
        return 1 + len(self.inbound) + len(self.outbound)

    def adding(self, forwards: Iterable[Forward]) -> Options:
        """The same with more listeners, which are numbered from ``next_number`` on."""
        more = list(forwards)
        return self._replace(
            inbound=(*self.inbound, *(one for one in more if one.direction is Direction.INBOUND)),
            outbound=(
                *self.outbound, *(one for one in more if one.direction is Direction.OUTBOUND),
            ),
        )  # fmt: skip

    def auto(self, direction: Direction) -> tuple[Auto, ...]:
        """What a direction forwards while it is listened on, of both protocols."""
        return self.inbound_auto if direction is Direction.INBOUND else self.outbound_auto

    @property
    def dynamic(self) -> frozenset[GroupKey]:
        """The directions and protocols whose ports may change at run time."""
        return self.any_port.union(
            (one.direction, one.protocol) for one in (*self.inbound_auto, *self.outbound_auto)
        )

    @property
    def groups(self) -> frozenset[GroupKey]:
        """The directions and protocols of which there are ports, or may be at run time."""
        forwards = ((one.direction, one.protocol) for one in (*self.inbound, *self.outbound))
        inherited = ((Direction.INBOUND, one.protocol) for one in self.inherited)
        return self.dynamic.union(forwards, inherited)


def for_service(netns: str | None, *, quits: bool) -> Options:
    """Options with which nothing is forwarded at first, and any inbound port may come: to the
    network namespace at a path, whose end is ours if that ``quits``, or within our own. All else is
    as without any option.
    """
    return Options(
        mode=Mode.OWN if netns is None else Mode.NETNS,
        command=(),
        pid=None,
        netns=netns,
        userns=None,
        netns_only=False,
        map_auto=False,
        netns_quit=quits,
        inbound=(),
        outbound=(),
        inherited=(),
        inbound_auto=(),
        outbound_auto=(),
        any_port=frozenset((Direction.INBOUND, protocol) for protocol in Protocol),
        versions=(4, 6),
        workers=1,
        foreground=False,
        verbosity=Verbosity.NORMAL,
        log_file=None,
        log_size=1 << 20,
        log_format="text",
        log_flows=False,
        pid_file=None,
        control=None,
        control_from_namespace=False,
        metrics=None,
        runas=None,
        sandbox="best-effort",
        drain=0,
        idle_timeout=0,
        datagrams=Lifetimes(30, 120, 4096),
        ready_fd=None,
        exit_fd=None,
        audit=None,
    )
