# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line, turned into one frozen value: `parse_args`, the first stage of set-up.

Nothing is opened here but /proc's range of ephemeral ports, and nothing is changed. pasta's
spelling is used wherever pasta has the option, so that what starts pasta can start hardsplice.

Two parsers share the work. getopt knows where the options end: the first word that is none belongs
to COMMAND, and so does all that follows. argparse has no such notion; it looks at every word and
refuses one of COMMAND's that resembles an option of ours. So getopt cuts and resolves, with its
lists made from argparse's actions, and argparse gets `--name=value` words only, which it converts.
"""

from __future__ import annotations

import argparse
import enum
import getopt
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from hardsplice import __version__, ports, values
from hardsplice.ephemeral import read_ephemeral_range
from hardsplice.errors import Failure, quote
from hardsplice.spec import Inherited, is_inherited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hardsplice.forwarding import Direction

__all__ = [
    "Mode",
    "Options",
    "Parser",
    "Verbosity",
    "build_parser",
    "detect_mode",
    "parse_args",
]

_LAST_PID = 2**22  # PID_MAX_LIMIT, include/linux/threads.h
_LOG_SIZE = 1 << 20
_BOTH: frozenset[Direction] = frozenset(("inbound", "outbound"))


class Mode(enum.Enum):
    """Whose namespaces are served."""

    COMMAND = "new ones, in which COMMAND runs"
    PID = "those of a running process"
    NETNS = "those at a path"


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
    log_format: values.LogFormat
    #: Whether to write a line for each flow that ends.
    log_flows: bool
    pid_file: str | None
    #: Where the control socket is to be, if there is to be one.
    control: str | None
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
        return self.inbound if direction == "inbound" else self.outbound

    def auto(self, direction: Direction) -> tuple[ports.Auto, ...]:
        """What a direction forwards while it is listened on."""
        return self.inbound_auto if direction == "inbound" else self.outbound_auto

    @property
    def dynamic(self) -> frozenset[Direction]:
        """The directions whose ports may change at run time."""
        directions: tuple[Direction, ...] = ("inbound", "outbound")
        return self.any_port.union(one for one in directions if self.auto(one))


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
    words, positional = _cut(argv, parser)
    given = parser.parse_args(words)
    mode = detect_mode(positional, given.netns, given.userns)
    _refuse_contradictions(given)
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
        pid=_pid(positional[0]) if mode is Mode.PID else None,
        netns=given.netns,
        userns=given.userns,
        netns_only=given.netns_only,
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
        runas=given.runas,
        sandbox=given.sandbox,
        drain=given.drain,
        idle_timeout=given.idle_timeout,
        ready_fd=given.ready_fd,
        audit=given.audit,
    )


def detect_mode(positional: Sequence[str], netns: str | None, userns: str | None) -> Mode:
    """Which of the three synopses this is. Raises Failure where it is a mixture of them."""
    first = positional[0] if positional else ""
    is_pid = first.isascii() and first.isdigit()
    if netns is not None:
        if is_pid and len(positional) == 1:
            reason = "a process has a network namespace already; leave out one of the two"
            raise Failure("combine", f"--netns with PID {quote(first)}", reason)
        if positional:
            reason = "COMMAND runs in new namespaces; leave out --netns, or run it with nsenter(1)"
            raise Failure("combine", f"--netns with COMMAND {quote(first)}", reason)
        return Mode.NETNS
    if userns is not None:
        reason = "it says which user namespace owns that of --netns; add --netns, or leave it out"
        raise Failure("use", "--userns without --netns", reason)
    if not is_pid:
        return Mode.COMMAND
    if len(positional) > 1:
        reason = (
            f"after it stands {quote(positional[1])}; put options before it "
            f"(a command of that name is ./{first})"
        )
        raise Failure("use", f"PID {quote(first)}", reason)
    return Mode.PID


# The options


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are Failures, and whose help is a page of sections."""

    def __init__(self) -> None:
        super().__init__(prog="hardsplice", usage=_USAGE, add_help=False, allow_abbrev=False)
        self.sections: dict[str, list[argparse.Action]] = {}

    def section(self, title: str) -> None:
        """Open a section of the help: the options added next stand in it."""
        self.sections[title] = []

    def flag(self, *names: str, help: str, action: str = "store_true", **settings: Any) -> None:  # noqa: A002
        self._note(self.add_argument(*names, help=help, action=action, **settings))

    def value(self, *names: str, metavar: str, help: str, **settings: Any) -> None:  # noqa: A002 - argparse's name
        self._note(self.add_argument(*names, metavar=metavar, help=help, **settings))

    def actions(self) -> list[argparse.Action]:
        """Every option, in the order of the help."""
        return [action for actions in self.sections.values() for action in actions]

    def _note(self, action: argparse.Action) -> None:
        list(self.sections.values())[-1].append(action)

    def format_help(self) -> str:
        lines = [_USAGE, "", _DESCRIPTION]
        for section, actions in self.sections.items():
            lines += ["", f"{section}:"]
            for action in actions:
                names = ", ".join(action.option_strings)
                left = f"  {names} {action.metavar}" if action.metavar else f"  {names}"
                lines.append(f"{left:<28}  {action.help}")
        return "\n".join([*lines, "", _EPILOG])

    def error(self, message: str) -> NoReturn:
        raise Failure("parse", "the command line", f"{message}; see hardsplice --help")


_USAGE = """\
usage: hardsplice [OPTION]... [COMMAND [ARG]...]
       hardsplice [OPTION]... PID
       hardsplice [OPTION]... --netns PATH|NAME [--userns PATH]"""

_DESCRIPTION = """\
Join chosen TCP ports of a network namespace with ports of the host. It is a new
one, in which COMMAND (by default the shell) runs, or one that exists."""

_EPILOG = """\
SPEC is none (the default), all, auto (what is listened on over there), or ports
and ~exclusions; before them may stand a listening address, after each a target:
  8080  80,443  8000-8009  8080:80  127.0.0.1/22  5432:10.0.0.5/5433  all,~22
A service manager's listener NAME is taken by -t inherit:NAME:PORT.

Examples:
  hardsplice -t 8080:80 -- ./server        its port 80 is the host's 8080
  hardsplice -T 5432 -- ./client           the host's port 5432 is its own
  hardsplice -t 127.0.0.1/2222:22 1234     for process 1234, in the background
  hardsplice -f -t 80 --netns blue         for /run/netns/blue

The manual is hardsplice(1).
"""


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
    flag("--splice-only", action="store_const", const=None, help="accepted; always so")
    flag("--host-lo-to-ns-lo", action="store_const", const=None, help="accepted; always so")
    flag("-h", "--help", action="help", help="show this")
    flag("--version", action="version", version=f"hardsplice {__version__}", help="show it")
    return parser


def _audit(form: values.Audit) -> dict[str, Any]:
    return {"dest": "audit", "action": "store_const", "const": form}


def _cut(argv: Sequence[str], parser: Parser) -> tuple[list[str], list[str]]:
    """The options, each as one `--name` or `--name=value`, and the words after them."""
    spelling = {}
    short = ""
    long = []
    for action in parser.actions():
        takes_value = action.metavar is not None
        for name in action.option_strings:
            spelling[name] = action.option_strings[-1]
            if name.startswith("--"):
                long.append(name[2:] + "=" * takes_value)
            else:
                short += name[1:] + ":" * takes_value
    # getopt has no optional values. What is COMMAND's stays as it was typed.
    words = ["--audit-json" if word == "--audit=json" else word for word in argv]
    try:
        pairs, rest = getopt.getopt(words, short, long)
        rest = list(argv[len(argv) - len(rest) :])
    except getopt.GetoptError as error:
        typed = f"--{error.opt}"
        meant = [name for name in spelling if name.startswith(typed)]
        if len(meant) > 1 and any(word.partition("=")[0] == typed for word in argv):
            parser.error(f"option {typed} could be {' or '.join(meant)}")
        parser.error(error.msg)
    with_value = {f"--{name[:-1]}" for name in long if name.endswith("=")}
    words = []
    for name, text in pairs:
        full = spelling[name]
        words.append(f"{full}={text}" if full in with_value else full)
    return words, rest


def _refuse_contradictions(given: argparse.Namespace) -> None:
    if given.ipv4 and given.ipv6:
        reason = "each rules the other out; leave out both for IPv4 and IPv6"
        raise Failure("combine", "-4 with -6", reason)
    if given.netns_only and given.userns is not None:
        reason = "the one rules out joining a user namespace; leave out one of the two"
        raise Failure("combine", "--netns-only with --userns", reason)
    if given.quiet and (given.debug or given.trace):
        louder = "-d" if given.debug else "--trace"
        reason = "the one asks for less, the other for more; leave out one of the two"
        raise Failure("combine", f"-q with {louder}", reason)
    if given.log_size is not None and given.log_file is None:
        reason = "there is no log file to limit; add --log-file, or leave it out"
        raise Failure("use", "--log-size without --log-file", reason)


def _verbosity(given: argparse.Namespace) -> Verbosity:
    if given.trace:
        return Verbosity.TRACE
    if given.debug:
        return Verbosity.DEBUG
    return Verbosity.QUIET if given.quiet else Verbosity.NORMAL


def _pid(text: str) -> int:
    pid = values.number(text, 1, _LAST_PID)
    if pid is None:
        reason = f"PIDs are 1 to {_LAST_PID} (a command of that name is ./{text})"
        raise Failure("use", f"PID {quote(text)}", reason)
    return pid
