# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket's HTTP parser: what it takes, what it refuses, and that nothing else comes of
any input.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.control.http import (
    BODY_LIMIT,
    FIELDS_LIMIT,
    LINE_LIMIT,
    Continue,
    Event,
    Parser,
    Refusal,
    Request,
    Response,
    encode,
)

HELD_LIMIT = LINE_LIMIT + 2 + BODY_LIMIT


def parse(data: bytes, *cuts: int) -> list[Event]:
    """All events of a stream that comes in pieces, cut at these places."""
    parser = Parser()
    events: list[Event] = []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        parser.feed(data[start:end])
        while (event := parser.next()) is not None:
            events.append(event)
    return events


def kinds(events: list[Event]) -> list[object]:
    """The events, comparable: a Continue equals a Continue."""
    return [Continue if isinstance(event, Continue) else event for event in events]


def get(path: str = "/", *fields: str, host: bool = True) -> bytes:
    lines = [f"GET {path} HTTP/1.1", *(["Host: a"] if host else []), *fields, "", ""]
    return "\r\n".join(lines).encode()


def post(body: bytes, *fields: str) -> bytes:
    lines = ["POST /v1/ports HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def refused(data: bytes) -> int:
    """The status with which a stream is refused, as its only event."""
    (event,) = parse(data)
    assert isinstance(event, Refusal), event
    return event.status


# --- what is taken --------------------------------------------------------------------------------


def test_a_request_without_a_body() -> None:
    assert parse(get("/metrics?a=b&c")) == [Request("GET", "/metrics", "a=b&c", b"", True)]


def test_a_request_with_a_body() -> None:
    assert parse(post(b"{}\r\n\0")) == [Request("POST", "/v1/ports", "", b"{}\r\n\0", True)]


def test_what_rootlessctl_sends() -> None:
    sent = (
        b"POST /v1/ports HTTP/1.1\r\nHost: rootlesskit\r\nUser-Agent: Go-http-client/1.1\r\n"
        b"Content-Length: 2\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n{}"
    )
    assert parse(sent) == [Request("POST", "/v1/ports", "", b"{}", True)]


def test_requests_one_behind_the_other() -> None:
    stream = get("/a") + post(b"x") + get("/b", "Connection: close")
    assert [(r.path, r.body, r.keep_alive) for r in parse(stream) if isinstance(r, Request)] == [
        ("/a", b"", True),
        ("/v1/ports", b"x", True),
        ("/b", b"", False),
    ]


@pytest.mark.parametrize("value", ["close", "Close", "keep-alive, close", "te , CLOSE"])
def test_connection_close_in_any_spelling(value: str) -> None:
    (request,) = parse(get("/", f"Connection: {value}"))
    assert isinstance(request, Request)
    assert not request.keep_alive


def test_several_connection_fields_are_one_list() -> None:
    (request,) = parse(get("/", "Connection: close", "Connection: te"))
    assert isinstance(request, Request)
    assert not request.keep_alive


def test_http_1_0_needs_no_host_and_keeps_no_connection() -> None:
    assert parse(b"GET / HTTP/1.0\r\n\r\n") == [Request("GET", "/", "", b"", False)]


def test_empty_lines_before_a_request_are_passed_over() -> None:
    assert parse(b"\r\n\r\n" + get()) == [Request("GET", "/", "", b"", True)]


def test_expect_is_answered_before_the_body_comes() -> None:
    stream = post(b"body", "Expect: 100-continue")
    parser = Parser()
    parser.feed(stream[:-4])
    assert isinstance(parser.next(), Continue)
    assert parser.next() is None
    parser.feed(stream[-4:])
    assert parser.next() == Request("POST", "/v1/ports", "", b"body", True)


def test_nobody_waits_for_a_word_without_a_body_or_in_http_1_0() -> None:
    assert len(parse(get("/", "Expect: 100-continue"))) == 1
    old = b"POST / HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\nx"
    assert len(parse(old)) == 1


def test_field_names_have_no_case_and_values_no_edges() -> None:
    stream = b"POST / HTTP/1.1\r\nhOST:\r\ncontent-LENGTH:\t 1 \t\r\n\r\nx"
    assert parse(stream) == [Request("POST", "/", "", b"x", True)]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        (b"hello\n", 400),
        (b"\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET  / HTTP/1.1\r\n", 400),
        (b"GET /\r\n", 400),
        (b"GET http://a/ HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.1 \r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n", 400),
        (b"GET /a\tb HTTP/1.1\r\n", 400),
        (b"G{T / HTTP/1.1\r\n", 400),
        (b"GET / http/1.1\r\n", 400),
        (b"GET / HTTP/2.0\r\n", 505),
        (b"GET / HTTP/0.9\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\n", 400),
        (get(host=False), 400),
        (get("/", "Host: b"), 400),
        (get("/", "No colon"), 400),
        (get("/", ": empty"), 400),
        (get("/", "Space : before"), 400),
        (get("/", "Folded: a", " b"), 400),
        (get("/", "Nul: a\0b"), 400),
        (get("/", "Return: a\rb"), 400),
        (get("/", "Transfer-Encoding: chunked"), 501),
        (get("/", "Transfer-Encoding: identity", "Content-Length: 0"), 501),
        (get("/", "Expect: miracles"), 417),
        (post(b"", "Content-Length: 0"), 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", 411),
        (get("/", "Content-Length: -1"), 400),
        (get("/", "Content-Length: +1"), 400),
        (get("/", "Content-Length: 1, 1"), 400),
        (get("/", "Content-Length:"), 400),
        (get("/", "Content-Length: \u0661"), 400),
        (get("/", f"Content-Length: {'9' * 16}"), 400),
        (get("/", f"Content-Length: {BODY_LIMIT + 1}"), 413),
        (get("/", *(f"F{number}: x" for number in range(FIELDS_LIMIT))), 431),
        (get("/", "Long: " + "x" * LINE_LIMIT), 431),
        (get("/" + "x" * LINE_LIMIT), 414),
    ],
)  # fmt: skip
def test_what_is_ambiguous_or_too_large_is_refused(stream: bytes, status: int) -> None:
    assert refused(stream) == status


def test_the_largest_of_everything_is_taken() -> None:
    path = "/" + "x" * (LINE_LIMIT - len("GET / HTTP/1.1"))
    fields = [f"F{number}: x" for number in range(FIELDS_LIMIT - 3)]
    long = "Long: " + "x" * (LINE_LIMIT - 6)
    body = b"b" * BODY_LIMIT
    (request,) = parse(get(path, *fields, long, f"Content-Length: {BODY_LIMIT}") + body)
    assert isinstance(request, Request)
    assert (request.path, request.body) == (path, body)


def test_a_line_that_never_ends_is_refused_before_it_does() -> None:
    assert refused(b"x" * (LINE_LIMIT + 2)) == 414
    assert parse(b"x" * (LINE_LIMIT + 1)) == []


def test_after_a_refusal_there_is_nothing_more() -> None:
    parser = Parser()
    parser.feed(b"nonsense\r\n" + get())
    assert isinstance(parser.next(), Refusal)
    parser.feed(get())
    assert parser.next() is None
    assert not parser.is_idle


# --- any input ------------------------------------------------------------------------------------

_PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST /v1/ports HTTP/1.1\r\n", b"DELETE /v1/ports/1 HTTP/1.0\r\n",
        b"Host: a\r\n", b"\r\n", b"\n", b"Content-Length: 5\r\n", b"Content-Length: 16384\r\n",
        b"Content-Length: 0\r\n", b"Expect: 100-continue\r\n", b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n", b"5\r\nhello\r\n", b"hello", b"x" * 3000, b" ", b"\0", b":",
        b'{"proto":"tcp"}', get("/metrics"), post(b"12345"),
    ]
)  # fmt: skip
_STREAMS = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(_PIECES, st.binary(max_size=8)), max_size=12).map(b"".join),
)


@given(_STREAMS, st.lists(st.integers(0, 1 << 16), max_size=8))
def test_it_makes_no_difference_how_a_stream_is_cut(stream: bytes, cuts: list[int]) -> None:
    assert kinds(parse(stream, *cuts)) == kinds(parse(stream))


@given(st.lists(st.one_of(_PIECES, st.binary(max_size=64)), max_size=40))
def test_any_input_gives_requests_then_perhaps_a_refusal_and_no_growth(
    pieces: list[bytes],
) -> None:
    parser = Parser()
    refusals = 0
    for piece in pieces:
        parser.feed(piece)
        while (event := parser.next()) is not None:
            assert not refusals
            refusals += isinstance(event, Refusal)
            if isinstance(event, Request):
                assert len(event.body) <= BODY_LIMIT
        assert len(parser._held) <= HELD_LIMIT


def test_cutting_at_every_place_gives_the_same(  # and so a request may come byte by byte
) -> None:
    stream = get("/a?b") + post(b"12345", "Expect: 100-continue") + get("/c") + b"bad\r\n"
    whole = kinds(parse(stream))
    assert len(whole) == 5
    for cut in range(len(stream)):
        assert kinds(parse(stream, cut)) == whole
    assert kinds(parse(stream, *range(len(stream)))) == whole


# --- answers --------------------------------------------------------------------------------------


def test_an_answer() -> None:
    assert encode(Response(201, b"{}")) == (
        b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nCache-Control: no-store\r\n"
        b"Content-Type: application/json\r\n\r\n{}"
    )


def test_an_answer_that_ends_the_connection_says_so() -> None:
    said = encode(Response(405, b"{}", close=True, allow="GET, POST"))
    assert b"\r\nAllow: GET, POST\r\nConnection: close\r\n\r\n{}" in said


def test_an_answer_to_head_has_the_length_but_not_the_body() -> None:
    said = encode(Response(200, b"12345"), with_body=False)
    assert b"Content-Length: 5\r\n" in said
    assert said.endswith(b"\r\n\r\n")
