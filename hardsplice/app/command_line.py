# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line, turned into Options: `parse_args`, the first stage of set-up.

Nothing is opened here but /proc's range of ephemeral ports, and nothing is changed. pasta's
spelling is used wherever pasta has the option, so that what starts pasta can start hardsplice.
"""

from __future__ import annotations

from itertools import product

from hardsplice.app.modes import detect_mode, pid_of
from hardsplice.app.option_table import OPTIONS
from hardsplice.app.options import Mode, Options, Verbosity
from hardsplice.cli import parsing
from hardsplice.kernel.ephemeral import read_ephemeral_range
from hardsplice.kernel.hints import TYPE_CHECKING
from hardsplice.model import ports
from hardsplice.model.direction import Direction, GroupKey
from hardsplice.model.errors import HardspliceError, quote
from hardsplice.model.lifetimes import Lifetimes
from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import Inherited, is_inherited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import SimpleNamespace

    from hardsplice.model.forward import Auto, Forward

__all__ = ["parse_args"]

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
) -> Options:
    """The options of `argv`, which doesn't include the program's own name.

    `ephemeral` gives the range of ports that the kernel hands out by itself, by default as
    `read_ephemeral_range` finds it; it is called only where there are ports to work out.

    Raises HardspliceError, and SystemExit(0) after --help and --version have been answered.
    """
    # What is COMMAND's stays as it was typed; no other option has a value that may be missing.
    words = ["--audit-json" if word == "--audit=json" else word for word in argv]
    found, positional = parsing.cut(words, OPTIONS)
    positional = list(argv[len(argv) - len(positional) :])
    given = parsing.convert(found, OPTIONS)
    mode = detect_mode(positional, given.netns)
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
