# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether it is the loopback interface that keeps a target from being reached."""

from __future__ import annotations

import errno
import ipaddress

import pytest

from hardsplice.ipc.messages import Note
from hardsplice.kernel import socketcalls
from hardsplice.monitor import unreachable
from hardsplice.monitor.unreachable import Doubt, leads_to_loopback
from hardsplice.net import loopback
from hardsplice.net.listener import Listener
from hardsplice.relay.targets import telling
from hardsplice.sandbox.address_book import USUAL, Pointer
from hardsplice.telemetry.flow_table import RECORD_SIZE, End, InvalidRowError


class Interface:
    """lo, and how often it was asked for."""

    def __init__(self) -> None:
        self.is_down = True
        self.asked = 0
        self.now = 100.0

    def ask(self) -> bool:
        self.asked += 1
        return self.is_down


@pytest.fixture
def interface(monkeypatch: pytest.MonkeyPatch) -> Interface:
    made = Interface()
    monkeypatch.setattr(loopback, "is_down", made.ask)
    monkeypatch.setattr("hardsplice.monitor.unreachable.time.monotonic", lambda: made.now)
    return made


def leading_to(*targets: str) -> Listener:
    plan = tuple(
        Pointer(USUAL, slot, 0, socketcalls.sockaddr(ipaddress.ip_address(one), 80))
        for slot, one in enumerate(targets)
    )
    return Listener(10, plan, plan, 0)


@pytest.mark.parametrize(
    ("targets", "is_own"),
    [
        (["127.0.0.1", "::1"], True),
        (["127.1.2.3"], True),
        (["::1"], True),
        (["10.0.0.1"], False),
        (["::2", "126.255.255.255"], False),
        (["2001:db8::1"], False),
    ],
)
def test_where_a_port_leads_is_known(targets: list[str], is_own: bool) -> None:
    assert leads_to_loopback(leading_to(*targets)) == is_own


@pytest.mark.parametrize(
    ("kind", "code", "explains"),
    [
        (Note.REFUSED, errno.ENETUNREACH, True),
        (Note.REFUSED, errno.EADDRNOTAVAIL, True),
        (Note.TIMED_OUT, errno.ETIMEDOUT, True),
        (Note.REFUSED, errno.ECONNREFUSED, False),
        (Note.REFUSED, errno.EACCES, False),
        (Note.ACCEPT, errno.ENETUNREACH, False),
    ],
)
def test_a_note_is_explained_where_the_interface_is_down(
    kind: Note, code: int, explains: bool, interface: Interface
) -> None:
    own, far = leading_to("::1"), leading_to("10.0.0.1")
    assert Doubt().explains_note(kind, code, own) == explains
    assert not Doubt().explains_note(kind, code, far)
    interface.is_down = False
    assert not Doubt().explains_note(kind, code, own)


def test_it_is_asked_for_once_a_second(interface: Interface) -> None:
    asking = Doubt()
    for _ in range(50):
        assert asking.explains_note(Note.TIMED_OUT, 0, leading_to("::1"))
    assert interface.asked == 1
    interface.now += unreachable.CHECK_SECONDS
    interface.is_down = False
    assert not asking.explains_note(Note.TIMED_OUT, 0, leading_to("::1"))
    assert interface.asked == 2


def test_an_end_for_another_reason_is_not_looked_at(interface: Interface) -> None:
    assert not Doubt().explains_end(End.FIN, b"")
    with pytest.raises(InvalidRowError):
        Doubt().explains_end(End.TIMEOUT, bytes(RECORD_SIZE - 1))
    assert interface.asked == 0


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ([errno.ENETUNREACH, errno.EADDRNOTAVAIL], errno.ENETUNREACH),
        ([errno.EADDRNOTAVAIL, errno.ENETUNREACH], errno.ENETUNREACH),
        ([errno.ECONNREFUSED, errno.EADDRNOTAVAIL], errno.ECONNREFUSED),
        ([errno.EADDRNOTAVAIL, errno.ECONNREFUSED], errno.ECONNREFUSED),
        ([errno.ECONNREFUSED, errno.ENETUNREACH], errno.ECONNREFUSED),
        ([errno.EADDRNOTAVAIL, errno.EADDRNOTAVAIL], errno.EADDRNOTAVAIL),
        ([errno.EACCES, errno.ECONNREFUSED], errno.ECONNREFUSED),
        ([errno.ECONNREFUSED], errno.ECONNREFUSED),
    ],
)
def test_of_two_attempts_the_one_that_says_more_is_told(codes: list[int], told: int) -> None:
    said = 0
    for code in codes:
        said = telling(said, code)
    assert said == told
