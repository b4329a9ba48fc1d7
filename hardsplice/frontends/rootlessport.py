# SPDX-License-Identifier: GPL-2.0-or-later
"""Podman's rootlessport: what publishes ports of rootless containers in bridge networks.

Podman starts it without arguments and writes a request, a JSON object, to its standard input. An
error is text on standard output, with a status other than 0; a byte on the descriptor ReadyFD says
that all ports are there; the end of file of ExitFD ends it. Where the request says so, a socket
takes the container's new address (frontends/reload.py).

The ports are served by one server (frontends/publishing.py) for all containers whose bridges are in
one network namespace, as those of a user's networks are; a container that has no bridge has a
server of its own, in its own namespace. The process that was started becomes a shell that waits for
the end (frontends/stub.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import sys
from collections.abc import Sequence

from hardsplice.frontends import folders, packets, publishing, rootlessport_request, stub
from hardsplice.frontends.place import Place
from hardsplice.frontends.publishing import Published, Wanted
from hardsplice.frontends.rootlessport_request import Request
from hardsplice.frontends.stub import Ready
from hardsplice.kernel.hints import NoReturn
from hardsplice.model.errors import HardspliceError, in_a_line, reason_of, write_all
from hardsplice.model.unforeseen import as_error
from hardsplice.net import bridged

PROGRAM = "rootlessport"
READY = "1"
_ID_SHOWN = 12  # characters of a container's ID, as `podman ps` shows it
_FOLDER = "hardsplice"  # below Podman's own for temporary files
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


def main() -> int:
    """Have one request served until the container ends; or tell why not: the exit status."""
    try:
        serve(sys.argv[1:])
    except Exception as error:  # noqa: BLE001 - the last resort: one line, and no traceback
        failure = as_error(error, "start", "hardsplice")
        with contextlib.suppress(OSError):
            write_all(1, form(failure))
        stub.log(PROGRAM, failure)
        return failure.status


def serve(argv: Sequence[str]) -> NoReturn:
    """Read the request and have it served. HardspliceError where it can't be had or is wrong."""
    if argv:
        reason = "it takes a request on standard input, and no arguments"
        raise HardspliceError("use", "arguments of rootlessport", reason)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = rootlessport_request.read(0)
    request = rootlessport_request.parse(text)
    kept = stub.take_kept()
    again = [*kept.listeners]
    try:
        published = stub.attempted(
            lambda: _publish(request, again, kept.moves), lambda: _is_over(request)
        )
        _keep(text)
        ready = Ready(request.ready_fd, READY)
        title = f"{PROGRAM} of {request.container[:_ID_SHOWN]}"
        stub.become(PROGRAM, title, published, ready, (request.exit_fd,), limit, request.socket)
    except BaseException:
        _remove_socket(request)
        raise


def _is_over(request: Request) -> bool:
    """Whether the container has ended. Then nothing of it is left."""
    poller = select.poll()
    poller.register(request.exit_fd, 0)
    if not poller.poll(0):
        return False
    _remove_socket(request)
    return True


def _remove_socket(request: Request) -> None:
    if request.socket is not None:
        with contextlib.suppress(OSError):
            os.unlink(request.socket)


def _publish(request: Request, kept: list[int], moves: int | None) -> Published:
    # From where the bridge is, one server reaches the containers of all of the user's networks.
    # Podman may make another one of that namespace, and remove this one.
    child = stub.address() or request.child
    netns = None if child.is_loopback else bridged.shared_by(request.netns, child)
    place = Place(
        _folder(request), netns or request.netns, quits=netns is not None,
        containers=request.socket and os.path.dirname(request.socket),
    )  # fmt: skip
    if moves is not None:
        moves = os.dup(moves)
    elif request.socket is not None:
        moves = _listen(request.socket)
    try:
        forwards = [one._replace(target=child) for one in request.forwards]
        wanted = Wanted(forwards, None, request.exit_fd, moves, kept)
        return publishing.publish(place, wanted)
    except BaseException:
        if moves is not None:
            os.close(moves)
        raise


def _folder(request: Request) -> str:
    """Where the server's socket is."""
    if request.folder is not None:
        return os.path.join(request.folder, _FOLDER)
    return folders.make(PROGRAM)


def _listen(path: str) -> int:
    try:
        return packets.listen(path).detach()
    except OSError as error:
        raise HardspliceError("bind", f"socket {path}", reason_of(error)) from error


def _keep(text: bytes) -> None:
    """Have the request on standard input again, for whoever begins anew."""
    file = os.memfd_create("request", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    write_all(file, text)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    os.lseek(file, 0, os.SEEK_SET)
    os.dup2(file, 0)
    os.close(file)


def form(failure: HardspliceError) -> bytes:
    """A failure as Podman shows it, behind the program's name."""
    return b"hardsplice: " + in_a_line(failure).encode(errors="backslashreplace") + b"\n"
