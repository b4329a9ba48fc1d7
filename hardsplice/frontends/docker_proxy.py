# SPDX-License-Identifier: GPL-2.0-or-later
"""Docker's docker-proxy: what publishes one port of a container, at one address of the host.

Docker starts it in the host's network namespace, from where the container's address is reached. Its
options are written as programs in Go have them. Descriptor 3 gets a line that says 0 once the port
is there, or one that says 1 and then the reason why it isn't. With -use-listen-fd the listener is
passed as descriptor 4. SIGINT, or the end of Docker, ends it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from hardsplice import __version__
from hardsplice.app import start
from hardsplice.app.frontend import Frontend, in_a_line
from hardsplice.app.options import Mode, Options, parse_args
from hardsplice.frontends import mapping
from hardsplice.model.errors import HardspliceError, print_lines, quote, write_all
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import Inherited
from hardsplice.model.unforeseen import as_error

STATUS_FD, LISTEN_FD = 3, 4
READY = b"0\n"
PASSED = "docker"  # the listener's name
VALUES = ("proto", "host-ip", "host-port", "container-ip", "container-port")
FLAGS = ("use-listen-fd", "v", "version")
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


class Request(NamedTuple):
    """What Docker asks for."""

    forward: Forward
    is_passed: bool  # whether its listener is


def main() -> int:
    """Serve one port until Docker ends it; or tell why not: the exit status."""
    began = time.monotonic()
    try:
        given = read(sys.argv[1:])
        if given.get("v") or given.get("version"):
            print_lines([f"docker-proxy of hardsplice {__version__}"], 1)
            return 0
        serve(request_of(given), began)
    except Exception as error:  # noqa: BLE001 - the last resort: one line, and no traceback
        failure = as_error(error, "start", "hardsplice")
        try:
            write_all(STATUS_FD, form(failure))
        except OSError:  # somebody else than Docker
            print_lines(failure.lines("docker-proxy"))
        return failure.status


def serve(request: Request, began: float) -> NoReturn:
    """Serve it, in this process. HardspliceError where that can't be done. The start ``began``
    then, in CLOCK_MONOTONIC seconds.
    """
    with contextlib.suppress(OSError):
        os.set_inheritable(STATUS_FD, False)
    try:
        failures = fcntl.fcntl(STATUS_FD, fcntl.F_DUPFD_CLOEXEC, LISTEN_FD + 1)
    except OSError:
        reason = "it is not open; Docker passes it"
        raise HardspliceError("use", f"descriptor {STATUS_FD}", reason) from None
    passed = ((PASSED, LISTEN_FD),) if request.is_passed else ()
    start.serve(options_of(request), Frontend(failures, form, READY, passed=passed), began)


def form(failure: HardspliceError) -> bytes:
    """A failure as Docker reads it."""
    return b"1\n" + in_a_line(failure).encode(errors="backslashreplace")


def options_of(request: Request) -> Options:
    """The same as hardsplice's options."""
    forward = request.forward
    options = parse_args(["--no-netns-quit", "--netns", "/proc/self/ns/net"])._replace(
        mode=Mode.OWN,
        netns=None,
        ready_fd=STATUS_FD,
    )
    if request.is_passed:
        assert forward.target is not None
        inherited = Inherited((PASSED,), forward.target, forward.target_port, forward.protocol)
        return options._replace(inherited=(inherited,))
    return options._replace(inbound=tuple(mapping.numbered([forward])))


def read(argv: Sequence[str]) -> dict[str, str]:
    """What each option is given, in Go's spelling: -name value, -name=value, with one dash or two.
    A flag that is set has some text, and one that isn't has none. HardspliceError for anything
    else.
    """
    given: dict[str, str] = {}
    left = list(argv)
    while left:
        word = left.pop(0)
        name, has_value, value = word.removeprefix("-").removeprefix("-").partition("=")
        if not word.startswith("-") or name not in (*VALUES, *FLAGS):
            known = ", ".join(f"-{one}" for one in (*VALUES, *FLAGS))
            raise HardspliceError("use", f"option {quote(word)}", f"there are {known}")
        if name in FLAGS:
            if has_value and value not in (*_TRUE, *_FALSE):
                raise HardspliceError("use", f"-{name}={value}", "it is either true or false")
            given[name] = "" if value in _FALSE else "true"
            continue
        if not has_value:
            if not left:
                raise HardspliceError("use", f"-{name}", "its value is missing")
            value = left.pop(0)
        given[name] = value
    return given


def request_of(given: dict[str, str]) -> Request:
    """The port that options ask for. HardspliceError where they ask for none."""
    protocol = mapping.protocol(given.get("proto") or Protocol.TCP)
    is_passed = bool(given.get("use-listen-fd"))
    host_ip = given.get("host-ip", "")
    target = mapping.address(given.get("container-ip", ""), "-container-ip")
    target_port = _port(given, "container-port")
    listen = mapping.address(host_ip, "-host-ip") if host_ip else None
    port = 0 if is_passed else _port(given, "host-port")
    return Request(mapping.inbound(protocol, listen, port, target, target_port), is_passed)


def _port(given: dict[str, str], name: str) -> int:
    text = given.get(name, "")
    is_number = text.isascii() and text.isdigit() and len(text) <= 5
    return mapping.port(int(text) if is_number else text, f"-{name}")
