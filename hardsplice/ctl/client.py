# SPDX-License-Identifier: GPL-2.0-or-later
"""The client of the control socket. The path may lead to any other server, so an answer may be
anything, and its size is limited.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping

from hardsplice.kernel.hints import Any
from hardsplice.model.errors import HardspliceError, reason_of

SECONDS = 15  # for an answer; hardsplice itself gives up sooner
FILE_NAME = "hardsplice.sock"
ANSWER_LIMIT = 64 << 20  # bytes; all ports of a machine take less
_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid


def default_path(environment: Mapping[str, str] = os.environ) -> str:
    """The default path of the control socket."""
    path = environment.get("HARDSPLICE_CONTROL")
    if path:
        return path
    return os.path.join(environment.get("XDG_RUNTIME_DIR") or "/run", FILE_NAME)


class RefusedError(Exception):
    """hardsplice answers with an error: its message, and perhaps the next step."""

    def __init__(self, message: str, hint: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class _Connection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("hardsplice", timeout=seconds)
        self._path = path
        self._seconds = seconds
        self.process = 0

    def connect(self) -> None:
        """Connect; as root, as the socket's owner."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A socket with Python's own kind of timeout would not wait for room in the backlog.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(self._seconds))
        with _as_owner(self._path):
            self.sock.connect(self._path)
        self.sock.settimeout(self._seconds)
        credentials = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        self.process = _UCRED.unpack(credentials)[0]


@contextlib.contextmanager
def _as_owner(path: str) -> Iterator[None]:
    """Have the owner's user id for a moment, where we may take it.

    An ordinary user's hardsplice is in a user namespace that maps that one user only. It can't tell
    root from other users, and so refuses both (hardsplice/control/server.py).
    """
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(os.stat(path).st_uid)
    try:
        yield
    finally:
        os.seteuid(0)


class Client:
    """One connection, for as many requests as are to be made."""

    def __init__(self, path: str, seconds: float = SECONDS) -> None:
        """``seconds`` are what there is for each answer."""
        self.path = path
        self._connection = _Connection(path, seconds)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @property
    def process(self) -> int:
        """The process that listens there, which the kernel knows from its call of listen(2); 0
        where it is in another PID namespace. To be looked at after an answer.
        """
        return self._connection.process

    def text(self, path: str) -> str:
        """What a GET gives, as it is."""
        return self._request("GET", path, None).decode(errors="replace")

    def get(self, path: str) -> Any:
        """What a GET gives, from JSON."""
        return self._json(self._request("GET", path, None))

    def add(self, spec: Mapping[str, object]) -> dict[str, Any]:
        """Add a port; what it has become."""
        added = self._json(self._request("POST", "/v1/ports", json.dumps(spec).encode()))
        if not isinstance(added, dict):
            raise self.nonsense()
        return added

    def remove(self, number: int, *, reset_flows: bool) -> None:
        """Remove a port."""
        query = "?flows=reset" if reset_flows else ""
        self._request("DELETE", f"/v1/ports/{number}{query}", None)

    def _request(self, method: str, path: str, body: bytes | None) -> bytes:
        try:
            self._connection.request(method, path, body)
            response = self._connection.getresponse()
            data = response.read(ANSWER_LIMIT + 1)
        except OSError as error:
            self.close()
            raise self._unreachable(error) from error
        except http.client.HTTPException as error:
            self.close()
            raise self.nonsense() from error
        if len(data) > ANSWER_LIMIT:
            self.close()
            raise self.nonsense()
        if response.status >= 300:
            said = self._json(data)
            if not isinstance(said, dict):
                raise self.nonsense()
            raise RefusedError(str(said.get("message")), said.get("hint"))
        return data

    def _json(self, data: bytes) -> Any:
        try:
            return json.loads(data, parse_constant=_no_json)
        except (ValueError, RecursionError) as error:
            raise self.nonsense() from error

    @contextlib.contextmanager
    def understood(self) -> Iterator[None]:
        """Within it an answer is used that may lack what hardsplice's has."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise self.nonsense() from error

    def nonsense(self) -> HardspliceError:
        """The error for an answer that isn't hardsplice's."""
        return HardspliceError(
            "understand", f"control socket {self.path}", "what answers is no hardsplice"
        )

    def _unreachable(self, error: OSError) -> HardspliceError:
        hint = None
        reason = reason_of(error)
        if isinstance(error, TimeoutError | BlockingIOError):
            reason = "no answer in time"
        elif error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            hint = "start hardsplice with --control PATH, and name the same PATH with --socket"
        elif error.errno in (errno.EACCES, errno.EPERM):
            hint = "it is for the user who started hardsplice: run this as that user, or as root"
        return HardspliceError("reach", f"control socket {self.path}", reason, hint)


def _timeval(seconds: float) -> bytes:
    """A struct timeval."""
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))


def _no_json(word: str) -> float:
    raise ValueError(f"{word} is not of JSON")
