# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line, turned into one frozen value: `parse_args`, the first stage of set-up.

Nothing is opened here but /proc's range of ephemeral ports, and nothing is changed. pasta's
spelling is used wherever pasta has the option, so that what starts pasta can start hardsplice.
"""

from __future__ import annotations

import argparse
import enum
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hardsplice import __version__
from hardsplice.app.modes import Mode, detect_mode, pid_of
from hardsplice.cli import values
from hardsplice.cli.parsing import Parser, cut
from hardsplice.kernel.ephemeral import read_ephemeral_range
from hardsplice.model import ports
from hardsplice.model.direction import Direction
from hardsplice.model.errors import Failure, quote
from hardsplice.model.spec import Inherited, is_inherited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hardsplice.telemetry.log import LogFormat

__all__ = [
    "Mode",
    "Options",
    "Verbosity",
    "build_parser",
    "detect_mode",
    "parse_args",
]

_LOG_SIZE = 1 << 20
_BOTH = frozenset(Direction)


class Verbosity(enum.IntEnum):
    """What is told; each level includes those below."""

    QUIET = 0
    NORMAL = 1
    DEBUG = 2
    TRACE = 3


@dataclass(frozen=True, slots=True)
class Options:
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
    #: Listeners on the host, for servers in the namespace (-t).
    inbound: tuple[ports.Forward, ...]
    #: Listeners in the namespace, for servers on the host (-T).
    outbound: tuple[ports.Forward, ...]
    #: Listeners on the host that the service manager passes (-t inherit).
    inherited: tuple[Inherited, ...]
    #: What is forwarded while it is listened on (-t auto, -T auto).
    inbound_auto: tuple[ports.Auto, ...]
    outbound_auto: tuple[ports.Auto, ...]
    #: The directions in which any port may be asked for at run time.
    any_port: frozenset[Direction]
    #: The versions of IP in use: (4, 6), (4,) or (6,).
    families: tuple[int, ...]
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
    #: Where the control socket is to be, if there is to be one.
    control: str | None
    #: Whether the namespace that is served is heard there too.
    control_from_namespace: bool
    #: Where the socket is to be that everybody may ask for metrics.
    metrics: str | None
    runas: values.RunAs | None
    sandbox: values.Sandbox
    #: Seconds that connections have to come to their own end when hardsplice is told to end.
    drain: int
    #: Seconds after which a connection in which nothing moves is reset; 0: never.
    idle_timeout: int
    #: A descriptor that is told when all is ready.
    ready_fd: int | None
    #: In which form to show every process and its sandbox once all is ready, if at all.
    audit: values.Audit | None

    def forwards(self, direction: Direction) -> tuple[ports.Forward, ...]:
        """The listeners of a direction."""
        return self.inbound if direction is Direction.INBOUND else self.outbound

    def auto(self, direction: Direction) -> tuple[ports.Auto, ...]:
        """What a direction forwards while it is listened on."""
        return self.inbound_auto if direction is Direction.INBOUND else self.outbound_auto

    @property
    def dynamic(self) -> frozenset[Direction]:
        """The directions whose ports may change at run time."""
        return self.any_port.union(one for one in Direction if self.auto(one))


def parse_args(
    argv: Sequence[str],
    *,
    ephemeral: Callable[[], tuple[int, int]] | None = None,
) -> Options:
    """The options of `argv`, which doesn't include the program's own name.

    `ephemeral` gives the range of ports that the kernel hands out by itself, by default as
    `read_ephemeral_range` finds it; it is called only where there are ports to work out.

    Raises Failure, and SystemExit(0) after --help and --version have been answered.
    """
    parser = build_parser()
    words, positional = cut(argv, parser)
    given = parser.parse_args(words)
    mode = detect_mode(positional, given.netns, given.userns)
    _refuse_contradictions(given)
    if given.map_auto and mode is not Mode.COMMAND:
        reason = "it says which ids COMMAND has; leave it out"
        raise Failure("use", "--map-auto without COMMAND", reason)
    families = (4,) if given.ipv4 else (6,) if given.ipv6 else (4, 6)
    ranges = None
    if given.inbound or given.outbound:
        ranges = (ephemeral or read_ephemeral_range)()

    def laid_out(specs: Sequence[str], option: str) -> ports.Layout:
        if ranges is None:
            return ports.Layout([], [])
        if "none" not in specs:  # which says itself that it stands alone
            specs = [text for text in specs if not is_inherited(text)]
        return ports.lay_out(specs, ephemeral=ranges, option=option, families=families)

    inbound, outbound = laid_out(given.inbound, "-t"), laid_out(given.outbound, "-T")
    inherited = [text for text in given.inbound if is_inherited(text)]
    for text in filter(is_inherited, given.outbound):
        raise Failure("use", f"-T {quote(text)}", "listeners are passed on the host; write -t")

    return Options(
        mode=mode,
        command=tuple(positional) if mode is Mode.COMMAND else (),
        pid=pid_of(positional[0]) if mode is Mode.PID else None,
        netns=given.netns,
        userns=given.userns,
        netns_only=given.netns_only,
        map_auto=given.map_auto,
        netns_quit=given.netns_quit,
        inbound=tuple(inbound.forwards),
        outbound=tuple(outbound.forwards),
        inherited=tuple(ports.parse_inherited(inherited, option="-t", families=families)),
        inbound_auto=tuple(inbound.autos),
        outbound_auto=tuple(outbound.autos),
        any_port=_BOTH if given.control is not None else frozenset(),
        families=families,
        workers=given.workers,
        foreground=given.foreground or mode is Mode.COMMAND,
        verbosity=_verbosity(given),
        log_file=given.log_file,
        log_size=_LOG_SIZE if given.log_size is None else given.log_size,
        log_format=given.log_format,
        log_flows=given.log_flows,
        pid_file=given.pid_file,
        control=given.control,
        control_from_namespace=given.control_from_namespace,
        metrics=given.metrics,
        runas=given.runas,
        sandbox=given.sandbox,
        drain=given.drain,
        idle_timeout=given.idle_timeout,
        ready_fd=given.ready_fd,
        audit=given.audit,
    )


# The options


def build_parser() -> Parser:
    """The parser, which knows each option by its names, value and section."""
    parser = Parser()
    flag, value = parser.flag, parser.value

    parser.section("Ports (SPEC is explained below; both options can be repeated)")
    specs: dict[str, Any] = {"metavar": "SPEC", "action": "append", "default": []}
    value("-t", "--tcp-ports", dest="inbound", help="host ports, to the namespace", **specs)
    value("-T", "--tcp-ns", dest="outbound", help="namespace ports, to the host", **specs)
    flag("-4", "--ipv4-only", dest="ipv4", help="use IPv4 only")
    flag("-6", "--ipv6-only", dest="ipv6", help="use IPv6 only")

    parser.section("Namespaces")
    value(
        "--netns", metavar="PATH|NAME", type=values.netns, help="join it; NAME is /run/netns/NAME"
    )
    value(
        "--userns",
        metavar="PATH",
        type=values.path("--userns"),
        help="the user namespace that owns it",
    )
    flag("--netns-only", help="neither create nor join a user namespace")
    flag("--map-auto", help="COMMAND has its user's subordinate ids")
    flag("--no-netns-quit", dest="netns_quit", action="store_false", help="outlive the namespace")

    parser.section("Running")
    flag("-f", "--foreground", help="stay there (COMMAND always does)")
    value(
        "-P",
        "--pid",
        metavar="FILE",
        type=values.path("--pid"),
        dest="pid_file",
        help="write the PID to FILE",
    )
    value(
        "--control",
        metavar="PATH",
        type=values.path("--control"),
        help="serve hardsplicectl and the like here",
    )
    flag("--control-from-namespace", help="and to those in the namespace, for its own ports")
    path = values.path("--metrics")
    value("--metrics", metavar="PATH", type=path, help="serve everybody /metrics here, and no more")
    value(
        "--ready-fd", metavar="N", type=values.descriptor, help="write to descriptor N when ready"
    )
    value("--runas", metavar="USER[:GROUP]", type=values.runas, help="as root: change to this user")
    value(
        "--workers",
        metavar="N|auto",
        type=values.workers,
        default=1,
        help="relays a direction (default 1); auto: one a CPU",
    )

    for name, text in (
        ("--drain", "at the end, let connections finish first"),
        ("--idle-timeout", "reset connections in which nothing moves"),
    ):
        kind = partial(values.seconds, name)
        value(name, metavar="SECONDS", type=kind, default=0, help=text)

    parser.section("Security")
    value(
        "--sandbox",
        metavar="MODE",
        type=values.sandbox,
        default="best-effort",
        help="best-effort (default), or strict: all or nothing",
    )
    flag("--audit", **_audit("table"), help="when ready, show what each process may do")
    flag("--audit-json", **_audit("json"), help="the same as JSON (or --audit=json)")

    parser.section("Messages")
    flag("-q", "--quiet", help="errors only")
    flag("-d", "--debug", help="say what is done")
    flag("--trace", help="and every connection")
    value("-l", "--log-file", metavar="PATH", type=values.path("--log-file"), help="log to a file")
    value("--log-size", metavar="SIZE", type=values.size, help="its largest size (default 1M)")
    value(
        "--log-format",
        metavar="FORM",
        type=values.log_format,
        default="text",
        help="text (default), or json",
    )
    flag("--log-flows", help="a line for each flow that ends")

    parser.section("Other")
    for udp in (("-u", "--udp-ports"), ("-U", "--udp-ns")):
        value(
            *udp, metavar="SPEC", type=values.no_udp(udp[0]), help="none is accepted; no UDP here"
        )
    flag("--splice-only", action="store_const", const=None, help="accepted; always so")
    flag("--host-lo-to-ns-lo", action="store_const", const=None, help="accepted; always so")
    flag("-h", "--help", action="help", help="show this")
    flag("--version", action="version", version=f"hardsplice {__version__}", help="show it")
    return parser


def _audit(form: values.Audit) -> dict[str, Any]:
    return {"dest": "audit", "action": "store_const", "const": form}


def _refuse_contradictions(given: argparse.Namespace) -> None:
    if given.ipv4 and given.ipv6:
        reason = "each rules the other out; leave out both for IPv4 and IPv6"
        raise Failure("combine", "-4 with -6", reason)
    if given.netns_only and given.userns is not None:
        reason = "the one rules out joining a user namespace; leave out one of the two"
        raise Failure("combine", "--netns-only with --userns", reason)
    if given.netns_only and given.map_auto:
        reason = "ids are mapped in a user namespace; leave out one of the two"
        raise Failure("combine", "--netns-only with --map-auto", reason)
    if given.quiet and (given.debug or given.trace):
        louder = "-d" if given.debug else "--trace"
        reason = "the one asks for less, the other for more; leave out one of the two"
        raise Failure("combine", f"-q with {louder}", reason)
    if given.control_from_namespace and given.control is None:
        reason = "there is no control socket to be heard at; add --control, or leave it out"
        raise Failure("use", "--control-from-namespace without --control", reason)
    if given.metrics is not None and given.control is None:
        reason = "it goes with that; add --control PATH, or leave it out"
        raise Failure("use", "--metrics without --control", reason)
    if given.log_size is not None and given.log_file is None:
        reason = "there is no log file to limit; add --log-file, or leave it out"
        raise Failure("use", "--log-size without --log-file", reason)


def _verbosity(given: argparse.Namespace) -> Verbosity:
    if given.trace:
        return Verbosity.TRACE
    if given.debug:
        return Verbosity.DEBUG
    return Verbosity.QUIET if given.quiet else Verbosity.NORMAL
