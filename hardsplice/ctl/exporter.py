# SPDX-License-Identifier: GPL-2.0-or-later
"""hardsplicectl exporter: metrics over TCP, for Prometheus and other clients.

Any client may connect. So nothing that it sends is passed on: the only request is GET or HEAD of
/metrics, and for that hardsplice is queried with a fixed request, at most a few times a second.
Requests are received by the control socket's server (control/server.py), with the same limits. With
the sockets of --metrics this program needs no privilege, and an attacker who takes it over can do
no more than query metrics.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address

from hardsplice.cli.values import number
from hardsplice.control.http import Request, Response
from hardsplice.control.prometheus import CONTENT_TYPE, Family, Sample, render
from hardsplice.control.server import Admission, Server
from hardsplice.control.world import refusal
from hardsplice.ctl.client import Client, RefusedError
from hardsplice.ipc import sd_notify
from hardsplice.ipc.loop import Loop
from hardsplice.model.errors import HardspliceError, printable, quote, reason_of

METRICS = "/metrics"
SUFFIX = ".metrics"  # of sockets, where a folder is given
FRESH_SECONDS = 0.25  # for which an answer holds
ANSWER_SECONDS = 2  # for one instance, so that one that hangs does not hide the others
EVERYBODY = Admission(None, None)
_PREFIX = "hardsplice_"  # of every metric
_COMMENTS = ("# HELP ", "# TYPE ")
_METHODS = ("GET", "HEAD")


class Exporter:
    """What is answered."""

    def __init__(self, path: str) -> None:
        """``path`` is a socket that hardsplice serves, or a folder of such."""
        self._path = path
        self._text = b""
        self._until = 0.0

    def handle(self, request: Request, respond: Callable[[Response], None]) -> None:
        """Serve a request."""
        if request.path != METRICS:
            respond(refusal(404, f"there is nothing here but {METRICS}", close=False))
        elif request.method not in _METHODS:
            allow = ", ".join(_METHODS)
            respond(refusal(405, f"this path takes {allow}", close=False, allow=allow))
        else:
            respond(Response(200, self._fresh(), CONTENT_TYPE))

    def _fresh(self) -> bytes:
        if time.monotonic() >= self._until:
            self._text = collect(self._path).encode()
            self._until = time.monotonic() + FRESH_SECONDS
        return self._text


def collect(path: str) -> str:
    """The metrics from each socket at ``path``, and which of them answered."""
    texts = {one: _request(one) for one in sockets(path)}
    up = [Sample({"socket": printable(one)}, int(text is not None)) for one, text in texts.items()]
    about = Family("hardsplice_up", "gauge", "Whether hardsplice answers, by its socket.", up)
    answered = {one: text for one, text in texts.items() if text is not None}
    return render([about], {}) + merge(answered)


def sockets(path: str) -> Sequence[str]:
    """The sockets at ``path``."""
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return [path]
    return [os.path.join(path, name) for name in names if name.endswith(SUFFIX)]


def _request(path: str) -> str | None:
    try:
        with contextlib.closing(Client(path, ANSWER_SECONDS)) as client:
            return client.text(METRICS)
    except (HardspliceError, RefusedError):
        return None


def merge(texts: Mapping[str, str]) -> str:
    """Several texts as one: a family's samples have to stand together (Prometheus' text format),
    and each says which socket it comes from.
    """
    families: dict[str, tuple[list[str], list[str]]] = {}
    for path, text in texts.items():
        escaped = printable(path).translate({ord('"'): '\\"', ord("\\"): "\\\\"})
        current = ""
        for line in text.split("\n"):
            if line.startswith(_COMMENTS):
                current = line.split(" ")[2]
                head, _ = families.setdefault(current, ([], []))
                if len(head) < len(_COMMENTS):
                    head.append(line)
            elif line.startswith(_PREFIX) and current.startswith(_PREFIX):
                families[current][1].append(line.replace("{", f'{{socket="{escaped}",', 1))
    lines = [line for head, samples in families.values() if samples for line in (*head, *samples)]
    return "\n".join([*lines, ""])


# --- where it listens -----------------------------------------------------------------------------


def run(path: str, listen: str | None) -> None:
    """Serve, until it is ended."""
    loop = Loop()
    exporter = Exporter(path)
    opened = [*_passed(), *([open_listener(listen)] if listen else [])]
    if not opened:
        reason = "nobody says where"
        hint = "give --listen ADDRESS:PORT, or start it by hardsplice-exporter.socket"
        raise HardspliceError("listen", "for Prometheus", reason, hint)
    for one in opened:
        Server(one.fileno(), EVERYBODY, loop, exporter.handle).start()
    loop.run()


def _passed() -> list[socket.socket]:
    """The listeners that a service manager passes."""
    found = []
    for name, fd in sd_notify.manager_of(os.environ, os.getpid()).passed:
        try:
            one = socket.socket(fileno=fd)
            one.setblocking(False)
            is_listener = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        except OSError as error:
            raise HardspliceError("take", f"listener {quote(name)}", reason_of(error)) from error
        if not is_listener:
            raise HardspliceError("take", f"listener {quote(name)}", "it does not listen")
        found.append(one)
    return found


def open_listener(text: str) -> socket.socket:
    """The listener at ADDRESS:PORT, of which an IPv6 address is in brackets."""
    host, _, digits = text.rpartition(":")
    port = number(digits, 0, 65535)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ip_address(bare)
    except ValueError:
        address = None
    if address is None or port is None or (address.version == 6) != (bare != host):
        hint = "write 127.0.0.1:9820, say, or [::1]:9820"
        raise HardspliceError(
            "parse", f"--listen {quote(text)}", "it is no address with a port", hint
        )
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        one = socket.create_server((bare, port), family=family, backlog=64)
    except OSError as error:
        raise HardspliceError("listen on", text, reason_of(error)) from error
    one.setblocking(False)
    return one
