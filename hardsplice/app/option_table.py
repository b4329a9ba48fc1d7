# SPDX-License-Identifier: GPL-2.0-or-later
"""Every option of hardsplice, declared once: its names, what it sets, what its value may be, and
what it can't be combined with.

From this table come the parser, --help, the completions of three shells (tools/generate.py) and the
order of the manual's OPTIONS, whose paragraphs are written by hand. What a field means is said
where it ends up (app/options.py). pasta's spelling is used wherever pasta has the option, so that
what starts pasta can start hardsplice.
"""

from __future__ import annotations

from functools import partial

from hardsplice import __version__
from hardsplice.app.options import Mode
from hardsplice.cli import values
from hardsplice.cli.parsing import Option
from hardsplice.kernel.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OPTIONS", "SECTIONS"]

_LOG_SIZE = 1 << 20
_PORTS = ("none", "all", "auto")
_SECONDS = ("10", "60", "600")


def _flag(*names: str, help: str, **more: Any) -> Option:  # noqa: A002
    """An option without a value, which sets the field of its own name unless told otherwise."""
    settings = {"field": names[-1][2:].replace("-", "_"), "default": False, **more}
    return Option(names, help, **settings)


def _value(*names: str, value: str, help: str, parse: Callable[[str], Any], **more: Any) -> Option:  # noqa: A002
    """An option with a value, likewise."""
    settings = {"field": names[-1][2:].replace("-", "_"), **more}
    return Option(names, help, value, parse=parse, **settings)


def _file(*names: str, help: str, value: str = "PATH", **more: Any) -> Option:  # noqa: A002
    """An option whose value is a file's path."""
    check = values.path(names[-1])
    return _value(*names, value=value, help=help, parse=check, offers="file", **more)


def _specs(*names: str, field: str, help: str) -> Option:  # noqa: A002
    """An option for ports, which can be repeated."""
    return Option(names, help, "SPEC", field, default=(), repeats=True, offers=_PORTS)


def _seconds(name: str, help: str, default: int = 0) -> Option:  # noqa: A002
    """An option for a time."""
    check = partial(values.seconds, name)
    return _value(name, value="SECONDS", help=help, parse=check, default=default, offers=_SECONDS)


def _help() -> str:
    from hardsplice.app.usage import page

    return page(SECTIONS)


# The sections of --help and of the manual, in their order.
SECTIONS: dict[str, tuple[Option, ...]] = {
    "Ports (SPEC is explained below; its options can be repeated)": (
        _specs("-t", "--tcp-ports", field="inbound", help="forward host ports to the namespace"),
        _specs("-T", "--tcp-ns", field="outbound", help="forward namespace ports to the host"),
        _specs("-u", "--udp-ports", field="udp_inbound", help="the same as -t, of UDP"),
        _specs("-U", "--udp-ns", field="udp_outbound", help="the same as -T, of UDP"),
        _flag(
            "-4",
            "--ipv4-only",
            help="use IPv4 only",
            excludes=(("-6", "each rules the other out; leave out both for IPv4 and IPv6"),),
        ),
        _flag("-6", "--ipv6-only", help="use IPv6 only"),
    ),
    "Namespaces": (
        _value(
            "--netns",
            value="PATH|NAME",
            help="serve it; NAME means /run/netns/NAME",
            parse=values.netns,
            offers="netns",
            only=(Mode.NETNS, "it says so itself"),
        ),
        _file(
            "--userns",
            help="the user namespace that owns it",
            needs=(
                "--netns",
                "it says which user namespace owns that of --netns; add --netns, or leave it out",
            ),
        ),
        _flag(
            "--netns-only",
            help="neither create nor join a user namespace",
            excludes=(
                (
                    "--userns",
                    "the one rules out joining a user namespace; leave out one of the two",
                ),
                ("--map-auto", "ids are mapped in a user namespace; leave out one of the two"),
            ),
        ),
        _flag(
            "--map-auto",
            help="give COMMAND its user's subordinate IDs",
            only=(Mode.COMMAND, "it says which ids COMMAND has; leave it out"),
        ),
        _flag(
            "--no-netns-quit",
            field="netns_quit",
            default=True,
            const=False,
            help="keep running when the namespace is gone",
        ),
    ),
    "Running": (
        _flag("-f", "--foreground", help="stay in the foreground (always with COMMAND)"),
        _file("-P", "--pid", value="FILE", field="pid_file", help="write the process ID to FILE"),
        _file("--control", help="serve hardsplicectl and other clients at PATH"),
        _flag(
            "--control-from-namespace",
            help="accept clients in the namespace there, too",
            needs=(
                "--control",
                "there is no control socket; add --control, or leave it out",
            ),
        ),
        _file(
            "--metrics",
            help="serve only /metrics at PATH, to every user",
            needs=("--control", "it goes with that; add --control PATH, or leave it out"),
        ),
        _value(
            "--ready-fd",
            value="N",
            help="write to descriptor N when ready",
            parse=partial(values.descriptor, "--ready-fd"),
            offers="descriptor",
        ),
        _value(
            "--exit-fd",
            value="N",
            help="end when descriptor N is at its end of file",
            parse=partial(values.descriptor, "--exit-fd"),
            offers="descriptor",
        ),
        _value(
            "--runas",
            value="USER[:GROUP]",
            help="if started as root: change to this user",
            parse=values.runas,
            offers="user",
        ),
        _value(
            "--workers",
            value="N|auto",
            help="relays per direction (default 1; auto: one a CPU)",
            parse=values.workers,
            default=1,
            offers=("auto", "1", "2", "4", "8"),
        ),
        _seconds("--drain", help="at the end, let connections finish first"),
        _seconds("--idle-timeout", help="reset connections in which nothing moves"),
        _seconds("--udp-timeout", "end UDP flows without an answer (default 30)", 30),
        _seconds("--udp-stream-timeout", "end idle UDP flows with one (default 120)", 120),
        _value(
            "--udp-flows",
            value="N",
            help="UDP flows of a relay at the most (default 4096)",
            parse=partial(values.flows, "--udp-flows"),
            default=4096,
            offers=("1024", "4096", "16384"),
        ),
    ),
    "Security": (
        _value(
            "--sandbox",
            value="MODE",
            help="best-effort (default), or strict: every layer",
            parse=values.sandbox,
            default="best-effort",
            offers=("best-effort", "strict"),
        ),
        _flag(
            "--audit", default=None, const="table", help="when ready, show what each process may do"
        ),
        _flag(
            "--audit-json",
            field="audit",
            default=None,
            const="json",
            help="the same as JSON (or --audit=json)",
        ),
    ),
    "Messages": (
        _flag(
            "-q",
            "--quiet",
            help="report errors only",
            excludes=tuple(
                (
                    louder,
                    "the one asks for less, the other for more; leave out one of the two",
                )
                for louder in ("-d", "--trace")
            ),
        ),
        _flag("-d", "--debug", help="also report the steps of the start"),
        _flag("--trace", help="also report every connection"),
        _file("-l", "--log-file", help="write messages to PATH"),
        _value(
            "--log-size",
            value="SIZE",
            help="largest size of the log file (default 1M)",
            parse=values.size,
            default=_LOG_SIZE,
            needs=(
                "--log-file",
                "there is no log file to limit; add --log-file, or leave it out",
            ),
        ),
        _value(
            "--log-format",
            value="FORM",
            help="text (default) or json",
            parse=values.log_format,
            default="text",
            offers=("text", "json"),
        ),
        _flag("--log-flows", help="log a line for each flow that ends"),
    ),
    "Other": (
        _flag("--splice-only", field="", help="accepted; always the case"),
        _flag("--host-lo-to-ns-lo", field="", help="accepted; always the case"),
        _flag("-h", "--help", field="", answer=_help, help="show this help"),
        _flag(
            "--version",
            field="",
            answer=lambda: f"hardsplice {__version__}\n",
            help="show the version",
        ),
    ),
}  # fmt: skip
OPTIONS = tuple(option for options in SECTIONS.values() for option in options)
