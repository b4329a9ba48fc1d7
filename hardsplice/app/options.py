# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line, turned into one frozen value: `parse_args`, the first stage of set-up.

Nothing is opened here but /proc's range of ephemeral ports, and nothing is changed. pasta's
spelling is used wherever pasta has the option, so that what starts pasta can start hardsplice.
"""

from __future__ import annotations

import enum
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from hardsplice.app.modes import Mode, detect_mode, pid_of
from hardsplice.app.option_table import OPTIONS
from hardsplice.cli import parsing
from hardsplice.kernel.ephemeral import read_ephemeral_range
from hardsplice.model import ports
from hardsplice.model.direction import Direction, GroupKey
from hardsplice.model.errors import HardspliceError, quote
from hardsplice.model.forward import Auto, Forward
from hardsplice.model.lifetimes import Lifetimes
from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import Inherited, is_inherited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import SimpleNamespace

    from hardsplice.cli import values
    from hardsplice.telemetry.log import LogFormat

__all__ = [
    "Mode",
    "Options",
    "Verbosity",
    "detect_mode",
    "parse_args",
]


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


# The fields of Options that are worked out of what is given; the others are as an option sets them.
_WORKED_OUT = frozenset(
    {
        "mode", "command", "pid", "inbound", "outbound", "inherited", "inbound_auto",
        "outbound_auto", "any_port", "versions", "foreground", "verbosity", "datagrams",
    }
)  # fmt: skip
_AS_GIVEN = frozenset(Options._fields) - _WORKED_OUT


def parse_args(
    argv: Sequence[str],
    *,
    ephemeral: Callable[[], tuple[int, int]] | None = None,
    mode: Mode | None = None,
) -> Options:
    """The options of `argv`, which doesn't include the program's own name.

    `ephemeral` gives the range of ports that the kernel hands out by itself, by default as
    `read_ephemeral_range` finds it; it is called only where there are ports to work out. `mode` is
    one that no words are for.

    Raises HardspliceError, and SystemExit(0) after --help and --version have been answered.
    """
    # What is COMMAND's stays as it was typed; no other option has a value that may be missing.
    words = ["--audit-json" if word == "--audit=json" else word for word in argv]
    found, positional = parsing.cut(words, OPTIONS)
    positional = list(argv[len(argv) - len(positional) :])
    given = parsing.convert(found, OPTIONS)
    mode = mode or detect_mode(positional, given.netns)
    parsing.refuse_contradictions(found)
    parsing.refuse_others_synopsis(found, mode)
    versions = (4,) if given.ipv4_only else (6,) if given.ipv6_only else (4, 6)
    asked = _Asked(given, versions, ephemeral or read_ephemeral_range)

    # What else an option sets is a field of the same name.
    rest = {name: value for name, value in vars(given).items() if name in _AS_GIVEN}
    return Options(
        mode=mode,
        command=tuple(positional) if mode is Mode.COMMAND else (),
        pid=pid_of(positional[0]) if mode is Mode.PID else None,
        inbound=asked.forwards(Direction.INBOUND),
        outbound=asked.forwards(Direction.OUTBOUND),
        inherited=asked.inherited(),
        inbound_auto=asked.autos(Direction.INBOUND),
        outbound_auto=asked.autos(Direction.OUTBOUND),
        any_port=frozenset(product(Direction, Protocol) if given.control is not None else ()),
        versions=versions,
        foreground=given.foreground or mode is Mode.COMMAND,
        verbosity=_verbosity(given),
        datagrams=Lifetimes(given.udp_timeout, given.udp_stream_timeout, given.udp_flows),
        **rest,
    )


def for_service(netns: str | None, *, quits: bool) -> Options:
    """Options with which nothing is forwarded at first, and any inbound port may come: to the
    network namespace at a path, whose end is ours if that ``quits``, or within our own.
    """
    options = parse_args([], mode=Mode.OWN) if netns is None else parse_args(["--netns", netns])
    inbound = frozenset((Direction.INBOUND, protocol) for protocol in Protocol)
    return options._replace(netns_quit=quits, any_port=inbound)


class _Asked:
    """What the options for ports ask for together. Raises HardspliceError."""

    def __init__(
        self,
        given: SimpleNamespace,
        versions: tuple[int, ...],
        ephemeral: Callable[[], tuple[int, int]],
    ) -> None:
        self._versions = versions
        # TCP's first: they have the numbers that they would have alone.
        self._specs: dict[GroupKey, Sequence[str]] = {
            (Direction.INBOUND, Protocol.TCP): given.inbound,
            (Direction.OUTBOUND, Protocol.TCP): given.outbound,
            (Direction.INBOUND, Protocol.UDP): given.udp_inbound,
            (Direction.OUTBOUND, Protocol.UDP): given.udp_outbound,
        }
        self._layouts: dict[GroupKey, ports.Layout] = {}
        ranges = ephemeral() if any(self._specs.values()) else (0, 0)
        first = 1
        for (direction, protocol), specs in self._specs.items():
            if "none" not in specs:  # which says itself that it stands alone
                specs = [text for text in specs if not is_inherited(text)]  # noqa: PLW2901
            layout = ports.lay_out(
                specs, direction, ephemeral=ranges, versions=versions, first=first,
                protocol=protocol,
            )  # fmt: skip
            self._layouts[direction, protocol] = layout
            first += len(layout.forwards)

    def forwards(self, direction: Direction) -> tuple[Forward, ...]:
        return tuple(
            one for key, layout in self._layouts.items() if key[0] is direction
            for one in layout.forwards
        )  # fmt: skip

    def autos(self, direction: Direction) -> tuple[Auto, ...]:
        return tuple(
            one for key, layout in self._layouts.items() if key[0] is direction
            for one in layout.autos
        )  # fmt: skip

    def inherited(self) -> tuple[Inherited, ...]:
        found: list[Inherited] = []
        for (direction, protocol), specs in self._specs.items():
            passed = [text for text in specs if is_inherited(text)]
            if passed and direction is Direction.OUTBOUND:
                option, right = (one.option(protocol) for one in (direction, direction.opposite))
                reason = f"listeners are passed on the host; write {right}"
                raise HardspliceError("use", f"{option} {quote(passed[0])}", reason)
            found += ports.parse_inherited(passed, protocol, versions=self._versions)
        return tuple(found)


def _verbosity(given: SimpleNamespace) -> Verbosity:
    if given.trace:
        return Verbosity.TRACE
    if given.debug:
        return Verbosity.DEBUG
    return Verbosity.QUIET if given.quiet else Verbosity.NORMAL
