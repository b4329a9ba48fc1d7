# SPDX-License-Identifier: GPL-2.0-or-later
"""The server's side of HTTP/1.1: bytes in, requests out, without I/O.

The parser is a table of three states, each with the one function that may run in it:

    LINE ──request line──► FIELDS ──empty line──► BODY ──Content-Length bytes──► LINE
      └──────────────────────┴─── anything else: a Refusal, and BROKEN for good

It supports as much of RFC 9112 as common clients use (Go's net/http, curl, Python's http.client):
several messages in a row on a connection, bodies with a Content-Length, and Expect. Anything
ambiguous is refused, since messages with two interpretations make request smuggling possible: a
bare LF, folded fields, a repeated Content-Length, any Transfer-Encoding.

Memory is bounded: `feed` is called only when `next` had nothing more to give, and by then at most
an unfinished line or body is held, each of which has a limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

LINE_LIMIT = 2048  # bytes of a request line or of a field
FIELDS_LIMIT = 64  # fields of a request
BODY_LIMIT = 16 * 1024  # bytes

REASONS = {
    200: "OK",
    201: "Created",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    414: "URI Too Long",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, section 5.6.2
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") (/[\x21-\x7e]*) HTTP/([0-9])\.([0-9])")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_LENGTH = re.compile(rb"[0-9]{1,15}")
# Methods whose meaning is in the body: without its length there is none.
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
# Fields that decide where a message ends or whom it is for: twice is twice too ambiguous.
_ONCE = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})


@dataclass(frozen=True, slots=True)
class Request:
    """One whole request."""

    method: str
    path: str
    query: str  # what follows the question mark, undecoded
    body: bytes
    keep_alive: bool  # whether the client may send another one after it
    inside: bool = False  # whether it comes from the namespace that is served


@dataclass(frozen=True, slots=True)
class Refusal:
    """The stream can't be understood from here on: answer with this and close."""

    status: int
    reason: str


class Continue:
    """The client waits for an interim response before it sends its body."""


Event = Request | Refusal | Continue


class ParserState(Enum):
    """What comes next in the stream."""

    LINE = "a request line"
    FIELDS = "a field, or the empty line"
    BODY = "the rest of the body"
    BROKEN = "nothing that could be understood"


class _RefusedError(Exception):
    """What `next` turns into a Refusal."""


def _refuse(status: int, reason: str) -> _RefusedError:
    return _RefusedError(status, reason)


class Parser:
    """One connection's requests, in order."""

    def __init__(self) -> None:
        self.state = ParserState.LINE
        self._held = bytearray()
        self._searched = 0  # bytes of _held that are known to hold no line's end
        self._start()

    def _start(self) -> None:
        self._method = self._target = ""
        self._minor = 1
        self._fields: dict[bytes, bytes] = {}
        self._count = 0
        self._length = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a next request has come yet."""
        return self.state is ParserState.LINE and not self._held

    def feed(self, data: bytes) -> None:
        """Take what was received, once ``next`` has no more to give."""
        if self.state is not ParserState.BROKEN:
            self._held += data

    def next(self) -> Event | None:
        """The next event, or None until more is fed. After a Refusal there are no others."""
        try:
            while (step := _STEPS.get(self.state)) is not None:
                done, event = step(self)
                if event is not None:
                    return event
                if not done:
                    break
        except _RefusedError as error:
            self.state = ParserState.BROKEN
            self._held.clear()
            return Refusal(*error.args)
        return None

    # Each step says whether it took something, so that there may be more, and what came of it.

    def _line(self) -> tuple[bool, Event | None]:
        line = self._take_line(414)
        if not line:  # none yet; or an empty one, which RFC 9112, section 2.2, says to pass over
            return line is not None, None
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise _refuse(400, "that is no request line of HTTP/1.1")
        if match[3] != b"1":
            raise _refuse(505, "this is HTTP/1.1")
        self._method, self._target = match[1].decode("ascii"), match[2].decode("ascii")
        self._minor = int(match[4])
        self.state = ParserState.FIELDS
        return True, None

    def _field(self) -> tuple[bool, Event | None]:
        line = self._take_line(431)
        if line is None:
            return False, None
        if not line:
            return True, self._end_of_fields()
        self._count += 1
        if self._count > FIELDS_LIMIT:
            raise _refuse(431, f"more than {FIELDS_LIMIT} fields")
        match = _FIELD.fullmatch(line)
        if match is None:
            raise _refuse(400, "a line that is no field")
        name, value = match[1].lower(), match[2]
        if name in _ONCE and name in self._fields:
            raise _refuse(400, f"{name.decode('ascii')} is there twice")
        if name in _ONCE or name == b"connection":
            before = self._fields.get(name)  # a repeated Connection is one list
            self._fields[name] = value if before is None else before + b"," + value
        return True, None

    def _end_of_fields(self) -> Event | None:
        fields = self._fields
        if self._minor and b"host" not in fields:
            raise _refuse(400, "HTTP/1.1 requires a Host")
        if b"transfer-encoding" in fields:
            raise _refuse(501, "no transfer encoding is understood: send a Content-Length")
        length = fields.get(b"content-length")
        if length is None and self._method in _WITH_BODY:
            raise _refuse(411, f"a {self._method} requires a Content-Length")
        if length is not None and not _LENGTH.fullmatch(length):
            raise _refuse(400, "Content-Length is no number")
        self._length = int(length or 0)
        if self._length > BODY_LIMIT:
            raise _refuse(413, f"a body has at most {BODY_LIMIT} bytes")
        expected = fields.get(b"expect", b"").lower()
        if expected not in (b"", b"100-continue"):
            raise _refuse(417, "only 100-continue can be expected")
        self.state = ParserState.BODY
        return Continue() if expected and self._length and self._minor else None

    def _body(self) -> tuple[bool, Event | None]:
        if len(self._held) < self._length:
            return False, None
        body = bytes(self._held[: self._length])
        self._drop(self._length)
        path, _, query = self._target.partition("?")
        options = {
            word.strip() for word in self._fields.get(b"connection", b"").lower().split(b",")
        }
        keep_alive = self._minor > 0 and b"close" not in options
        request = Request(self._method, path, query, body, keep_alive)
        self._start()
        self.state = ParserState.LINE
        return True, request

    def _take_line(self, too_long: int) -> bytes | None:
        """The next line without its end; None until it is whole."""
        end = self._held.find(b"\n", self._searched, LINE_LIMIT + 2)
        if end < 0:
            self._searched = min(len(self._held), LINE_LIMIT + 2)
            if self._searched > LINE_LIMIT + 1:
                raise _refuse(too_long, f"a line of more than {LINE_LIMIT} bytes")
            return None
        if end == 0 or self._held[end - 1] != 0x0D:
            raise _refuse(400, "a line that does not end in CR LF")
        line = bytes(self._held[: end - 1])
        self._drop(end + 1)
        return line

    def _drop(self, count: int) -> None:
        del self._held[:count]
        self._searched = 0


_STEPS: dict[ParserState, Callable[[Parser], tuple[bool, Event | None]]] = {
    ParserState.LINE: Parser._line,
    ParserState.FIELDS: Parser._field,
    ParserState.BODY: Parser._body,
}


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered. ``close`` asks the server to hang up afterwards."""

    status: int
    body: bytes = b""
    kind: str = "application/json"
    close: bool = False
    allow: str = ""  # with 405: the methods that there are


def encode(response: Response, *, with_body: bool = True) -> bytes:
    """A response's bytes; an answer to HEAD goes without its body."""
    lines = [
        f"HTTP/1.1 {response.status} {REASONS[response.status]}",
        f"Content-Length: {len(response.body)}",
        "Cache-Control: no-store",
    ]
    if response.body:
        lines.append(f"Content-Type: {response.kind}")
    if response.allow:
        lines.append(f"Allow: {response.allow}")
    if response.close:
        lines.append("Connection: close")
    head = "\r\n".join([*lines, "", ""]).encode("ascii")
    return head + response.body if with_body else head
