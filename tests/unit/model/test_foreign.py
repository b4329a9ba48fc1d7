# SPDX-License-Identifier: GPL-2.0-or-later
"""What other programs' users write for ports, and what they are told to write instead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.model import ports, spec
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.foreign import NEITHER
from hardsplice.model.spec import SpecError


def refusal(text: str) -> str:
    with pytest.raises(HardspliceError) as raised:
        ports.parse([text], Direction.INBOUND, ephemeral=(32768, 60999))
    return str(raised.value)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("127.0.0.1:8080:80", "127.0.0.1/8080:80"),  # docker -p, and all that follow it
        ("127.0.0.1:8080:80/tcp", "127.0.0.1/8080:80"),
        ("8080:80/tcp", "8080:80"),
        ("8080:80/TCP", "8080:80"),
        ("80/tcp", "80"),
        ("127.0.0.1::80", "127.0.0.1/0:80"),
        ("[::1]:8080:80", "[::1]/8080:80"),
        ("0.0.0.0:8000-8009:9000-9009/tcp", "0.0.0.0/8000-8009:9000-9009"),
        ("8080:80/tcp,443:443/tcp", "8080:80,443:443"),
        ("127.0.0.1:8080:80,127.0.0.1:443:443", "127.0.0.1/8080:80,443:443"),
        ("127.0.0.1/8080:80/tcp", "127.0.0.1/8080:80"),  # a mixture of both
        ("localhost:8080:80", "127.0.0.1/8080:80"),
        ("8080:127.0.0.1:80", "8080:127.0.0.1/80"),  # ssh -L
        ("8080:localhost:80", "8080:127.0.0.1/80"),
        ("127.0.0.1:8080:10.0.0.5:80", "127.0.0.1/8080:10.0.0.5/80"),
        ("[::1]:8080:[2001:db8::1]:80", "[::1]/8080:[2001:db8::1]/80"),
        ("*:8080", "8080"),  # listening addresses
        (":8080", "8080"),
        ("127.0.0.1:8080", "127.0.0.1/8080"),
        ("[::1]:8080", "[::1]/8080"),
    ],
)
def test_other_spellings_get_the_one_that_is_right_here(theirs: str, ours: str) -> None:
    assert refusal(theirs).endswith(f": that is how others spell it; write {ours}")
    assert ports.parse([ours], Direction.INBOUND, ephemeral=(32768, 60999))


@pytest.mark.parametrize("text", ["53/udp", "53:53/udp", "127.0.0.1:53:53/UDP", "80/tcp,53/udp"])
def test_what_is_udp_is_said_to_be_another_option_s(text: str) -> None:
    assert "UDP ports are asked for by -u and -U" in refusal(text)


@pytest.mark.parametrize("text", ["9/sctp", "80/tcp,9/sctp"])
def test_what_is_neither_tcp_nor_udp_is_said_to_be_none_of_ours(text: str) -> None:
    assert NEITHER in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "a:b:c", "80:80:80", "web:8080:80", "127.0.0.1:1:99999", "127.0.0.1:8080:80,10.0.0.1:1:1",
        "127.0.0.1:8000-8009:80", "99999/tcp", "::1:8080:80", "80:web",
    ],
)  # fmt: skip
def test_no_spelling_is_offered_that_would_be_refused_too(text: str) -> None:
    assert "how others spell it" not in refusal(text)


@given(st.text("0189.:/-[]~,*atcpudl", max_size=24))
def test_what_is_offered_is_right_and_what_is_right_is_never_another_programs(text: str) -> None:
    better = spec.in_our_words(text)
    try:
        spec.read(text)
    except SpecError:
        if better is not None:
            assert better != text
            spec.read(better)
    else:
        assert better == text
