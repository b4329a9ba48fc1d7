# SPDX-License-Identifier: GPL-2.0-or-later
"""A control socket with a fake world behind it."""

from __future__ import annotations

import contextlib
import http.server
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from hardsplice.control.http import Request, Response
from hardsplice.control.routes import dispatch
from tests.support.stream import PATIENCE
from tests.unit.control.fake_world import FakeWorld


class Handler(http.server.BaseHTTPRequestHandler):
    """The routes, served by somebody else's server: so the client is not held to our own."""

    protocol_version = "HTTP/1.1"
    world: ClassVar[FakeWorld]

    def do(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answers: list[Response] = []
        dispatch(Request(self.command, path, query, body, True), self.world, answers.append)
        self.send_response(answers[0].status)
        self.send_header("Content-Length", str(len(answers[0].body)))
        self.end_headers()
        self.wfile.write(answers[0].body)

    do_GET = do_POST = do_DELETE = do  # noqa: N815 - the base class's names

    def address_string(self) -> str:
        return "somebody"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up."""


@contextlib.contextmanager
def serving(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    """A world behind the socket, in ``folder``, that hardsplicectl looks for."""
    path = str(folder / "control")
    patch.setenv("HARDSPLICE_CONTROL", path)
    Handler.world = FakeWorld()
    with Server(path, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Handler.world
        server.shutdown()
        thread.join(PATIENCE)
