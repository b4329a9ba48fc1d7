# SPDX-License-Identifier: GPL-2.0-or-later
"""docker-proxy's options, as Docker writes them."""

from __future__ import annotations

import shlex

import pytest

from hardsplice.frontends import docker_proxy
from hardsplice.model.errors import HardspliceError
from hardsplice.model.protocol import Protocol

WORDS = "-proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80"


def request(words: str) -> docker_proxy.Request:
    return docker_proxy.request_of(docker_proxy.read(shlex.split(words)))


@pytest.mark.parametrize(
    "words", [WORDS, WORDS.replace(" -", " --"), WORDS.replace(" ", "=").replace("=-", " -")]
)
def test_go_has_several_ways_to_write_an_option(words: str) -> None:
    forward = request(words).forward
    assert (str(forward.address), forward.port) == ("0.0.0.0", 8080)
    assert (str(forward.target), forward.target_port) == ("172.17.0.2", 80)
    assert forward.protocol is Protocol.TCP


def test_a_listener_that_is_passed_needs_no_port() -> None:
    assert request(f"{WORDS} -use-listen-fd").is_passed
    assert not request(f"{WORDS} -use-listen-fd=false").is_passed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-bogus", "option '-bogus'"),
        ("serve", "option 'serve'"),
        ("-proto", "-proto: its value is missing"),
        ("-use-listen-fd=maybe", "either true or false"),
        (WORDS.replace("tcp", "sctp"), "protocol 'sctp'"),
        (WORDS.replace("8080", "0"), "-host-port '0'"),
        (WORDS.replace("8080", "65536"), "-host-port '65536'"),
        (WORDS.replace("8080", "http"), "-host-port 'http'"),
        (WORDS.replace("172.17.0.2", "web"), "-container-ip 'web'"),
        ("-proto tcp", "-container-ip ''"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(words: str, said: str) -> None:
    with pytest.raises(HardspliceError) as caught:
        request(words)
    assert said in str(caught.value)
