# SPDX-License-Identifier: GPL-2.0-or-later
"""Docker's docker-proxy: what publishes one port of a container, at one address of the host.

Docker starts it in the host's network namespace, from where the container's address is reached. Its
options are written as programs in Go have them. Descriptor 3 gets a line that says 0 once the port
is there, or one that says 1 and then the reason why it isn't. With -use-listen-fd the listener is
passed as descriptor 4. SIGINT, or the end of Docker, ends it.

All ports are served by one server (frontends/publishing.py); the process that was started becomes a
shell that waits for the end (frontends/stub.py).
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence

from hardsplice import __version__
from hardsplice.frontends import folders, mapping, publishing, stub
from hardsplice.frontends.place import Place
from hardsplice.frontends.publishing import Published, Wanted
from hardsplice.frontends.stub import Ready
from hardsplice.ipc import descriptors
from hardsplice.kernel.hints import NoReturn
from hardsplice.kernel.record import NamedTuple
from hardsplice.model.errors import HardspliceError, in_a_line, print_lines, quote, write_all
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import Inherited
from hardsplice.model.unforeseen import as_error

PROGRAM = "docker-proxy"
STATUS_FD, LISTEN_FD = 3, 4
READY = Ready(STATUS_FD, "0\\n")
PASSED = "docker"  # the listener's name
VALUES = ("proto", "host-ip", "host-port", "container-ip", "container-port")
FLAGS = ("use-listen-fd", "v", "version")
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


class Request(NamedTuple):
    """What Docker asks for."""

    forward: Forward
    is_passed: bool  # whether its listener is


def main() -> int:
    """Have one port served until Docker ends it; or tell why not: the exit status."""
    try:
        given = read(sys.argv[1:])
        if given.get("v") or given.get("version"):
            print_lines([f"docker-proxy of hardsplice {__version__}"], 1)
            return 0
        serve(request_of(given))
    except Exception as error:  # noqa: BLE001 - the last resort: one line, and no traceback
        failure = as_error(error, "start", "hardsplice")
        try:
            write_all(STATUS_FD, form(failure))
        except OSError:  # somebody else than Docker
            print_lines(failure.lines("docker-proxy"))
        stub.log(PROGRAM, failure)
        return failure.status


def serve(request: Request) -> NoReturn:
    """Have it served. HardspliceError where that can't be done."""
    if not descriptors.is_open(STATUS_FD):
        reason = "it is not open; Docker passes it"
        raise HardspliceError("use", f"descriptor {STATUS_FD}", reason)
    os.set_inheritable(STATUS_FD, False)  # no server gets it
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept = [*stub.take_kept().listeners]
    published = stub.attempted(lambda: _publish(request, kept))
    descriptors.null_standard_streams((0,))
    passed = (LISTEN_FD,) if request.is_passed else ()
    title = " ".join([PROGRAM, *sys.argv[1:]])  # which port it is
    stub.become(PROGRAM, title, published, READY, passed, limit, None)


def _publish(request: Request, kept: list[int]) -> Published:
    place = Place(folders.make(PROGRAM), None)
    if not request.is_passed:
        return publishing.publish(place, Wanted([request.forward], kept=kept))
    from hardsplice.net.inherited import forward_of

    forward = request.forward
    assert forward.target is not None
    asked = Inherited((PASSED,), forward.target, forward.target_port, forward.protocol)
    return publishing.publish(place, Wanted([forward_of(PASSED, LISTEN_FD, asked)], LISTEN_FD))


def form(failure: HardspliceError) -> bytes:
    """A failure as Docker reads it, and shows it behind words of its own."""
    return b"1\nhardsplice: " + in_a_line(failure).encode(errors="backslashreplace")


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
