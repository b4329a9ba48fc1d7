# SPDX-License-Identifier: GPL-2.0-or-later
"""Which datagrams go out together."""

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsplice.kernel import socketcalls
from hardsplice.kernel.mmsghdr import LARGEST
from hardsplice.relay.udp.rules import (
    count_of,
    flows_a_listener,
    is_ipv4,
    joinable_after,
    runs,
)

SIZES = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 1400, 30_000, LARGEST]), st.sampled_from([0, 0, 0, 1, 700])
    ),
    max_size=80,
)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([5], [(0, 1, 0)]),
        ([5, 5, 5], [(0, 3, 5)]),
        ([5, 5, 3], [(0, 3, 5)]),
        ([5, 3, 5], [(0, 2, 5), (2, 1, 0)]),
        ([3, 5, 5], [(0, 1, 0), (1, 2, 5)]),
        ([5, 0, 5], [(0, 1, 0), (1, 1, 0), (2, 1, 0)]),
        ([40_000, 40_000], [(0, 1, 0), (1, 1, 0)]),
    ],
)
def test_those_of_one_size_go_together_and_the_last_may_be_shorter(
    sizes: list[int], expected: list[tuple[int, int, int]]
) -> None:
    assert runs(sizes, [0] * len(sizes), LARGEST) == expected


def test_what_came_joined_goes_by_itself() -> None:
    assert runs([5, 20, 5, 5], [0, 5, 0, 5], LARGEST) == [(0, 1, 0), (1, 1, 5), (2, 2, 5)]


def test_no_more_than_the_kernel_cuts_into_go_together() -> None:
    assert runs([1] * 65, [0] * 65, LARGEST) == [(0, 64, 1), (64, 1, 0)]
    assert runs([1400] * 60, [0] * 60, LARGEST) == [(0, 46, 1400), (46, 14, 1400)]


@given(SIZES, st.sampled_from([0, 1, 1399, LARGEST]))
def test_each_goes_once_in_order_and_as_it_came(
    datagrams: list[tuple[int, int]], joinable: int
) -> None:
    sizes, segments = [size for size, _ in datagrams], [segment for _, segment in datagrams]
    at = 0
    for first, number, segment in runs(sizes, segments, joinable):
        assert first == at
        at += number
        pieces = sizes[first:at]
        assert sum(pieces) <= max(LARGEST, pieces[0])
        if number > 1:
            assert 0 < segment <= joinable
            assert number <= 64
            assert pieces[:-1] == [segment] * (number - 1)
            assert 0 < pieces[-1] <= segment
        elif segment:
            assert segment == segments[first] < sizes[first]
    assert at == len(sizes)


def test_how_many_datagrams_bytes_are() -> None:
    assert [count_of(*one) for one in ((0, 0), (9, 0), (9, 4), (8, 4), (1, 4))] == [1, 1, 3, 2, 1]


def test_after_an_error_smaller_ones_are_joined_or_none() -> None:
    assert joinable_after(errno.EINVAL, 1400) == 1399
    assert joinable_after(errno.EIO, 1400) == 0


def test_a_listener_alone_may_have_all_flows() -> None:
    assert [flows_a_listener(8, number) for number in (0, 1, 2)] == [8, 8, 6]
    assert flows_a_listener(1, 2) == 1


@pytest.mark.parametrize(
    ("address", "expected"), [("192.0.2.1", True), ("::ffff:192.0.2.1", True), ("::1", False)]
)
def test_a_mapped_client_came_by_ipv4(address: str, expected: bool) -> None:
    assert is_ipv4(socketcalls.sockaddr(ip_address(address), 1)) is expected
