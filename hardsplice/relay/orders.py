# SPDX-License-Identifier: GPL-2.0-or-later
"""Records from a monitor to its running relays: listeners that are added and removed.

The listener itself doesn't come with the record: the relay requests it (kernel/unotify.py). A relay
trusts its monitor on where a listener's connections go, as it did when it was forked; but a
malformed record ends it.
"""

from __future__ import annotations

import struct

from hardsplice.ipc.messages import Kind, MalformedError, Record
from hardsplice.model.families import FAMILIES
from hardsplice.net.listener import Listener
from hardsplice.sandbox.address_book import AREAS, SLOT, Area, Pointer

# Targets for an IPv4 and for an IPv6 client; the listener's port; where the book is
_HEAD = struct.Struct("=BBHI")
_TARGET = struct.Struct("=BBI28s")  # family index, length, slot, sockaddr
_SOCKADDR_LENGTHS = (16, 28)  # sizeof(struct sockaddr_in), sizeof(struct sockaddr_in6)
_AREAS = {area.address: area for area in AREAS}


def add(listener: Listener, area: Area) -> Record:
    """The record that hands a listener over, whose targets are in the book at ``area``."""
    routes = (listener.route_ipv4, listener.route_ipv6)
    text = _HEAD.pack(*map(len, routes), listener.port, area.address) + b"".join(
        _TARGET.pack(one.family, one.length, one.slot, one.sockaddr)
        for route in routes
        for one in route
    )
    return Record(Kind.ADD_LISTENER, index=listener.port_id, detail=listener.fd, text=text)


def remove(listener: Listener, *, reset_flows: bool) -> Record:
    """The record that takes a listener back."""
    return Record(Kind.REMOVE_LISTENER, int(reset_flows), listener.port_id, listener.fd)


def listener_of(record: Record) -> Listener:
    """The listener that a record hands over; MalformedError when it hands over none."""
    if len(record.text) < _HEAD.size:
        raise MalformedError("a listener without routes")
    *counts, port, address = _HEAD.unpack_from(record.text)
    area, targets = _AREAS.get(address), record.text[_HEAD.size :]
    if area is None or max(counts) > len(FAMILIES) or len(targets) != _TARGET.size * sum(counts):
        raise MalformedError("routes that are not as long as they say")
    all_of_them = tuple(_target(area, fields) for fields in _TARGET.iter_unpack(targets))
    route_ipv4, route_ipv6 = all_of_them[: counts[0]], all_of_them[counts[0] :]
    if route_ipv4 == route_ipv6:
        route_ipv6 = route_ipv4  # by which the engine knows that it needn't ask for the family
    return Listener(record.detail, route_ipv4, route_ipv6, record.index, port)


def _target(area: Area, fields: tuple[int, int, int, bytes]) -> Pointer:
    family, length, slot, sockaddr = fields
    if family >= len(FAMILIES) or length != _SOCKADDR_LENGTHS[family]:
        raise MalformedError("a target that is no address")
    if slot >= area.size // SLOT:
        raise MalformedError("a target outside of the book")
    return Pointer(area, slot, family, sockaddr[:length])
