# SPDX-License-Identifier: GPL-2.0-or-later
"""Listeners that are passed: how -t inherit is written, and the names under which ours are kept."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.app.command_line import parse_args
from hardsplice.ipc.channel import close_all
from hardsplice.model.direction import Direction
from hardsplice.model.errors import HardspliceError
from hardsplice.model.families import IPV4, IPV6
from hardsplice.model.forward import Forward, Origin, Source
from hardsplice.model.ports import parse_inherited, single
from hardsplice.model.protocol import Protocol
from hardsplice.model.spec import ANYWHERE, Inherited, SpecError, read_listen, read_target
from hardsplice.net.inherited import (
    Passed,
    added_name,
    identity,
    read_added,
    stored_name,
    to_drop_and_keep,
)
from hardsplice.net.listeners import open_listener, write_bind_address
from tests.support.descriptors import open_descriptors

V6 = IPv6Address("fd00::5")


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("inherit:80", Inherited((), None, 80)),
        ("inherit:web:80", Inherited(("web",), None, 80)),
        ("inherit:web:tls:443", Inherited(("web", "tls"), None, 443)),
        ("inherit:10.0.0.5/80", Inherited((), IPv4Address("10.0.0.5"), 80)),
        ("inherit:web:10.0.0.5/80", Inherited(("web",), IPv4Address("10.0.0.5"), 80)),
        ("inherit:web:[fd00::5]/80", Inherited(("web",), V6, 80)),
        ("inherit:[fd00::5]/80", Inherited((), V6, 80)),
    ],
)
def test_how_it_is_written(text: str, meaning: Inherited) -> None:
    assert parse_inherited([text]) == [meaning]
    assert parse_args(["-t", text, "1"]).inherited == (meaning,)


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        (["inherit"], "no target"),
        (["inherit:"], "not a port"),
        (["inherit:web"], "not a port"),
        (["inherit::80"], "empty name"),
        (["inherit:web:0"], "not a port"),
        (["inherit:web:80-81"], "not a port"),
        (["inherit:web:host/80"], "not an IP address"),
        (["inherit:web:[fd00::5/80"], "empty name"),
        (["inherit:web:0.0.0.0/80"], "not an address to connect to"),
        (["inherit:web: 80"], "space"),
        (["inherit:web:80", "inherit:web:81"], "two of them want it"),
        (["inherit:80", "inherit:81"], "leave out all but one"),
    ],
)
def test_what_is_refused(specs: list[str], words: str) -> None:
    with pytest.raises(HardspliceError, match=words):
        parse_inherited(specs)


@given(st.text(alphabet="inherit:[]/.0123456789abcdf ", max_size=30))
def test_any_text_is_one_or_a_failure(text: str) -> None:
    try:
        (one,) = parse_inherited([f"inherit{text}"])
    except HardspliceError:
        return
    assert 1 <= one.port <= 65535
    assert all(one.names)


def test_it_stands_beside_ports_but_not_beside_none() -> None:
    options = parse_args(["-t", "inherit:80", "-t", "8080", "1"])
    assert [forward.port for forward in options.inbound] == [8080]
    assert len(options.inherited) == 1
    with pytest.raises(HardspliceError, match="leave out one of the two"):
        parse_args(["-t", "inherit:80", "-t", "none", "1"])
    with pytest.raises(HardspliceError, match="listeners are passed on the host"):
        parse_args(["-T", "inherit:80", "1"])
    with pytest.raises(HardspliceError, match="rules out"):
        parse_args(["-4", "-t", "inherit:[::1]/80", "1"])


# --- names ---

ADDRESSES = st.one_of(st.none(), st.ip_addresses(v=4), st.ip_addresses(v=6))
FORWARDS = st.builds(
    Forward,
    direction=st.sampled_from(Direction),
    address=ADDRESSES,
    interface=st.one_of(st.none(), st.text(st.characters(min_codepoint=1), min_size=1)),
    port=st.integers(1, 65535),
    target=st.none(),
    target_port=st.just(80),
    required=st.just(True),
    protocol=st.just(Protocol.TCP),
    source=st.just(Source.OPTION),
    origin=st.just(Origin.NAMED),
    id=st.just(0),
)


@given(FORWARDS, FORWARDS)
def test_each_listener_has_a_name_of_its_own_that_a_service_manager_takes(
    one: Forward, other: Forward
) -> None:
    names = [stored_name(one), stored_name(other)]
    kinds = [(each.direction, each.address, each.interface, each.port) for each in (one, other)]
    assert (names[0] == names[1]) == (kinds[0] == kinds[1])
    assert stored_name(one._replace(direction=one.direction.opposite)) != names[0]
    for name in names:
        assert name.isascii()
        assert name.isprintable()
        assert ":" not in name


@given(FORWARDS, ADDRESSES)
def test_one_that_was_added_is_known_by_its_name_alone(
    one: Forward, target: IPv4Address | IPv6Address | None
) -> None:
    one = one._replace(target=target, target_port=8000)
    name = added_name(one)
    assert name.isascii()
    assert ":" not in name
    assert len(name) <= 255 or len(one.interface or "") > 15
    try:
        listening = f"{one.address or ''}{'%' + one.interface if one.interface else ''}"
        asked = single(
            one.direction,
            read_listen(listening) if listening else ANYWHERE,
            one.port,
            read_target(str(target), "") if target else None,
            8000,
            Source.CONTROL,
            versions=(4, 6),
            in_use=(4, 6),
        )
    except SpecError:
        assert read_added(name, (4, 6)) is None, "it could not have been added"
        return
    assert read_added(name, (4, 6)) == asked._replace(required=False)


@given(FORWARDS)
def test_a_name_says_the_protocol(one: Forward) -> None:
    both = [one._replace(protocol=protocol) for protocol in Protocol]
    assert len({stored_name(each) for each in both}) == len(both)
    assert len({added_name(each) for each in both}) == len(both)
    for each in both:
        found = read_added(added_name(each), (4, 6))
        assert found is None or found.protocol is each.protocol


def without_protocol(name: str) -> str:
    """A name as it was before names said the protocol."""
    return name.replace("bound/tcp/", "bound/", 1)


@given(FORWARDS)
def test_a_name_without_a_protocol_is_of_tcp(one: Forward) -> None:
    name = added_name(one)
    old = without_protocol(name)
    assert old != name
    assert read_added(old, (4, 6)) == read_added(name, (4, 6))


@pytest.mark.parametrize("naming", [stored_name, added_name])
def test_what_was_kept_under_a_name_without_a_protocol_is_taken(
    naming: Callable[[Forward], str],
) -> None:
    listener = listening(socket.AF_INET, "127.0.0.1")
    port, before = listener.getsockname()[1], listener.detach()
    forward = Forward(
        Direction.INBOUND, IPv4Address("127.0.0.1"), None, port, None, 80, required=True
    )
    old = without_protocol(naming(forward))
    left = Passed([(old, before)], FIRST)
    left.end_others([forward])
    other = forward._replace(protocol=Protocol.UDP)
    assert left.take(other, (IPV4, IPV6)) is None
    taken = left.take(forward, (IPV4, IPV6))
    assert taken is not None
    close_all([taken])


@given(st.text(alphabet="0123456789abcdef._*%=/-", max_size=40))
def test_any_other_name_is_none_of_one_that_was_added(text: str) -> None:
    found = read_added(f"hardsplice/added/inbound/{text}", (4,))
    if found is not None:
        assert 1 <= found.port <= 65535
        assert 1 <= found.target_port <= 65535
    assert read_added(f"hardsplice/inbound/{text}", (4,)) is None


# --- taking ---


FIRST = 64  # the first number behind the places of listeners


def passed(*items: tuple[str, socket.socket]) -> Passed:
    return Passed([(name, one.detach()) for name, one in items], FIRST)


def test_passed_descriptors_leave_the_fixed_numbers_and_are_not_inherited() -> None:
    before = open_descriptors()
    left = passed(("web", socket.create_server(("127.0.0.1", 0))))
    assert left.unclaimed() == ["web"]
    (fd,) = open_descriptors() - before
    assert fd >= FIRST
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize(
    ("families", "address"),
    [
        *(((IPV4, IPV6), one) for one in (None, "127.0.0.1", "0.0.0.0", "::1", "::")),
        *(((IPV4,), one) for one in (None, "127.0.0.1", "0.0.0.0")),
        *(((IPV6,), one) for one in (None, "::1", "::")),
    ],
)
def test_a_listener_that_was_opened_for_a_forward_is_taken_for_it_and_for_no_other(
    families: tuple[int, ...], address: str | None
) -> None:
    chosen = None if address is None else ip_address(address)
    template = Forward(Direction.INBOUND, chosen, None, 0, None, 80, required=True)
    write_bind_address(template, families)
    fd = open_listener(template, families)
    with socket.socket(fileno=os.dup(fd)) as one:
        port = one.getsockname()[1]
    forward = Forward(Direction.INBOUND, chosen, None, port, None, 80, required=True)
    left = Passed([(stored_name(forward), fd)], FIRST)
    others = [
        Forward(Direction.INBOUND, chosen, None, port % 65535 + 1, None, 80, required=True),
        Forward(Direction.INBOUND, IPv4Address("127.0.0.9"), None, port, None, 80, required=True),
    ]
    for other in others:
        assert left.take(other, families) is None
    outbound = forward._replace(direction=Direction.OUTBOUND)
    assert left.take(outbound, families) is None
    taken = left.take(forward, families)
    assert taken is not None
    assert left.take(forward, families) is None, "once"
    close_all([taken])


def test_one_that_listens_elsewhere_under_its_name_is_not_taken() -> None:
    forward = Forward(Direction.INBOUND, IPv4Address("127.0.0.1"), None, 1, None, 80, required=True)
    name = stored_name(forward)
    for wrong in (
        socket.create_server(("127.0.0.1", 0)),
        socket.socket(),
        socket.socket(type=socket.SOCK_DGRAM),
    ):
        left = passed((name, wrong))
        assert left.take(forward, (IPV4, IPV6)) is None
        assert left.kept_for(Direction.INBOUND) == []


def test_what_is_kept_changes_by_as_little_as_possible() -> None:
    a, b, c = (socket.create_server(("127.0.0.1", 0)) for _ in range(3))
    again = os.dup(b.fileno())  # the same socket by another number
    stored = [("a", identity(a.fileno())), ("b", identity(b.fileno()))]
    current = [("b", again), ("c", c.fileno())]
    assert to_drop_and_keep(stored, current) == (["a"], [("c", c.fileno())])
    renamed = [("a", a.fileno()), ("d", again)]
    assert to_drop_and_keep(stored, renamed) == (["b"], [("d", again)])
    for one in (a, b, c):
        one.close()
    os.close(again)


def listening(family: int, address: str, *, dual: bool = False) -> socket.socket:
    one = socket.socket(family)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
    one.bind((address, 0))
    one.listen()
    return one


@pytest.mark.parametrize(
    ("family", "address", "dual", "meaning"),
    [
        (socket.AF_INET, "127.0.0.1", False, IPv4Address("127.0.0.1")),
        (socket.AF_INET, "0.0.0.0", False, IPv4Address("0.0.0.0")),
        (socket.AF_INET6, "::1", False, IPv6Address("::1")),
        (socket.AF_INET6, "::", False, IPv6Address("::")),
        (socket.AF_INET6, "::", True, None),
        (socket.AF_INET6, "::ffff:127.0.0.1", True, IPv4Address("127.0.0.1")),
    ],
)
def test_a_passed_listener_is_a_forward_of_where_it_listens(
    family: int, address: str, dual: bool, meaning: object
) -> None:
    one = listening(family, address, dual=dual)
    port = one.getsockname()[1]
    left = passed(("web", one))
    (bound,) = left.inherit([Inherited(("web",), None, 80)], 7)
    forward, fd = bound.forward, bound.fd
    assert (forward.id, forward.origin) == (7, Origin.PASSED)
    assert (forward.address, forward.port, forward.target_port) == (meaning, port, 80)
    assert not os.get_blocking(fd)
    with socket.socket(fileno=fd) as taken:
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert left.unclaimed() == []


def test_several_of_one_name_are_taken_together_and_ours_never() -> None:
    forward = Forward(Direction.INBOUND, IPv4Address("127.0.0.1"), None, 1, None, 80, required=True)
    left = passed(
        ("web", listening(socket.AF_INET, "127.0.0.1")),
        (stored_name(forward), listening(socket.AF_INET, "127.0.0.1")),
        ("web", listening(socket.AF_INET, "127.0.0.1")),
        ("other", listening(socket.AF_INET, "127.0.0.1")),
    )
    rest, web = Inherited((), None, 81), Inherited(("web",), None, 80)
    taken = left.inherit([rest, web], 3)
    assert [one.forward.target_port for one in taken] == [80, 80, 81]
    close_all([*(one.fd for one in taken), *left.kept_for(Direction.INBOUND)])
