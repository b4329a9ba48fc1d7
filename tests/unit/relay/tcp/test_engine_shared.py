# SPDX-License-Identifier: GPL-2.0-or-later
"""Several relays with the same listeners: what each owes the others."""

from __future__ import annotations

import errno

from hardsplice.relay.tcp.accepting import EPOLLEXCLUSIVE
from hardsplice.relay.tcp.connecting import SHORTAGE_SECONDS
from hardsplice.relay.tcp.rules import EPOLLIN
from tests.unit.relay.fake_kernel import FakeKernel
from tests.unit.relay.fake_relay import Relay


def watched(relay: Relay) -> dict[int, int]:
    """The listeners that epoll has, in its order."""
    return {fd: mask for fd, mask in relay.epoll.masks.items() if fd in relay.engine.listeners}


def test_listeners_are_watched_exclusively_only_where_they_are_shared() -> None:
    for shared, mask in ((True, EPOLLIN | EPOLLEXCLUSIVE), (False, EPOLLIN)):
        relay = Relay(shared=shared)
        assert set(watched(relay).values()) == {mask}


def test_who_accepted_goes_to_the_end_of_the_queue() -> None:
    """Leaving epoll and entering it again is what does it; a relay by itself is spared that."""
    for shared in (True, False):
        relay = Relay(shared=shared, pool=8)
        relay.kernel.dial(relay.dual)
        before = relay.epoll.changes
        relay.turn()
        flows = 2  # descriptors of the new flow
        assert relay.epoll.changes - before == flows + (2 if shared else 0)
        assert set(watched(relay)) == {relay.dual, relay.single}
        relay.check()


def test_a_backlog_is_accepted_to_its_end() -> None:
    relay = Relay(shared=True, pool=8)
    for _ in range(20):
        relay.kernel.dial(relay.single)
    relay.settle()
    assert relay.counted("accepted") == 20


def test_who_stops_accepting_says_so_and_nobody_else_does() -> None:
    for shared in (True, False):
        relay = Relay(shared=shared)
        relay.kernel.inject("accept", errno.ENFILE)
        relay.kernel.dial(relay.single)
        relay.settle()
        assert not relay.engine.accepting
        assert relay.monitor.yields == (1 if shared else 0)
        relay.wait(SHORTAGE_SECONDS)
        assert relay.counted("accepted") == 1


def test_a_relay_that_is_told_to_look_does_so_if_it_accepts() -> None:
    relay = Relay(shared=True)
    before = relay.epoll.changes
    relay.engine.poll_listeners()
    assert relay.epoll.changes - before == 2 * len(relay.engine.listeners)
    assert set(watched(relay).values()) == {EPOLLIN | EPOLLEXCLUSIVE}
    relay.check()
    relay = Relay(FakeKernel(), shared=True, generous=False)
    assert not relay.engine.accepting
    before = relay.epoll.changes
    relay.engine.poll_listeners()
    assert relay.epoll.changes == before


def test_a_listener_that_is_shut_down_in_the_middle_of_a_burst_is_let_go() -> None:
    relay = Relay(shared=True, pool=8)
    for _ in range(4):
        relay.kernel.dial(relay.single)
    relay.turn()
    relay.kernel.inject("accept", None, errno.EINVAL)  # the second turn's burst is of two
    relay.turn()
    assert relay.counted("accepted") == 2
    assert set(watched(relay)) == {relay.dual}
    relay.check()
