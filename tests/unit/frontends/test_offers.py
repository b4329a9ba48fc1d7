# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs and the server of their ports tell each other."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.frontends import mapping, offers
from hardsplice.frontends.offers import Answer, Offer
from hardsplice.ipc.messages import MalformedError
from hardsplice.model.errors import HardspliceError
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import Protocol

# Each message of a version of the protocol, as its bytes, in hexadecimal. Numbers of ports are the
# same in either byte order.
UPGRADE = """
What programs and their server tell each other has changed. After an upgrade a server of the old
version goes on, and programs of the new one must not find it: give offers.VERSION the next number,
and these messages the bytes of that version.
"""
VERSION = 1
OFFERED = (
    Offer(
        [
            mapping.inbound(Protocol.TCP, None, 0x5050, ip_address("10.89.0.2"), 0x1F1F),
            mapping.inbound(
                Protocol.UDP, ip_address("::1"), 0x5151, ip_address("fd00::2"), 0x1F1F
            ),
        ],
        [7, 8], ends=5, moves=6,
    ),
    (
        "0702"
        "060000000000000000000000000000000000040a5900020000000000"
        "0000000000000050501f1f00000000000000000000000000000000"
        "11060000000000000000000000000000000106fd0000000000000000"
        "0000000000000251511f1f00000000000000000000000000000000"
    ),
)  # fmt: skip
ANSWERED = (
    (Answer(), "00"),
    (
        Answer(HardspliceError("listen on", "port 80", "in use", "use another")),
        "016c697374656e206f6e0a706f72742038300a696e207573650a75736520616e6f74686572",
    ),
    (
        Answer(HardspliceError("listen on", "a port", "no place"), is_full=True),
        "026c697374656e206f6e0a6120706f72740a6e6f20706c616365",
    ),
)
PORTS = st.builds(
    mapping.inbound,
    st.sampled_from(Protocol),
    st.one_of(st.none(), st.ip_addresses()),
    st.integers(1, 65535),
    st.ip_addresses(),
    st.integers(1, 65535),
)


def test_a_version_of_the_protocol_is_written_in_one_way() -> None:
    assert offers.VERSION == VERSION, UPGRADE
    offer, text = OFFERED
    data = bytes.fromhex(text)
    assert [*offers.encode(offer)] == [(data, [5, 6, 7, 8])], UPGRADE
    assert offers.decode(data, [5, 6, 7, 8]) == offer, UPGRADE
    for answer, text in ANSWERED:
        data = bytes.fromhex(text)
        assert answer.encode() == data, UPGRADE
        found = offers.answer_of(data)
        assert found.encode() == data, UPGRADE
        assert (str(found.failure), found.is_full) == (str(answer.failure), answer.is_full), UPGRADE
    assert b"|".join(offers.moved(ip_address("::1"))) == b":|:|1|\n", UPGRADE
    assert offers.ENDED == b"\n", UPGRADE


def decoded(offer: Offer) -> list[Offer]:
    return [offers.decode(data, fds) for data, fds in offers.encode(offer)]


@given(
    st.lists(PORTS, max_size=2 * offers.PORTS + 1),
    st.one_of(st.none(), st.integers(5, 9)),
    st.one_of(st.none(), st.integers(5, 9)),
)
def test_an_offer_arrives_as_it_was_made(
    ports: list[Forward], ends: int | None, moves: int | None
) -> None:
    fds = [*range(100, 100 + len(ports))]
    parts = decoded(Offer(ports, fds, ends, moves))
    assert [one for part in parts for one in part.forwards] == ports
    assert [fd for part in parts for fd in part.listeners] == fds
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (parts[0].ends, parts[0].moves) == (ends, moves)
    assert all((part.ends, part.moves) == (None, None) for part in parts[1:])


def test_no_message_is_longer_than_is_received() -> None:
    port = mapping.inbound(Protocol.TCP, ip_address("::1"), 80, ip_address("::1"), 80)
    for data, fds in offers.encode(Offer([port] * 500, [7] * 500, 5, 6)):
        assert len(data) <= offers.SIZE
        assert len(fds) <= offers.FDS


@given(st.binary(max_size=200), st.lists(st.integers(3, 99), max_size=5))
def test_whatever_comes_is_an_offer_or_an_error(data: bytes, fds: list[int]) -> None:
    try:
        offer = offers.decode(data, fds)
    except MalformedError:
        return
    assert len(offer.forwards) == len(offer.listeners)


def test_each_port_has_its_listener_and_nothing_else_comes_along() -> None:
    port = mapping.inbound(Protocol.TCP, None, 80, ip_address("::1"), 80)
    ((data, fds),) = offers.encode(Offer([port], [7]))
    for wrong in ([], [*fds, 8]):
        with pytest.raises(MalformedError, match="descriptors"):
            offers.decode(data, wrong)
    for other in (port._replace(port=0), port._replace(interface="lo")):
        ((data, fds),) = offers.encode(Offer([other], [7]))
        with pytest.raises(MalformedError, match="no number, or an interface"):
            offers.decode(data, fds)


@pytest.mark.parametrize("is_full", [False, True])
def test_an_answer_is_that_all_is_well_or_the_failure(*, is_full: bool) -> None:
    failure = HardspliceError("listen on", "port 80", "in use", "use another one")
    assert offers.answer_of(Answer().encode()) == Answer()
    found = offers.answer_of(Answer(failure, is_full).encode())
    assert found.failure is not None
    assert (str(found.failure), found.failure.hint) == (str(failure), failure.hint)
    assert found.is_full is is_full
    for wrong in (b"", b"OK", b"\n"):
        with pytest.raises(MalformedError):
            offers.answer_of(wrong)
