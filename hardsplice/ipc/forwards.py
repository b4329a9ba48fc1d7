# SPDX-License-Identifier: GPL-2.0-or-later
"""A forward as bytes of a fixed form, for a message from one process to another. Pure."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from hardsplice.ipc.messages import MalformedError
from hardsplice.model.direction import Direction
from hardsplice.model.forward import Forward
from hardsplice.model.protocol import BY_NUMBER
from hardsplice.model.spec import Address, is_interface_name

# The protocol's number; version and bytes of an address, twice; two ports; the interface's name
# (IFNAMSIZ).
_FORM = struct.Struct("=BB16sB16sHH16s")
SIZE = _FORM.size  # bytes


def pack(forward: Forward) -> bytes:
    """The bytes of a forward, but for its direction and its number; ValueError where its
    interface's name can't be one.
    """
    name = forward.interface
    if name is not None and not is_interface_name(name):
        raise ValueError(f"{name!a} is not an interface's name")
    return _FORM.pack(
        forward.protocol.number,
        *_packed(forward.address),
        *_packed(forward.target),
        forward.port,
        forward.target_port,
        (name or "").encode("ascii"),
    )


def _packed(address: Address | None) -> tuple[int, bytes]:
    return (0, b"") if address is None else (address.version, address.packed)


def unpack(text: bytes, direction: Direction, number: int = 0) -> Forward:
    """The forward in so many bytes, with the number that it is to have; MalformedError if it is
    invalid.
    """
    if len(text) != SIZE:
        raise MalformedError(f"{len(text)} bytes are no forward")
    protocol_number, *addresses, port, target_port, name = _FORM.unpack(text)
    version, packed, target_version, target = addresses
    protocol = BY_NUMBER.get(protocol_number)
    if protocol is None:
        raise MalformedError(f"protocol {protocol_number}")
    if not target_port:
        raise MalformedError("port 0")
    interface = name.rstrip(b"\0").decode("latin-1")
    if interface and not is_interface_name(interface):
        raise MalformedError("an interface's name that is none")
    return Forward(
        direction=direction,
        address=_unpacked(version, packed),
        interface=interface or None,
        port=port,
        target=_unpacked(target_version, target),
        target_port=target_port,
        required=True,
        protocol=protocol,
        id=number,
    )


def _unpacked(version: int, packed: bytes) -> Address | None:
    if version == 0:
        return None
    if version == 4:
        return IPv4Address(packed[:4])
    if version == 6:
        return IPv6Address(packed)
    raise MalformedError(f"an address of IP version {version}")
