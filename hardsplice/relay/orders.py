# SPDX-License-Identifier: GPL-2.0-or-later
"""What a monitor tells its relays while they run: listeners that come and go, in records.

A relay takes its monitor's word for where a listener's connections go, as it did when it was
forked; but a record that is not formed as it must be ends it, whoever sent it.
"""

from __future__ import annotations

import struct

from hardsplice.channel import Kind, Malformed, Record
from hardsplice.relay.engine import Listener
from hardsplice.relay.sockets import FAMILIES

_COUNTS = struct.Struct("=BB")
_TARGET = struct.Struct("=BB28s")  # family index, length, sockaddr
_SOCKADDR_LENGTHS = (16, 28)  # sizeof(struct sockaddr_in), sizeof(struct sockaddr_in6)


def serve(listener: Listener) -> Record:
    """The record that hands a listener over."""
    plans = (listener.plan_ipv4, listener.plan_ipv6)
    text = _COUNTS.pack(*map(len, plans)) + b"".join(
        _TARGET.pack(family, len(sockaddr), sockaddr) for plan in plans for family, sockaddr in plan
    )
    return Record(Kind.SERVE, index=listener.index, text=text, fds=(listener.fd,))


def close(index: int, *, reset_flows: bool) -> Record:
    """The record that takes a listener back."""
    return Record(Kind.CLOSE, int(reset_flows), index)


def listener_of(record: Record) -> Listener:
    """The listener that a record hands over; Malformed when it hands over none."""
    if len(record.fds) != 1:
        raise Malformed(f"{len(record.fds)} descriptors are not one listener")
    if len(record.text) < _COUNTS.size:
        raise Malformed("a listener without a plan")
    counts = _COUNTS.unpack_from(record.text)
    targets = record.text[_COUNTS.size :]
    if max(counts) > len(FAMILIES) or len(targets) != _TARGET.size * sum(counts):
        raise Malformed("a plan that is not as long as it says")
    all_of_them = tuple(map(_target, _TARGET.iter_unpack(targets)))
    plan_ipv4, plan_ipv6 = all_of_them[: counts[0]], all_of_them[counts[0] :]
    if plan_ipv4 == plan_ipv6:
        plan_ipv6 = plan_ipv4  # by which the engine knows that it needn't ask for the family
    return Listener(record.fds[0], plan_ipv4, plan_ipv6, record.index)


def _target(fields: tuple[int, int, bytes]) -> tuple[int, bytes]:
    family, length, sockaddr = fields
    if family >= len(FAMILIES) or length != _SOCKADDR_LENGTHS[family]:
        raise Malformed("a target that is no address")
    return family, sockaddr[:length]
