# SPDX-License-Identifier: GPL-2.0-or-later
"""One running forwarder: started, checked to forward, looked at, and ended without remains."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import tempfile
import time

from bench.load import SERVER_PORT, Bed, Kit, LoadError, echoes, namespace_reached
from bench.peer import BACKLOG, Direct, Peer, Place, environment_for, start_words
from tests.support import procfs
from tests.support.netns import Identity
from tests.support.product import free_ports

START_SECONDS = 20.0

_numbers = itertools.count()


class Forwarder:
    """A forwarder and the bed that it leads to; use it as a context."""

    def __init__(self, kit: Kit, peer: Peer, wanted: Identity, protocol: str = "tcp") -> None:
        """Start it, as the wanted user if it can be, and wait until it answers with the bytes of
        the right namespace."""
        owner = peer.owner(wanted)
        self.peer = peer
        self.kit = kit
        self.port = free_ports()
        self.ready_seconds = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        is_direct = isinstance(peer, Direct)
        here = self.port if is_direct else free_ports() if peer.serves_here else 0
        name = f"{peer.label}-{owner.name}-{next(_numbers)}"
        # pasta as of 2023 loses answers to datagrams where the two ports differ.
        port = self.port if protocol == "udp" else SERVER_PORT
        self.bed = Bed(kit, name, owner, here=here, port=port, protocol=protocol)
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        try:
            if not is_direct:
                self._start()
            self._await()
            if not echoes(self.port, protocol):
                raise LoadError(f"{peer.label} changes bytes")
        except OSError as error:
            self.close()
            raise LoadError(f"{peer.label} does not forward: {error}") from error
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        place = Place(self.kit, self.bed, self.port)
        command = self.peer.command(place)
        with contextlib.ExitStack() as stack:
            listener = None
            if self.peer.wants_listener:
                opened = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.bind(("127.0.0.1", self.port))
                opened.listen(BACKLOG)
                listener = opened.fileno()
            self._started = time.monotonic()
            self.process = subprocess.Popen(
                start_words(place, command, listener),
                env=environment_for(command),
                cwd="/",
                stdin=subprocess.PIPE,  # never written to: a server that it runs ends with us
                stdout=self._messages,
                stderr=self._messages,
                pass_fds=[] if listener is None else [listener],
                start_new_session=True,
            )

    def _await(self) -> None:
        """Ready is when the first bytes come back through it, whatever it says itself."""
        if self.process is None:
            return
        deadline = self._started + START_SECONDS
        reason = "no answer"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise LoadError(f"{self.peer.label} ended: {self.messages()}")
            try:
                reached = namespace_reached(self.port, self.bed.protocol)
            except OSError as error:
                reason = str(error)
                time.sleep(0.001)
                continue
            self.ready_seconds = time.monotonic() - self._started
            if reached not in self._expected():
                raise LoadError(f"{self.peer.label} leads to another namespace")
            return
        raise LoadError(f"{self.peer.label} does not forward: {reason}; {self.messages()}")

    def _expected(self) -> set[int]:
        servers = [self.bed.pid, *self._own_servers()]
        return {os.stat(f"/proc/{pid}/ns/net").st_ino for pid in servers}

    def _own_servers(self) -> list[int]:
        """The servers among its own processes, which are not part of the forwarder."""
        if self.process is None or not self.peer.brings_own_bed:
            return []
        return [pid for pid in procfs.tree(self.process.pid) if self._is_server(pid)]

    def _is_server(self, pid: int) -> bool:
        with contextlib.suppress(ProcessLookupError):
            return procfs.command(pid).startswith(self.kit.server_begins)
        return False

    def processes(self) -> list[int]:
        """The forwarder's processes, without the server."""
        if self.process is None:
            return []
        family = procfs.tree(self.process.pid)
        if self.peer.brings_own_bed:
            return [pid for pid in family if not self._is_server(pid)]
        return family

    def servers(self) -> list[int]:
        """The server's processes."""
        return self._own_servers() or [self.bed.pid]

    def messages(self) -> str:
        """The end of what it wrote."""
        text = os.pread(self._messages.fileno(), 1 << 20, 0).decode(errors="replace").strip()
        return " / ".join(text.splitlines()[-3:]) or "it said nothing"

    def close(self) -> None:
        """Ask it to end, then make it; nothing of it is left."""
        if self.process is not None:
            family = procfs.tree(self.process.pid)
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
            for pid in {*family, *procfs.tree(self.process.pid)}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()
            procfs.reap()
        self.bed.close()
        self._messages.close()

    def __enter__(self) -> Forwarder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
