# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket's server, on a real loop with real sockets, with a fake host monitor behind
it, and with a clock that a test moves where it wants one.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hardsplice.control.http import Request, Response
from hardsplice.control.server import Admission, Respond, Server
from hardsplice.control.socketfile import SocketFile
from hardsplice.ipc.loop import Loop
from hardsplice.kernel import socketcalls
from tests.support.clock import FakeClock
from tests.unit.control.fake_world import FakeWorld

PATIENCE = 5.0  # seconds
ANSWER = b'{"pid": 42, "lacking": []}'
T = TypeVar("T")


class Served:
    """A server on a loop in a thread of its own."""

    def __init__(
        self, path: Path, admission: Admission | None = None, clock: FakeClock | None = None
    ) -> None:
        self.path = str(path)
        self.clock = clock
        self.file = SocketFile(self.path)
        self.world = FakeWorld()
        self.large: Response | None = None  # what is answered instead
        self.loop = Loop()
        own = socketcalls.namespace_cookie(self.file.fileno())
        admission = admission or Admission(frozenset({os.geteuid()}), own)
        self.server = Server(self.file.fileno(), admission, self.loop, self._handle)
        self.server.start()
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._told, self._tell = os.pipe()
        self.loop.add(self._told, self._obey)
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def _handle(self, request: Request, respond: Respond) -> None:
        if self.large is not None:
            respond(self.large)
        else:
            self.world.handle(request, respond)

    def _obey(self) -> None:
        os.read(self._told, 1)
        self._orders.get_nowait()()

    def run(self, order: Callable[[], T]) -> T:
        """Have the loop's own thread do something; what that gives."""
        found: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._orders.put(lambda: found.put(order()))
        os.write(self._tell, b"!")
        return found.get(timeout=PATIENCE)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Have the loop look after all that has happened, until that is so."""
        deadline = time.monotonic() + PATIENCE
        while not self.run(condition):
            assert time.monotonic() < deadline, what

    def forward(self, seconds: float) -> None:
        """Let so much time pass, and what is due then be done."""
        assert self.clock is not None
        clock = self.clock

        self.run(lambda: clock.sleep(seconds))
        self.run(lambda: None)  # timers come behind what there is to read

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(self.path)  # a socket with a timeout would not wait for room in the backlog
        client.settimeout(PATIENCE)
        return client

    def ask(self, method: str = "GET", path: str = "/v1/audit", body: bytes | None = None) -> bytes:
        """What a client that keeps to the rules is answered: it must always work."""
        connection = http.client.HTTPConnection("a")
        connection.sock = self.connect()
        with contextlib.closing(connection):
            connection.request(method, path, body)
            return connection.getresponse().read()

    def connect_and_leave(self, times: int) -> None:
        """So many clients come and go, and leave no descriptor."""
        for _ in range(100):
            self.connect().close()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(times):
            self.connect().close()
        assert self.ask() == ANSWER
        self.until(lambda: not self.server.connections, "connections are left")
        assert len(os.listdir("/proc/self/fd")) <= before

    def close(self) -> None:
        self.run(lambda: self.loop.stop(0))
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        for fd in (self._told, self._tell, *self.server.connections):
            os.close(fd)
        self.file.listener.close()
